"""From images that were listed anywhere, each with its class and its split as far as they are known, to a data set.

Folders without splits, tables and archives say these in their own ways; what follows is the same for all: which split
is reported on, in which order classes are, and what is refused. Base images are fitted as those of image folders.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ground.errors import DatasetMissing, InvalidInput
from ground.fitting import fitted
from ground.geometry import ViewGeometry
from ground.listing import LeftOut, listed
from ground.terminal import plain
from storage.schema import UNLABELLED
from teacher_cache.datasets.base import (
    IMAGENET_NORMALISATION,
    ArchivedSplit,
    EncodedSplit,
    FileSplit,
    ImageDataset,
)
from teacher_cache.datasets.doubts import doubts
from teacher_cache.datasets.known_files import KnownFiles
from teacher_cache.datasets.request import Request

DEFAULT_IMAGE_SIZE = 32
TRAIN, TEST, VAL = "train", "test", "val"
# Which split accuracy is reported on: the first that has labels.
_HELD_OUT = (TEST, VAL)
_SPELLINGS = {
    **dict.fromkeys(("train", "training"), TRAIN),
    **dict.fromkeys(("test", "testing"), TEST),
    **dict.fromkeys(("val", "valid", "validation"), VAL),
}

log = logging.getLogger(__name__)


class Entry(NamedTuple):
    """One image that was listed.

    Args:
        name: its path within the data set.
        label: its class; None where it has none.
        split: `TRAIN`, `TEST` or `VAL`; None where nothing says.
    """

    name: str
    label: str | None
    split: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """What was listed of a data set.

    Args:
        name: of the data set.
        place: the file or folder that was named, as a full path.
        entries: the images, in an order that the data alone decide.
        remedy: see `EncodedSplit`.
        hint: what such a data set looks like, for whoever has none.
        root: folder of images that are files; None for others.
        fetch: of images that are not files, see `ArchivedSplit`.
        classes: of all labels in their order, where the data say so; None for those of the training images.
        by_text: classes that are numbers are in text order, as folders' names are, and not in that of their values.
        left_out: what was not listed.
    """

    name: str
    place: Path
    entries: Sequence[Entry]
    remedy: str
    hint: str
    root: Path | None = None
    fetch: Callable[[str], bytes] | None = None
    classes: tuple[str, ...] | None = None
    by_text: bool = False
    left_out: LeftOut = field(default_factory=LeftOut)


def split_called(word: str) -> str | None:
    """The split that a word means, in any spelling and case."""
    return _SPELLINGS.get(word.lower())


def label_of(text: str) -> str | None:
    """The label that a text says; None for no text, and for -1, as data sets write that there is none."""
    return None if text.strip() in ("", str(UNLABELLED)) else text.strip()


def place_of(request: Request) -> Path:
    """The file or folder that the user named, as a full path; `~` stands for the user's home."""
    return Path(os.path.abspath(os.path.expanduser(request.path)))


