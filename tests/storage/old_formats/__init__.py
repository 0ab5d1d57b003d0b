"""Stores that older releases made; see README.md."""

from __future__ import annotations

import tarfile
from pathlib import Path

FORMAT_2 = Path(__file__).with_name("format-2.tar.xz")
FORMAT_3 = Path(__file__).with_name("format-3.tar.xz")
SCHEMA_2 = Path(__file__).with_name("schema-2.tar.xz")


def unpack(archive: Path, folder: Path) -> Path:
    """Put the stores of an archive into a folder, and return it."""
    with tarfile.open(archive) as stores:
        stores.extractall(folder, filter="data")
    return folder
