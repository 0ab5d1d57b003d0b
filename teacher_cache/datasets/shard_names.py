"""Files that hold many images each, and what their names say of the split: train-00000-of-00001.parquet, val-03.tar."""

from __future__ import annotations

import re
from pathlib import Path

from ground.errors import DatasetMissing
from ground.listing import is_hidden
from teacher_cache.datasets.photographs import split_called

_WORD = re.compile(r"[A-Za-z]+")


def shards_in(root: Path, *suffixes: str) -> list[str]:
    """Files with one of the suffixes in `root` or a folder of it, as paths relative to it, in the order of names.

    Raises:
        DatasetMissing: `root` is no folder.
    """
    if not root.is_dir():
        raise DatasetMissing(f"{root} is not a folder; name the folder that the files are in")
    folders = [root, *(entry for entry in root.iterdir() if entry.is_dir() and not is_hidden(entry.name))]
    files = (entry for folder in folders for entry in folder.iterdir() if not is_hidden(entry.name))
    return sorted(file.relative_to(root).as_posix() for file in files if file.name.lower().endswith(suffixes))


def split_of(name: str) -> str | None:
    """The split that the first word of that kind in a file's name, or in its folder's, says; None where none does."""
    for part in reversed(name.split("/")):
        for word in _WORD.findall(part):
            if split := split_called(word):
                return split
    return None
