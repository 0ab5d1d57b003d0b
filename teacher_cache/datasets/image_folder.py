"""The user's own images: a folder with train/ and test/ (or val/), each with one folder per class.

Files are listed by torchvision's `ImageFolder` rules: what has an image's extension counts, at any depth
below a class folder, but for what `listing` leaves out. Classes are the folder names in train/, sorted.
`layouts` says which other layouts are read, `flat_folder` reads those without splits. Images in a folder
`unlabelled` beside the splits are training images without a label.
"""

from __future__ import annotations

from collections.abc import Container, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ground.errors import InvalidInput
from ground.fitting import fitted
from ground.geometry import ViewGeometry
from ground.listing import NOT_LISTED, LeftOut, class_folders, images_below, listed, unlabelled_images
from storage.schema import UNLABELLED
from teacher_cache.datasets.base import IMAGENET_NORMALISATION, FileSplit, ImageDataset
from teacher_cache.datasets.flat_folder import is_flat, open_flat_folder
from teacher_cache.datasets.known_files import KnownFiles
from teacher_cache.datasets.layouts import LAYOUT, Layout, annotated_images, find_layout
from teacher_cache.datasets.photographs import place_of, require_size, said
from teacher_cache.datasets.request import Request


def open_image_folder(request: Request) -> ImageDataset:
    """Open the images below a folder, and say in the log what was listed.

    Raises:
        DatasetMissing: no splits are there.
        InvalidInput: the classes of the two splits do not fit, are fewer than two, or a name is not a line of text.
    """
    size = require_size(request.image_size)
    given = place_of(request)
    if is_flat(given, request.division):
        return open_flat_folder(given, request)
    layout = find_layout(given)
    if request.division is not None:
        raise InvalidInput(f"{layout.root} has its own splits, {layout.train}/ and {layout.test}/; leave out --split")
    root, left_out = layout.root, LeftOut()
    classes = class_folders(root, layout.train, left_out)
    _require_classes(root, layout.train, classes)
    samples = _samples(root, layout.train, classes, classes, left_out)
    filled = {label for _, label in samples}
    empty = [f"{layout.train}/{name}" for label, name in enumerate(classes) if label not in filled]
    if empty:
        raise InvalidInput(f"no images in {listed(empty)} of {root}; add some or remove it{_because(left_out)}")
    samples += [(file, UNLABELLED) for file in unlabelled_images(root, left_out)]
    made = partial(
        FileSplit,
        root=root,
        image_size=size,
        fit=partial(fitted, fit=request.fit),
        remedy="replace or delete",
        known=KnownFiles(root, rehash=request.rehash),
    )
    train, test = (made(**_listed(each)) for each in (samples, _test_samples(layout, classes, left_out)))
    if not len(test):
        raise InvalidInput(f"no images in {root / layout.test}; {LAYOUT}{_because(left_out)}")
    asked = {} if request.image_size is None else {"image_size": str(request.image_size)}
    dataset = ImageDataset(
        name=f"imagefolder:{root.name}",
        classes=classes,
        train=train,
        test=test,
        geometry=ViewGeometry(image_size=size, crop_size=size, padding=size // 8),
        normalisation=IMAGENET_NORMALISATION,
        squares=request.own_squares,
        options={"dataset": f"imagefolder:{root}"} | asked,
    )
    where = f" in {layout.train}/ and {layout.test}/" + (" with val_annotations.txt" if layout.is_annotated else "")
    return said(dataset, where, left_out, root)


def _require_classes(root: Path, train: str, classes: tuple[str, ...]) -> None:
    if not classes:
        raise InvalidInput(f"{root / train} has no class folders; {LAYOUT}")
    if len(classes) < 2:
        raise InvalidInput(
            f"{root / train} has one class folder, {classes[0]}, and a data set has at least two classes; {LAYOUT}"
        )
    place_of: dict[Path, str] = {}
    for name in classes:
        place = (root / train / name).resolve()
        if place in place_of:
            raise InvalidInput(
                f"{train}/{place_of[place]} and {train}/{name} of {root} are links to the same folder, "
                "which would give its images two labels; remove one"
            )
        place_of[place] = name


def _samples(
    root: Path, split: str, classes: tuple[str, ...], present: Container[str], left_out: LeftOut
) -> list[tuple[str, int]]:
    """(path, label) of each image of a split, in the order of the classes."""
    return [
        (file, label)
        for label, name in enumerate(classes)
        if name in present
        for file in images_below(root, f"{split}/{name}", left_out)
    ]


def _test_samples(layout: Layout, classes: tuple[str, ...], left_out: LeftOut) -> list[tuple[str, int]]:
    root, split = layout.root, layout.test
    if layout.is_annotated:
        return _annotated_samples(layout, classes, left_out)
    present = class_folders(root, split, left_out)
    _require_known(layout, present, classes)
    return _samples(root, split, classes, present, left_out)


def _annotated_samples(layout: Layout, classes: tuple[str, ...], left_out: LeftOut) -> list[tuple[str, int]]:
    """What Tiny ImageNet's list names; images that it does not name are left out."""
    class_of = dict(annotated_images(layout.root, layout.test))
    for file in images_below(layout.root, f"{layout.test}/images", left_out):
        if file not in class_of:
            left_out.add(NOT_LISTED, file)
    _require_known(layout, class_of.values(), classes)
    label_of = {name: label for label, name in enumerate(classes)}
    return [(file, label_of[name]) for file, name in class_of.items()]


def _require_known(layout: Layout, present: Iterable[str], classes: tuple[str, ...]) -> None:
    if unknown := sorted(set(present) - set(classes)):
        raise InvalidInput(
            f"{layout.root / layout.test} has {listed(unknown)}, which {layout.train}/ lacks; "
            f"add the same folder to {layout.train}/ or remove it"
        )


def _listed(samples: list[tuple[str, int]]) -> dict[str, Any]:
    """Files and labels of a split."""
    return {
        "files": [file for file, _ in samples],
        "labels": np.array([label for _, label in samples], dtype=np.int64),
    }


def _because(left_out: LeftOut) -> str:
    return f" ({left_out.said()})" if left_out.names else ""
