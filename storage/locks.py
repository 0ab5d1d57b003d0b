"""Locks between processes; the kernel frees them when their holder dies, so none is ever stale.

A store has two. Builders share `build.lock`; who makes, grows or repairs a store holds it alone. `cells.lock` is
locked byte by byte, one byte a call: a builder holds the bytes of the calls whose answers it is writing, and nobody
decides what became of a call while its byte is held.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from ground.durable import open_own
from ground.errors import InvalidInput, StoreBusy

_POLL_SECONDS = 0.05


@contextmanager
def exclusive_lock(path: Path, busy: str) -> Iterator[None]:
    """Hold `path` alone, or raise `StoreBusy(busy)` at once."""
    with FileLock(path) as lock:
        if not lock.try_exclusive():
            raise StoreBusy(busy)
        yield


def is_held(path: Path) -> bool:
    """Whether anybody has a lock, alone or together with others; nothing is made or written."""
    try:
        descriptor = open_own(path, os.O_RDONLY)
    except (OSError, InvalidInput):
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


class FileLock:
    """An advisory lock on a whole file, made if it is not there; released at the end of the `with` block.

    Raises:
        InvalidInput: when it is entered, if the file is a link or a pipe.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor = -1

    def __enter__(self) -> FileLock:
        try:
            self._descriptor = open_own(self._path, os.O_RDWR | os.O_CREAT)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise
            # Who only reads a store can still keep builders out of it.
            self._descriptor = open_own(self._path, os.O_RDONLY)
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)

    def try_exclusive(self) -> bool:
        """Take the lock alone, if nobody has it."""
        return self._try(fcntl.LOCK_EX)

    def try_shared(self) -> bool:
        """Take or keep the lock together with others, if nobody has it alone."""
        return self._try(fcntl.LOCK_SH)

    def release(self) -> None:
        """Let go of the lock before the block ends."""
        fcntl.flock(self._descriptor, fcntl.LOCK_UN)

    def share(self) -> None:
        """Wait until the lock can be shared."""
        while not self.try_shared():
            time.sleep(_POLL_SECONDS)

    def _try(self, mode: int) -> bool:
        try:
            fcntl.flock(self._descriptor, mode | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


class CellLocks:
    """Locks on single cells of a store, by its `cells.lock`, for as long as the `with` block lasts.

    A lock belongs to the process, and closing the file anywhere in it frees them all: open one a process.

    Raises:
        InvalidInput: when it is entered, if the file is a link or a pipe.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor = -1

    def __enter__(self) -> CellLocks:
        self._descriptor = open_own(self._path, os.O_RDWR | os.O_CREAT)
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)

    @contextmanager
    def held(self, runs: Sequence[tuple[int, int]]) -> Iterator[None]:
        """Hold runs of cells, each (first, count), after waiting for whoever has one of them."""
        with ExitStack() as stack:
            for first, count in runs:
                fcntl.lockf(self._descriptor, fcntl.LOCK_EX, count, first)
                stack.callback(fcntl.lockf, self._descriptor, fcntl.LOCK_UN, count, first)
            yield

    def take(self, cell: int, stack: ExitStack) -> bool:
        """Hold a cell until the stack is unwound, if nobody else is writing its answer."""
        try:
            fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, cell)
        except (BlockingIOError, PermissionError):
            return False
        stack.callback(fcntl.lockf, self._descriptor, fcntl.LOCK_UN, 1, cell)
        return True
