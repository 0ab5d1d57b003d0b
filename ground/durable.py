"""Files that survive a crash: written whole or not at all, and on the disk when a call returns.

A rename is atomic but not durable, so the file and its folder are both fsynced. A full disk is reported as
`DiskFull`, with the file that did not fit.
"""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from ground.errors import DiskFull

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def reporting_full_disk(path: Path) -> Iterator[None]:
    """Turn "no space left" from any write below `path` into a `DiskFull`."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        if _error_number(error) not in _NO_ROOM:
            raise
        where = getattr(error, "filename", None) or path
        raise DiskFull(
            f"no room left to write {where}; free some space, then run the same command again: what is finished is kept"
        ) from error


def _error_number(error: Exception) -> int | None:
    """The system's number for an error; the HDF5 library has it in its text alone."""
    number = getattr(error, "errno", None)
    told = re.search(r"errno = (\d+)", str(error))
    return int(told[1]) if number is None and told else number


def fsync_path(path: Path) -> None:
    """Put a file, or the entries of a folder, on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def allocate(path: Path, size: int) -> None:
    """Make a file of zeros, or lengthen one with zeros, whose room on the disk is taken: writing into it cannot fail
    for lack of any.
    """
    with reporting_full_disk(path):
        # O_NONBLOCK: a pipe in place of a file is an error, and does not make us wait.
        flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        descriptor = os.open(path, flags, 0o666)
        try:
            if hasattr(os, "posix_fallocate") and size:
                os.posix_fallocate(descriptor, 0, size)
            else:  # macOS has no such call: the room is then only promised
                os.truncate(descriptor, size)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def replacing(path: Path, *, binary: bool = True) -> Iterator[IO[Any]]:
    """A file, of bytes or of UTF-8 text, that takes the place of `path`, atomically and durably, when the block ends
    well; otherwise nothing of it is left.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with reporting_full_disk(path):
        try:
            # Whatever lies there is not followed: a process with our number may have left it, or somebody a link.
            partial.unlink(missing_ok=True)
            with partial.open("xb") if binary else partial.open("x", encoding="utf-8", newline="") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
    fsync_path(path.parent)


def write_bytes(path: Path, content: bytes) -> None:
    """Replace `path` by `content`, atomically and durably."""
    with replacing(path) as file:
        file.write(content)


def write_json(path: Path, document: dict[str, Any]) -> None:
    """Replace `path` by a JSON document, atomically and durably."""
    write_bytes(path, (json.dumps(document, indent=2) + "\n").encode())


def remove_partials(folder: Path) -> None:
    """Delete what writers that were killed left below a folder; needs the folder's lock."""
    for partial in folder.rglob(".*.partial"):
        if not partial.is_dir() or partial.is_symlink():
            partial.unlink(missing_ok=True)
