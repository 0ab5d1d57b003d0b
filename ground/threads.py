"""Work on many pieces side by side, where it is done outside Python's lock: reading, hashing."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

_NUM_THREADS = min(8, os.cpu_count() or 1)
# Hashing less at once than this, threads would mostly wait for Python's lock.
WORTH_A_THREAD_BYTES = 8 << 10

_Piece = TypeVar("_Piece")
_Result = TypeVar("_Result")


def in_threads(work: Callable[[_Piece], _Result], pieces: Iterable[_Piece]) -> Iterator[_Result]:
    """What `work` makes of each piece, in order; an error is raised in its place, and nothing more is begun.

    All results wait until they are asked for: they are to be small.
    """
    pool = ThreadPoolExecutor(_NUM_THREADS)
    try:
        yield from pool.map(work, pieces)
    finally:
        pool.shutdown(cancel_futures=True)