def as_dataset(listing: Listing, request: Request) -> ImageDataset:
    """The data set that was listed, said in the log.

    Raises:
        DatasetMissing: it has no images, or none for training or test.
        InvalidInput: labels do not fit, or splits are asked for that it has already.
    """
    train, test = _splits(listing, request)
    classes = _classes(listing, train)
    _require_known(listing, classes, [*train, *test])
    label_of: dict[str | None, int] = {name: label for label, name in enumerate(classes)} | {None: UNLABELLED}
    size = require_size(request.image_size)
    known = KnownFiles(listing.root or listing.place, "files" if listing.root else "members", request.rehash)
    shared: dict[str, Any] = {"image_size": size, "fit": partial(fitted, fit=request.fit)}
    shared |= {"remedy": listing.remedy, "known": known}

    def split_of(entries: Sequence[Entry]) -> EncodedSplit:
        files = [entry.name for entry in entries]
        labels = np.array([label_of[entry.label] for entry in entries], dtype=np.int64)
        if listing.root is not None:
            return FileSplit(root=listing.root, files=files, labels=labels, **shared)
        assert listing.fetch is not None
        return ArchivedSplit(fetch=listing.fetch, files=files, labels=labels, **shared)

    options = {"dataset": f"{listing.name.partition(':')[0]}:{listing.place}"}
    options |= {} if request.image_size is None else {"image_size": str(request.image_size)}
    options |= {} if request.division is None else request.division.options
    dataset = ImageDataset(
        name=listing.name,
        classes=classes,
        train=split_of(train),
        test=split_of(test),
        geometry=ViewGeometry(image_size=size, crop_size=size, padding=size // 8),
        normalisation=IMAGENET_NORMALISATION,
        squares=request.own_squares,
        options=options,
    )
    how = "" if request.division is None else f" by {request.division.split} with seed {request.division.seed}"
    return said(dataset, how, listing.left_out, listing.place if listing.root is None else listing.root)


def said(dataset: ImageDataset, how: str, left_out: LeftOut, root: Path) -> ImageDataset:
    """The same with a line of what was listed, which goes to the log with what may not be meant.

    Args:
        how: where the splits are or how they were made, in words that follow "test images".
        root: the folder that a list of classes may lie in.
    """
    labels = dataset.train.labels
    counts = np.bincount(labels[labels != UNLABELLED], minlength=dataset.num_classes)
    unlabelled = int((labels == UNLABELLED).sum())
    line = (
        f"{dataset.name}: {len(dataset.train)} training and {len(dataset.test)} test images{how}, "
        f"{dataset.num_classes} classes of {counts.min()} to {counts.max()} training images"
    )
    line += f", {unlabelled} training images without a label" if unlabelled else ""
    line += f"; {left_out.said()}" if left_out.names else ""
    dataset = replace(dataset, listing=plain(line))
    for text in [line, *doubts(dataset, root)]:
        log.info("%s", plain(text))
    return dataset


def require_size(asked: int | None) -> int:
    """The side of base images in pixels; raises `InvalidInput` if it is none."""
    size = DEFAULT_IMAGE_SIZE if asked is None else asked
    if size < 1:
        raise InvalidInput(f"image size {size} is not positive; give the side of the images in pixels")
    return size


def _splits(listing: Listing, request: Request) -> tuple[list[Entry], list[Entry]]:
    """Training and test images; those without a label are training images, whatever the division."""
    labelled = [entry for entry in listing.entries if entry.label is not None]
    unlabelled = [entry for entry in listing.entries if entry.label is None and entry.split in (TRAIN, None)]
    for entry in listing.entries:
        if entry.label is None and entry.split in _HELD_OUT:
            listing.left_out.add("test images without a label", entry.name)
    held_out = next((split for split in _HELD_OUT if any(entry.split == split for entry in labelled)), None)
    if request.division is not None:
        if held_out is not None:
            raise InvalidInput(f"{listing.place} has its own splits; leave out --split")
        train, test = _divided(labelled, request)
        if not test:
            raise InvalidInput(f"--split {request.division.split} leaves no test images of {listing.place}; give more")
        return train + unlabelled, test
    if held_out is None or any(entry.split is None for entry in labelled):
        lack = "no test images" if held_out is None else "images of which nothing says the split"
        raise DatasetMissing(
            f"{listing.place} has {lack}; give --split 0.8/0.2 to divide its images, or: {listing.hint}"
        )
    for entry in labelled:
        if entry.split not in (TRAIN, held_out):
            listing.left_out.add(f"{entry.split} images, where {held_out} images are", entry.name)
    train = [entry for entry in labelled if entry.split == TRAIN]
    return train + unlabelled, [entry for entry in labelled if entry.split == held_out]


def _divided(entries: list[Entry], request: Request) -> tuple[list[Entry], list[Entry]]:
    assert request.division is not None
    number = {label: place for place, label in enumerate(sorted({entry.label or "" for entry in entries}))}
    labels = np.array([number[entry.label or ""] for entry in entries], dtype=np.int64)
    is_test = request.division.is_test([entry.name for entry in entries], labels)
    train = [entry for entry, held_out in zip(entries, is_test, strict=True) if not held_out]
    return train, [entry for entry, held_out in zip(entries, is_test, strict=True) if held_out]


def _classes(listing: Listing, train: Iterable[Entry]) -> tuple[str, ...]:
    """Classes in their order: as the data say, by value where all are numbers, else as text."""
    found = {entry.label for entry in train if entry.label is not None}
    if len(found) < 2:
        raise InvalidInput(
            f"the training images of {listing.place} have {listed(sorted(found)) or 'no label'}, and a data set has at "
            f"least two classes; {listing.hint}"
        )
    if listing.classes is not None:
        return listing.classes
    if not listing.by_text and all(name.isascii() and name.isdecimal() for name in found):
        return tuple(sorted(found, key=lambda name: (int(name), name)))
    return tuple(sorted(found))


def _require_known(listing: Listing, classes: tuple[str, ...], entries: Iterable[Entry]) -> None:
    if unknown := sorted({entry.label for entry in entries if entry.label is not None} - set(classes)):
        raise InvalidInput(
            f"test images of {listing.place} have {listed(unknown)}, which no training image has; add some, or "
            "remove them"
        )
