"""Whether a folder that another machine, or container, names is the same folder there, and can be worked in together.

A mark is put into it here, under the two kinds of locks that stores are built with; whoever is asked there finds the
mark, may write beside it, and cannot take the locks. That writes of several machines into one file are kept apart,
which a network file system has to do as well, no mark shows.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from storage.locks import CellLocks, FileLock


@dataclass(frozen=True, slots=True)
class Mark:
    """Two files with a random name in a folder, each locked in one way by who made them."""

    folder: Path
    name: str

    @property
    def whole(self) -> Path:
        """Locked as `build.lock` is."""
        return self.folder / f".shared-{self.name}-whole.partial"

    @property
    def cells(self) -> Path:
        """Locked as `cells.lock` is."""
        return self.folder / f".shared-{self.name}-cells.partial"


@contextmanager
def marked(folder: Path) -> Iterator[Mark]:
    """Have a mark in a folder, which is made if it is not there, and goes again if nothing else came into it."""
    folder = folder.absolute()
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    mark = Mark(folder, secrets.token_hex(8))
    try:
        with FileLock(mark.whole) as lock, CellLocks(mark.cells) as cells, cells.held([(0, 1)]):
            lock.try_exclusive()
            yield mark
    finally:
        for path in (mark.whole, mark.cells):
            path.unlink(missing_ok=True)
        for path in made:
            with suppress(OSError):
                path.rmdir()


def why_not_shared(mark: Mark) -> str | None:
    """What stands in the way of working in a marked folder from here, as the end of a sentence; None for nothing."""
    if not mark.folder.is_dir():
        return "is not there"
    if not (mark.whole.is_file() and mark.cells.is_file()):
        return "is another folder there"
    if not os.access(mark.folder, os.W_OK | os.X_OK):
        return "cannot be written to there"
    with FileLock(mark.whole) as lock, CellLocks(mark.cells) as cells, ExitStack() as stack:
        if lock.try_exclusive() or cells.take(0, stack):
            return "is on a file system whose locks do not hold there"
    return None
