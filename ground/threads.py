"""Work on many pieces side by side, where it is done outside Python's lock: reading, hashing."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

_NUM_THREADS = min(8, os.cpu_count() or 1)
# Pieces that wait or are done, for each thread.
_AHEAD = 4
# Hashing less at once than this, threads would mostly wait for Python's lock.
WORTH_A_THREAD_BYTES = 8 << 10

_Piece = TypeVar("_Piece")
_Result = TypeVar("_Result")


def in_threads(work: Callable[[_Piece], _Result], pieces: Iterable[_Piece], *, at_least: int = 1) -> Iterator[_Result]:
    """What `work` makes of each piece, in order, begun a few pieces ahead; an error is raised in its place.

    Args:
        at_least: threads, however few cores there are: for work that waits, as for a network.
    """
    threads = max(_NUM_THREADS, at_least)
    pool, begun = ThreadPoolExecutor(threads), deque[Future[_Result]]()
    try:
        for piece in pieces:
            begun.append(pool.submit(work, piece))
            if len(begun) >= max(_AHEAD * _NUM_THREADS, threads):
                yield begun.popleft().result()
        while begun:
            yield begun.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
