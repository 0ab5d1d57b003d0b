"""What a file or folder is that stands where a store, or a part of one, was looked for: for messages."""

from __future__ import annotations

import os
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

from ground.errors import store_command

_MOST_NAMES = 3
_MOST_ENTRIES = 1000
_IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm")
_BEGINNINGS = {
    b"\x89HDF\r\n\x1a\n": "an HDF5 file",
    b"SQLite format 3\0": "an SQLite database",
    b"PK\x03\x04": "a zip archive",
    b"\x1f\x8b": "a gzip archive",
}
# File in a folder -> what the folder is.
_FOLDERS = {
    "manifest.json": "the folder of a store",
    "run.json": "the folder of a training run",
    "zarr.json": "a Zarr folder",
    ".zgroup": "a Zarr folder of version 2",
    ".zarray": "a Zarr array of version 2",
}


def what_it_is(path: Path) -> str:
    """In a few words, from names and first bytes alone; links are followed by nobody."""
    if path.is_symlink():
        return "a link"
    if path.is_dir():
        return _folder(path)
    if not path.is_file():
        return "a pipe, a socket or a device" if path.exists() else "nothing"
    try:
        with path.open("rb") as file:
            first = file.read(16)
    except OSError as error:
        return f"a file that cannot be read ({error.strerror})"
    if not first:
        return "an empty file"
    return next((what for begin, what in _BEGINNINGS.items() if first.startswith(begin)), "a file of another kind")


def no_store(folder: Path, file_name: str) -> str:
    """That there is no store in a folder, what there is instead, and what to do."""
    found = what_it_is(folder)
    if found in ("nothing", "an empty folder", "the folder of a store"):
        build = store_command("build", folder, teacher="NAME", dataset="DATASET", n="N")
        return f"there is no store at {folder} (no {file_name}); build one with: {build}"
    if (folder.parent / file_name).is_file():
        return f"there is no store at {folder}: it is a part of the store at {folder.parent}; give that folder"
    inside = [] if not folder.is_dir() else [item.name for item in _items(folder) if (item / file_name).is_file()]
    if inside:
        return f"there is no store at {folder}, but in folders below it ({some(inside)}); give one of those"
    return f"there is no store at {folder} (no {file_name}): it is {found}; give the folder of a store"


def some(names: Iterable[str]) -> str:
    """The first few of some names, as printable text."""
    found = list(islice(names, _MOST_NAMES + 1))
    shown = ", ".join(name if name.isprintable() else ascii(name) for name in found[:_MOST_NAMES])
    return shown if len(found) <= _MOST_NAMES else f"{shown}, ..."


def _folder(path: Path) -> str:
    for name, what in _FOLDERS.items():
        if (path / name).is_file():
            return what
    items = _items(path)
    below = [item for folder in items[:_MOST_NAMES] if folder.is_dir() for item in _items(folder)]
    if any(item.suffix.lower() in _IMAGES for item in [*items, *below]):
        return "a folder of images"
    return f"a folder that holds {some(item.name for item in items)}" if items else "an empty folder"


def _items(folder: Path) -> list[Path]:
    """The first entries of a folder, sorted; none where it cannot be listed."""
    try:
        with os.scandir(folder) as entries:
            return sorted(Path(entry.path) for entry in islice(entries, _MOST_ENTRIES))
    except OSError:
        return []
