"""Whether a file is still what was read of it, and what it holds."""

from __future__ import annotations

import hashlib
from pathlib import Path

# Path, number, bytes, and nanoseconds of the last change.
Stamp = tuple[str, int, int, int]


def stamp_of(path: Path) -> Stamp:
    """Which file it is, and in what state; raises `OSError` where there is none."""
    found = path.stat()
    return str(path), found.st_ino, found.st_size, found.st_mtime_ns


def is_as_stamped(stamp: Stamp) -> bool:
    """Whether nothing was written to a file since."""
    try:
        return stamp_of(Path(stamp[0])) == stamp
    except OSError:
        return False


def file_digest(path: Path) -> str:
    """SHA-256 of a file's content, 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
