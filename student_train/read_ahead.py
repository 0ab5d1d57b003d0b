"""Reading in threads, before what is read is needed: in order, and no more at a time than was asked for.

What goes wrong while reading is raised where the result is taken, in the thread that uses it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from typing import Generic, TypeVar

# Two: one waits for the disk while the other computes digests.
_THREADS = 2

Place = TypeVar("Place")
Item = TypeVar("Item")


class ReadAhead(Generic[Place, Item]):
    """Results of `read`, in the order in which they were begun.

    Args:
        read: called in threads, several at a time.
    """

    def __init__(self, read: Callable[[Place], Item]) -> None:
        self._read = read
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="ckd-reading")
        self._begun: deque[Future[Item]] = deque()

    def __len__(self) -> int:
        return len(self._begun)

    def begin(self, place: Place) -> None:
        """Read one more."""
        self._begun.append(self._pool.submit(self._read, place))

    def take(self) -> Item:
        """The one that was begun first, when it is read; raises what reading it raised."""
        return self._begun.popleft().result()

    def close(self) -> None:
        """Drop what was begun; returns when no thread is left."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._begun.clear()


def read_ahead(read: Callable[[Place], Item], places: Iterable[Place], ahead: int = 2) -> Iterator[Item]:
    """What `read` gives for each place, in order, `ahead` of them read before they are asked for."""
    with closing(ReadAhead(read)) as reading:
        for place in places:
            reading.begin(place)
            if len(reading) > ahead:
                yield reading.take()
        while len(reading):
            yield reading.take()
