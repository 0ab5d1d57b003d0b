"""Ranks that are threads of this process: what they say to each other is exact, and costs no process.

They share torch's own generator, so that what draws from it (a student before its first step) differs between them.
Processes are started where they are what is tested: `tests.rank_processes`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, BrokenBarrierError
from typing import Any, TypeVar

import torch
from torch import Tensor

from ground.errors import RankLost
from ground.ranks import Ranks

_T = TypeVar("_T")


class ThreadRanks(Ranks):
    """One of several threads.

    Args:
        barrier: of all of them.
        said: what each has to say at the moment.
    """

    def __init__(self, rank: int, barrier: Barrier, said: list[Any]) -> None:
        self.rank, self.count = rank, barrier.parties
        self._barrier, self._said = barrier, said

    def _exchanged(self, word: Any) -> list[Any]:
        self._said[self.rank] = word
        try:
            self._barrier.wait(60)
            found = list(self._said)
            self._barrier.wait(60)
        except BrokenBarrierError as error:
            raise RankLost("a thread ended") from error
        return found

    def any(self, flag: bool) -> bool:
        return any(self._exchanged(flag))

    def totals(self, *numbers: int) -> tuple[int, ...]:
        return tuple(map(sum, zip(*self._exchanged(numbers), strict=True)))

    def add(self, tensor: Tensor) -> None:
        tensor.copy_(torch.stack(self._exchanged(tensor.clone())).sum(dim=0))

    def gather(self, tensor: Tensor) -> Tensor:
        return torch.stack(self._exchanged(tensor.clone()))

    def align(self, tensors: Iterable[Tensor]) -> None:
        for tensor in tensors:
            tensor.detach().copy_(self._exchanged(tensor.detach().clone())[0])

    def told(self, content: bytes) -> bytes:
        return self._exchanged(content)[0]


def in_ranks(count: int, work: Callable[[Ranks], _T]) -> list[_T]:
    """What each of so many ranks returns, in order; raises what the first of them to fail raised."""
    barrier, said = Barrier(count), [None] * count

    def one(rank: int) -> _T:
        try:
            return work(ThreadRanks(rank, barrier, said))
        except BaseException:
            barrier.abort()
            raise

    with ThreadPoolExecutor(count) as pool:
        futures = [pool.submit(one, rank) for rank in range(count)]
    errors = [future.exception() for future in futures]
    raised = [error for error in errors if error is not None]
    for error in sorted(raised, key=lambda error: isinstance(error, RankLost)):
        raise error
    return [future.result() for future in futures]
