"""Files that survive a crash, written whole or not at all, and on the disk when a call returns; and files of our own.

A rename is atomic but not durable, so the file and its folder are both fsynced. A full disk is reported as
`DiskFull`, with the file that did not fit.

A folder may come from anybody: what is made or written in it goes to a file of the folder's own. A link in a file's
place is not followed, and a pipe is not waited for; both are refused, since what put them there is not known.
"""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from ground.errors import DiskFull, InvalidInput

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# How opening without following, waiting or replacing fails where a link, a pipe, a socket or a folder is.
_NOT_OWN = (errno.ELOOP, errno.ENXIO, errno.EISDIR, errno.ENODEV)
# How file systems without second names for a file, as on memory cards, refuse to make one.
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


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


def not_own(path: Path) -> InvalidInput:
    """The error for a place that something else than a file of its own has taken."""
    return InvalidInput(f"{path} is no file of its own, but a link, a folder or a pipe; move it away")


def open_own(path: Path, flags: int) -> int:
    """Descriptor of an ordinary file, opened as `flags` say; with O_CREAT it is made if it is not there.

    Raises:
        InvalidInput: a link, a pipe, a folder or a device is in its place.
    """
    try:
        # O_NONBLOCK: opening a pipe would wait for its other end.
        descriptor = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    except OSError as error:
        if error.errno in _NOT_OWN:
            raise not_own(path) from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise not_own(path)
    return descriptor


def remove_own(path: Path) -> None:
    """Delete the file or folder at `path`, if there is one; raises `InvalidInput` for anything else, a link above all.

    Links within a folder are deleted, and what they point to is not.
    """
    if not os.path.lexists(path):
        return
    mode = path.lstat().st_mode
    if stat.S_ISDIR(mode):
        shutil.rmtree(path)
    elif stat.S_ISREG(mode):
        path.unlink()
    else:
        raise not_own(path)


def allocate(path: Path, size: int) -> None:
    """Make a file of zeros, or lengthen one with zeros, whose room on the disk is taken: writing into it cannot fail
    for lack of any.

    Raises:
        InvalidInput: a link or a pipe is in its place.
    """
    with reporting_full_disk(path):
        descriptor = open_own(path, os.O_WRONLY | os.O_CREAT)
        try:
            if hasattr(os, "posix_fallocate") and size:
                os.posix_fallocate(descriptor, 0, size)
            else:  # macOS has no such call: the room is then only promised
                os.truncate(descriptor, size)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def partial_of(path: Path) -> Path:
    """Where to write what is to take the place of `path`; `remove_partials` finds it if the writer is killed.

    Two processes never choose the same: containers that share a folder number theirs alike.
    """
    return path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.partial")


@contextmanager
def replacing(path: Path, *, binary: bool = True) -> Iterator[IO[Any]]:
    """A file, of bytes or of UTF-8 text, that takes the place of `path`, atomically and durably, when the block ends
    well; otherwise nothing of it is left. A link at `path` is replaced itself.
    """
    with _written_beside(path, os.replace, binary=binary) as file:
        yield file


def create(path: Path, content: bytes) -> None:
    """Make a file, whole from the moment it can be seen; one that is there stays as it is, whoever made it."""
    with suppress(FileExistsError), _written_beside(path, _put_new, binary=True) as file:
        file.write(content)


def _put_new(partial: str, name: str, *, src_dir_fd: int, dst_dir_fd: int) -> None:
    try:
        os.link(partial, name, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        # Who comes at the same time finds an empty file for a moment, or is refused.
        os.close(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666, dir_fd=dst_dir_fd))
        os.replace(partial, name, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)


@contextmanager
def _written_beside(path: Path, put: Callable[..., None], *, binary: bool) -> Iterator[IO[Any]]:
    """A new file in the folder of `path`, which `put` brings to its name when the block ends well.

    All of it happens by the folder's descriptor, so in one folder, whatever becomes of the names above it.
    """
    partial = partial_of(path)
    with reporting_full_disk(path):
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            descriptor = os.open(partial.name, flags, 0o666, dir_fd=folder)
            with open(descriptor, "wb") if binary else open(descriptor, "w", encoding="utf-8", newline="") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            put(partial.name, path.name, src_dir_fd=folder, dst_dir_fd=folder)
            os.fsync(folder)
        except OSError as error:
            if error.filename in (partial.name, path.name):
                error.filename = str(path)
            raise
        finally:
            with suppress(FileNotFoundError):
                os.unlink(partial.name, dir_fd=folder)
            os.close(folder)


def write_bytes(path: Path, content: bytes) -> None:
    """Replace `path` by `content`, atomically and durably."""
    with replacing(path) as file:
        file.write(content)


def json_content(document: dict[str, Any]) -> bytes:
    """A JSON document as `write_json` writes it."""
    return (json.dumps(document, indent=2) + "\n").encode()


def write_json(path: Path, document: dict[str, Any]) -> None:
    """Replace `path` by a JSON document, atomically and durably."""
    write_bytes(path, json_content(document))


def remove_partials(folder: Path) -> None:
    """Delete what writers that were killed left below a folder; needs the folder's lock."""
    for partial in folder.rglob(".*.partial"):
        if not partial.is_dir() or partial.is_symlink():
            partial.unlink(missing_ok=True)
