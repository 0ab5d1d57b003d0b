"""Which file a path leads to, told apart from its copies."""

from __future__ import annotations

import ctypes
import os
import struct
from dataclasses import dataclass
from pathlib import Path

# Of Linux's statx, from its own header.
_AT_FDCWD = -100
_AT_SYMLINK_NOFOLLOW = 0x100
_STATX_BTIME = 0x800
_STATX_BYTES = 256
_BTIME_OFFSET = 80


@dataclass(frozen=True, slots=True)
class FileIdentity:
    """One file. A copy has another number or another birth, whatever made it; renaming or changing it alters neither.

    Args:
        device: number of its file system, which holds until the machine is started again.
        inode: number of the file there; several machines that share the file system see the same.
        born: nanoseconds since 1970 when it was made, which no tool can set; "" where the file system does not say.
    """

    device: int
    inode: int
    born: str


def identify(path: Path) -> FileIdentity:
    """The file at a path, without following a link; raises `OSError` where there is none."""
    found = path.lstat()
    return FileIdentity(found.st_dev, found.st_ino, _born(path, found))


def _born(path: Path, found: os.stat_result) -> str:
    birth = getattr(found, "st_birthtime", None)  # macOS
    if birth is not None:
        return str(int(birth * 1e9))
    statx = getattr(ctypes.CDLL(None), "statx", None)
    if statx is None:
        return ""
    answer = ctypes.create_string_buffer(_STATX_BYTES)
    if statx(_AT_FDCWD, os.fsencode(path), _AT_SYMLINK_NOFOLLOW, _STATX_BTIME, answer) != 0:
        return ""
    (mask,) = struct.unpack_from("=I", answer)
    seconds, nanoseconds = struct.unpack_from("=qI", answer, _BTIME_OFFSET)
    return str(seconds * 10**9 + nanoseconds) if mask & _STATX_BTIME else ""
