"""Objects in a folder, `file` URLs: an object is a file of its own, as in a store's local folder.

obstore follows links, and waits for who writes into a pipe. So what it would read is looked at before, and a folder is
listed here: through a link one could come to anything, and round in circles.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path

from ground.documents import Malformed

# What obstore is writing, or was when it was killed.
_UNFINISHED = re.compile(r"#[0-9]+\Z")


def require_file(root: Path, name: str) -> None:
    """Raise `Malformed` for what is no file of its own, or below what is no folder of its own; what is not there may
    be asked for.
    """
    path = root
    for part in Path(name).parts:
        path /= part
        try:
            mode = path.lstat().st_mode
        except OSError:
            return
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise Malformed("it is no file of its own, but a link or a pipe")


def files_below(root: Path, below: str = "") -> Iterator[tuple[str, int]]:
    """Name and bytes of every file below a folder, or a folder in it; links and pipes are none.

    Raises:
        OSError: a folder cannot be listed.
    """
    try:
        require_file(root, below)
        found = sorted(os.scandir(root / below), key=lambda entry: entry.name)
    except (Malformed, FileNotFoundError, NotADirectoryError):
        return
    for entry in found:
        name = f"{below}/{entry.name}" if below else entry.name
        if entry.is_dir(follow_symlinks=False):
            yield from files_below(root, name)
        elif entry.is_file(follow_symlinks=False) and not _UNFINISHED.search(name):
            try:
                yield name, entry.stat(follow_symlinks=False).st_size
            except FileNotFoundError:
                continue  # somebody's probe
