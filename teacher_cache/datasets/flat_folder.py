"""Image folders without splits: only CLASS/*.jpg, which `--split` divides, or lists beside the classes do.

A list is `train.txt`, and `test.txt` or `val.txt`: a path a line, relative to the folder, and after it the label where
that is not the class folder's name. Images in a folder `unlabelled` are training images without a label.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ground.errors import InvalidInput
from ground.listing import UNLABELLED_FOLDERS, LeftOut, class_folders, images_below, unlabelled_images
from teacher_cache.datasets.base import ImageDataset
from teacher_cache.datasets.division import Division
from teacher_cache.datasets.layouts import FLAT, LAYOUT, has_splits
from teacher_cache.datasets.named_files import NamedFiles
from teacher_cache.datasets.photographs import Entry, Listing, as_dataset, label_of, split_called
from teacher_cache.datasets.request import Request

_TRAIN_LIST = "train.txt"
_TEST_LISTS = ("test.txt", "val.txt", "valid.txt", "validation.txt")


def is_flat(given: Path, division: Division | None) -> bool:
    """Whether a folder is one of classes that can be divided, by a division or by its lists."""
    if not given.is_dir() or has_splits(given):
        return False
    return division is not None or bool(_lists(given))


def open_flat_folder(root: Path, request: Request) -> ImageDataset:
    """Open the images below `root`, and say in the log what was listed.

    Raises:
        DatasetMissing: there is one list and not the other.
        InvalidInput: the lists, or the classes, cannot be used.
    """
    left_out, lists = LeftOut(), _lists(root)
    if lists and request.division is not None:
        raise InvalidInput(f"{root} has {' and '.join(lists)}, which say the splits; leave out --split")
    entries = list(_listed_entries(root, lists) if lists else _entries(root, left_out))
    listing = Listing(
        name=f"imagefolder:{root.name}",
        place=root,
        root=root,
        entries=entries,
        remedy="replace or delete",
        hint=f"{LAYOUT}; {FLAT}",
        left_out=left_out,
        # As those of folders with splits, unless a list has labels of its own.
        by_text=all(entry.label in (None, entry.name.partition("/")[0]) for entry in entries),
    )
    return as_dataset(listing, request)


def _lists(root: Path) -> list[str]:
    """The lists that are there; none unless the training images' is."""
    names = [_TRAIN_LIST, *_TEST_LISTS]
    return [name for name in names if (root / name).is_file()] if (root / _TRAIN_LIST).is_file() else []


def _entries(root: Path, left_out: LeftOut) -> Iterator[Entry]:
    """Every image, of any split."""
    for name in class_folders(root, "", left_out):
        if name not in UNLABELLED_FOLDERS:
            for file in images_below(root, name, left_out):
                yield Entry(file, name, None)
    for file in unlabelled_images(root, left_out):
        yield Entry(file, None, None)


def _listed_entries(root: Path, lists: list[str]) -> Iterator[Entry]:
    """What lists name, in an order that does not depend on theirs."""
    named, entries = NamedFiles(root), list[Entry]()
    for file_name in lists:
        split = split_called(Path(file_name).stem)
        for line, text in _lines(root / file_name):
            path, label = _columns(root, text)
            kept = named.require(path, line)
            entries.append(Entry(kept, _class_folder(kept, line) if label is None else label_of(label), split))
    yield from sorted(entries, key=lambda entry: entry.name)


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """(where it is, text) of each line that is not empty."""
    for number, text in enumerate(path.read_text(encoding="utf-8-sig", errors="surrogateescape").split("\n"), 1):
        if text.strip():
            yield f"line {number} of {path}", text.strip()


def _columns(root: Path, text: str) -> tuple[str, str | None]:
    """Path and label; a path may hold spaces."""
    parts = text.rsplit(maxsplit=1)
    if len(parts) == 1 or "\0" in text or (root / text).is_file():
        return text, None
    return parts[0], parts[1]


def _class_folder(name: str, line: str) -> str | None:
    folder, slash, _ = name.partition("/")
    if not slash:
        raise InvalidInput(f"{line} names {name}, which is in no class folder; write its label after it")
    return None if folder in UNLABELLED_FOLDERS else folder
