"""Ranks: processes that do one piece of work together, each holding all of its state and doing a share of each step.

`torchrun` starts them, and says in the environment who is who. CPU tensors go between them by gloo, those of GPUs by
nccl. What all do alike needs no word between them; what could differ, a signal or a clock, is agreed on.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from importlib import import_module
from typing import Any, Protocol, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from ground.errors import CKDError, InvalidInput, RankLost

# Machines that are given out one by one begin apart.
PATIENCE = timedelta(minutes=5)
_NEEDED = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


def share(length: int, rank: int, count: int) -> slice:
    """Which of so many things, in order, are one rank's: together all ranks have each once, and none twice."""
    return slice(length * rank // count, length * (rank + 1) // count)


class Ranks:
    """One process, which is all there is; `RankGroup` is one of several.

    Attributes:
        rank: its number, from 0.
        count: how many there are.
        neighbours: how many of them this machine has, with this one.
    """

    rank: int = 0
    count: int = 1
    neighbours: int = 1

    @property
    def alone(self) -> bool:
        """Whether there is no other."""
        return self.count == 1

    @property
    def is_first(self) -> bool:
        """Whether it is the one that writes and speaks."""
        return self.rank == 0

    def device(self, asked: str) -> str:
        """The device that this rank computes on, where a user asked for one."""
        return asked

    def any(self, flag: bool) -> bool:
        """Whether it holds for one of the ranks."""
        return flag

    def totals(self, *numbers: int) -> tuple[int, ...]:
        """Sums over the ranks."""
        return numbers

    def add(self, tensor: Tensor) -> None:
        """Make a tensor the sum of all ranks', the same bits on each."""

    def gather(self, tensor: Tensor) -> Tensor:
        """Tensors of one shape, (R, ...) in the order of the ranks."""
        return tensor[None]

    def align(self, tensors: Iterable[Tensor]) -> None:
        """Give every rank the numbers of the first."""

    def told(self, content: bytes) -> bytes:
        """What the first rank gives, on every one."""
        return content


ALONE = Ranks()


class Board(Protocol):
    """Where ranks leave words for each other: what torch calls a store."""

    def add(self, key: str, amount: int, /) -> int:
        """Add to a number that begins as 0; returns what it is then."""

    def set(self, key: str, value: str, /) -> None:
        """Leave a word."""

    def get(self, key: str, /) -> bytes:
        """Wait for a word."""


class RankGroup(Ranks):
    """One of several processes; each of them calls the same methods in the same order.

    Args:
        board: for words about errors.
        rank, count, neighbours: as for `Ranks`.
        local_rank: its number among those on this machine.

    Raises:
        RankLost: from any method that asks the others: one of them is gone.
    """

    def __init__(self, board: Board, rank: int, local_rank: int, count: int, neighbours: int = 1) -> None:
        self.rank, self.local_rank, self.count, self.neighbours = rank, local_rank, count, neighbours
        self._board = board

    def device(self, asked: str) -> str:
        """A GPU of its own, or the CPU.

        Raises:
            InvalidInput: one GPU is asked for by its number, or there are fewer than ranks.
        """
        if asked == "auto":
            asked = "cuda" if torch.cuda.is_available() else "cpu"
        if asked == "cpu":
            return asked
        if asked != "cuda":
            raise InvalidInput(
                f"--device {asked} would be shared by {self.count} ranks; give auto, cuda (each has one) or cpu"
            )
        found = torch.cuda.device_count()
        if self.local_rank >= found:
            raise InvalidInput(
                f"rank {self.rank} has no GPU of its own: this machine has {found}; start as many ranks as that, or "
                "give --device cpu"
            )
        return f"cuda:{self.local_rank}"

    def any(self, flag: bool) -> bool:
        """Agreed on through main memory, so that no GPU is waited for."""
        return self.totals(int(flag))[0] > 0

    def totals(self, *numbers: int) -> tuple[int, ...]:
        """See `Ranks.totals`."""
        counted = torch.tensor(numbers, dtype=torch.int64)
        self.add(counted)
        return tuple(counted.tolist())

    def add(self, tensor: Tensor) -> None:
        """See `Ranks.add`."""
        with self._company():
            dist.all_reduce(tensor)

    def gather(self, tensor: Tensor) -> Tensor:
        """See `Ranks.gather`."""
        tensor = tensor.contiguous()
        found = [torch.empty_like(tensor) for _ in range(self.count)]
        with self._company():
            dist.all_gather(found, tensor)
        return torch.stack(found)

    def align(self, tensors: Iterable[Tensor]) -> None:
        """See `Ranks.align`."""
        for tensor in tensors:
            sent = tensor.detach().contiguous()
            with self._company():
                dist.broadcast(sent, src=0)
            tensor.detach().copy_(sent)

    def told(self, content: bytes) -> bytes:
        """See `Ranks.told`."""
        (length,) = self.totals(len(content) if self.is_first else 0)
        if not length:
            return b""
        sent = torch.frombuffer(bytearray(content if self.is_first else length), dtype=torch.uint8)
        self.align([sent])
        return sent.numpy().tobytes()

    @contextmanager
    def _company(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:  # gloo has no narrower one for a connection that broke
            raise RankLost(
                f"rank {self.rank} of {self.count} lost another one; see what that said, then go on with the same "
                "command and --resume"
            ) from error

    @contextmanager
    def one_voice(self) -> Iterator[None]:
        """Leave what ends this rank to whoever failed first, unless it is something else.

        All ranks find the same fault in the same input, and a user need not read it R times.
        """
        try:
            yield
        except CKDError as error:
            if self._was_said(error):
                raise SystemExit(error.exit_code) from error
            raise

    def _was_said(self, error: CKDError) -> bool:
        sentence = str(error)
        try:
            if self._board.add("ckd/failures", 1) == 1:
                self._board.set("ckd/first failure", sentence)
                return False
            said = self._board.get("ckd/first failure").decode()
        except RuntimeError:  # what they met at is gone too
            return False
        return isinstance(error, RankLost) or said == sentence


@dataclass(frozen=True, slots=True)
class _Place:
    """Who this process is among those that torchrun started."""

    rank: int
    local_rank: int
    count: int
    neighbours: int

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> _Place | None:
        """Raises `InvalidInput` where the environment says half of it; None where it says nothing, or one process."""
        if environment.get("WORLD_SIZE", "1") == "1":
            return None
        missing = [name for name in _NEEDED if name not in environment]
        try:
            rank, local, count = (int(environment.get(name, "0")) for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"))
            neighbours = int(environment.get("LOCAL_WORLD_SIZE", local + 1))
        except ValueError:
            rank, local, count, neighbours = -1, -1, 0, 0
        if missing or not 0 <= local <= rank < count or not local < neighbours <= count:
            named = ", ".join(f"{name}={environment.get(name, '')}" for name in ("WORLD_SIZE", *_NEEDED))
            raise InvalidInput(
                f"the environment does not say which rank this is ({named}); start ranks with torchrun, or unset "
                "WORLD_SIZE to train in one process"
            )
        return cls(rank, local, count, neighbours)


def _met(place: _Place, environment: Mapping[str, str]) -> Board:
    """Have a process group of all ranks; what they met at.

    Raises:
        InvalidInput: they do not meet.
    """
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"
    try:
        met = next(iter(rendezvous("env://", place.rank, place.count, timeout=PATIENCE)))
        store, rank, count = cast(tuple[Any, int, int], met)
        dist.init_process_group(backend, store=store, rank=rank, world_size=count)
    except (RuntimeError, ValueError, OSError) as error:  # whatever torch's backends raise
        where = f"{environment['MASTER_ADDR']}:{environment['MASTER_PORT']}"
        why = str(error).strip().partition("\n")[0][:200]
        raise InvalidInput(
            f"rank {place.rank} did not meet all {place.count} at {where} within {PATIENCE.total_seconds():.0f} s "
            f"({why}); start all ranks with torchrun, which finds a free port"
        ) from error
    return cast(Board, store)


@contextmanager
def joined(environment: Mapping[str, str] = os.environ) -> Iterator[Ranks]:
    """The ranks that this process is one of, once all of them are there; alone where torchrun did not start it.

    Raises:
        InvalidInput: the environment says half of what torchrun says, or they do not meet.
    """
    place = _Place.of(environment)
    if place is None:
        yield ALONE
        return
    # torch's optimizers import it. Imported while there is a group it keeps that group, whose threads then outlive
    # `destroy_process_group`, and abort the process where one of them drops a tensor as Python ends.
    import_module("torch._dynamo")
    store = _met(place, environment)
    if place.local_rank < torch.cuda.device_count():
        # What asks for "cuda" without a number means this one.
        torch.cuda.set_device(place.local_rank)
    group = RankGroup(store, place.rank, place.local_rank, place.count, place.neighbours)
    with group.one_voice():
        yield group
    dist.destroy_process_group()
