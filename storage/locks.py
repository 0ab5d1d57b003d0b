"""Locks between processes; the kernel frees them when their holder dies, so none is ever stale.

A store has two. Builders share `build.lock`; who makes, grows or repairs a store holds it alone. `cells.lock` is
locked byte by byte, one byte a call: a builder holds the bytes of the calls whose answers it is writing, and nobody
decides what became of a call while its byte is held.

A holder that is stopped keeps its locks for as long as it is. So nobody waits for one without an end: who has waited
too long says who holds what, and ends.
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
from storage.holders import advice, lock_holders, named

_POLL_SECONDS = 0.05
PATIENCE_SECONDS = 60.0


@contextmanager
def exclusive_lock(path: Path, busy: str, instead: str = "") -> Iterator[None]:
    """Hold `path` alone, or raise `StoreBusy` at once: what is `busy`, who holds the lock, and what to do.

    Args:
        instead: what else can be done, for the end of that sentence.
    """
    with FileLock(path) as lock:
        if not lock.try_exclusive():
            raise StoreBusy(f"{busy}: {lock.held_by()}{instead}")
        yield


def held_by(path: Path, first: int = 0, count: int = 0) -> str:
    """Who holds a lock, and what to do about it, for a message; see `lock_holders`."""
    holders = lock_holders(path, first, count)
    return f"{path.name} is held by {named(holders)}; {advice(holders)}"


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

    On a disk that cannot be written to, a file that is not there is not made, and the lock is everybody's.

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
            # Who only reads a store can still keep builders out of it; where no file can be made, no builder is.
            if os.path.lexists(self._path):
                self._descriptor = open_own(self._path, os.O_RDONLY)
        return self

    def __exit__(self, *_: object) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)

    def try_exclusive(self) -> bool:
        """Take the lock alone, if nobody has it."""
        return self._try(fcntl.LOCK_EX)

    def try_shared(self) -> bool:
        """Take or keep the lock together with others, if nobody has it alone."""
        return self._try(fcntl.LOCK_SH)

    def release(self) -> None:
        """Let go of the lock before the block ends."""
        if self._descriptor >= 0:
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)

    def share(self, patience_seconds: float) -> None:
        """Wait until the lock can be shared.

        Raises:
            StoreBusy: somebody has held it alone for all that time.
        """
        deadline = time.monotonic() + patience_seconds
        while not self.try_shared():
            if time.monotonic() >= deadline:
                raise StoreBusy(f"{self._path.parent} cannot be shared: {self.held_by()}")
            time.sleep(_POLL_SECONDS)

    def held_by(self) -> str:
        """Who holds the lock, and what to do about it, for a message."""
        return held_by(self._path)

    def _try(self, mode: int) -> bool:
        if self._descriptor < 0:
            return True
        try:
            fcntl.flock(self._descriptor, mode | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


class CellLocks:
    """Locks on single cells of a store, by its `cells.lock`, for as long as the `with` block lasts.

    A lock belongs to the process, and closing the file anywhere in it frees them all: open one a process.

    Args:
        patience_seconds: how long to wait for a cell that somebody else holds.

    Raises:
        InvalidInput: when it is entered, if the file is a link or a pipe.
    """

    def __init__(self, path: Path, patience_seconds: float = PATIENCE_SECONDS) -> None:
        self.path, self.patience_seconds = path, patience_seconds
        self._descriptor = -1

    def __enter__(self) -> CellLocks:
        self._descriptor = open_own(self.path, os.O_RDWR | os.O_CREAT)
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)

    @contextmanager
    def held(self, runs: Sequence[tuple[int, int]]) -> Iterator[None]:
        """Hold runs of cells, each (first, count), after waiting for whoever has one of them.

        Raises:
            StoreBusy: somebody has held one of them for all our patience; nothing was done.
        """
        deadline = time.monotonic() + self.patience_seconds
        with ExitStack() as stack:
            for first, count in runs:
                while not self._take(first, count, stack):
                    if time.monotonic() >= deadline:
                        raise StoreBusy(locked_cells(self.path, first, count, self.patience_seconds))
                    time.sleep(_POLL_SECONDS)
            yield

    def take(self, cell: int, stack: ExitStack) -> bool:
        """Hold a cell until the stack is unwound, if nobody else is writing its answer."""
        return self._take(cell, 1, stack)

    def take_run(self, first: int, count: int, stack: ExitStack) -> bool:
        """The same for a run of cells."""
        return self._take(first, count, stack)

    def _take(self, first: int, count: int, stack: ExitStack) -> bool:
        try:
            fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, count, first)
        except (BlockingIOError, PermissionError):
            return False
        stack.callback(fcntl.lockf, self._descriptor, fcntl.LOCK_UN, count, first)
        return True


def locked_cells(path: Path, first: int, count: int, seconds: float) -> str:
    """That somebody does not let go of cells, who, and what to do: a sentence."""
    which = f"cell {first}" if count == 1 else f"cells {first} to {first + count - 1}"
    return (
        f"{which} of {path.parent} stayed locked for {seconds:.0f} s: {held_by(path, first, count)}, then run the same "
        "command again: what is finished is kept"
    )
