"""The user's own images: a folder with train/ and test/ (or val/), each with one folder per class.

Files are listed by torchvision's `ImageFolder` rules: what has an image's extension counts, at any depth
below a class folder, but for what `listing` leaves out. Classes are the folder names in train/, sorted.
`layouts` says which other layouts are read.
"""

from __future__ import annotations

import logging
import os
import unicodedata
from collections.abc import Callable, Container, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from ground.errors import InvalidInput
from ground.fitting import fitted
from ground.geometry import Fit, ViewGeometry
from ground.listing import NOT_LISTED, LeftOut, class_folders, images_below
from ground.terminal import plain
from teacher_cache.datasets.base import IMAGENET_NORMALISATION, FileSplit, ImageDataset
from teacher_cache.datasets.layouts import LAYOUT, Layout, annotated_images, find_layout

DEFAULT_IMAGE_SIZE = 32
log = logging.getLogger(__name__)


# A list of classes that some archives have beside their splits.
CLASS_LIST = "classes.txt"
_MOST_LIST_BYTES = 1 << 20


def open_image_folder(
    path: str, image_size: int | None = None, interpolation: str = "bilinear", squares: str = "centre"
) -> ImageDataset:
    """Open the images below `path`, and say in the log what was listed.

    Args:
        path: the folder; `~` stands for the user's home.
        image_size: side of the base images in pixels, by default 32.
        interpolation: of the resizing to that side; of `ground.geometry.INTERPOLATIONS`.
        squares: how squares are made of the images; of `ground.geometry.FIT_SHAPES`.

    Raises:
        DatasetMissing: no splits are there.
        InvalidInput: the classes of the two splits do not fit, are fewer than two, or a name is not a line of text.
    """
    size = DEFAULT_IMAGE_SIZE if image_size is None else image_size
    if size < 1:
        raise InvalidInput(f"image size {size} is not positive; give the side of the images in pixels")
    layout = find_layout(Path(os.path.abspath(os.path.expanduser(path))))
    root, left_out = layout.root, LeftOut()
    classes = class_folders(root, layout.train, left_out)
    _require_classes(root, layout.train, classes)
    samples = _samples(root, layout.train, classes, classes, left_out)
    filled = {label for _, label in samples}
    empty = [f"{layout.train}/{name}" for label, name in enumerate(classes) if label not in filled]
    if empty:
        raise InvalidInput(f"no images in {_listed(empty)} of {root}; add some or remove it{_because(left_out)}")
    fit = partial(fitted, fit=Fit(shape=squares, interpolation=interpolation))
    train = _split(root, samples, size, fit)
    test = _split(root, _test_samples(layout, classes, left_out), size, fit)
    if not len(test):
        raise InvalidInput(f"no images in {root / layout.test}; {LAYOUT}{_because(left_out)}")
    dataset = ImageDataset(
        name=f"imagefolder:{root.name}",
        classes=classes,
        train=train,
        test=test,
        geometry=ViewGeometry(image_size=size, crop_size=size, padding=size // 8),
        normalisation=IMAGENET_NORMALISATION,
        squares=None if squares == Fit().shape else squares,
        options={"dataset": f"imagefolder:{root}"} | ({} if image_size is None else {"image_size": str(image_size)}),
    )
    dataset = replace(dataset, listing=plain(_listing(dataset, layout, left_out)))
    for line in [dataset.listing, *map(plain, _doubts(dataset, _listed_classes(root)))]:
        log.info("%s", line)
    return dataset


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
            f"{layout.root / layout.test} has {_listed(unknown)}, which {layout.train}/ lacks; "
            f"add the same folder to {layout.train}/ or remove it"
        )


def _split(
    root: Path, samples: list[tuple[str, int]], image_size: int, fit: Callable[[Image.Image, int], Image.Image]
) -> FileSplit:
    return FileSplit(
        root=root,
        files=[file for file, _ in samples],
        labels=np.array([label for _, label in samples], dtype=np.int64),
        image_size=image_size,
        fit=fit,
        remedy="replace or delete",
    )


def _listing(dataset: ImageDataset, layout: Layout, left_out: LeftOut) -> str:
    """What was listed, in one line."""
    counts = np.bincount(dataset.train.labels, minlength=dataset.num_classes)
    where = f"{layout.train}/ and {layout.test}/" + (" with val_annotations.txt" if layout.is_annotated else "")
    line = (
        f"{dataset.name}: {len(dataset.train)} training and {len(dataset.test)} test images in {where}, "
        f"{dataset.num_classes} classes of {counts.min()} to {counts.max()} training images"
    )
    return f"{line}; {left_out.said()}" if left_out.names else line


def _listed_classes(root: Path) -> list[str]:
    """The classes that a list beside the splits names, in its order; none where there is no such list."""
    path = root / CLASS_LIST
    if not path.is_file() or path.stat().st_size > _MOST_LIST_BYTES:
        return []
    return [line.strip() for line in path.read_text(errors="replace").splitlines() if line.strip()]


def _doubts(dataset: ImageDataset, listed: list[str]) -> list[str]:
    """What may not be meant, though it can be used as it is.

    Args:
        listed: class names in the order of a list beside the splits.
    """
    doubts, classes = [], dataset.classes
    if listed and listed != list(classes):
        how = "in another order than" if sorted(listed) == list(classes) else "that are not"
        doubts.append(
            f"{CLASS_LIST} names classes {how} the folders' ({', '.join(listed[:4])}, ... there, "
            f"{', '.join(classes[:4])}, ... here); labels follow the folders, and a teacher that was trained by that "
            "list answers for others"
        )
    if all(name.isdecimal() for name in classes) and list(classes) != sorted(classes, key=int):
        doubts.append(
            f"class names are numbers and are taken as text: {', '.join(classes[:4])}, ...; a teacher that was trained "
            "with them in the order of their values needs names of one width (01, 02, 10)"
        )
    absent = [name for label, name in enumerate(classes) if not (dataset.test.labels == label).any()]
    if absent:
        doubts.append(f"no test images of {_listed(absent)}: accuracy says nothing of them")
    same: dict[str, list[str]] = {}
    for name in classes:
        same.setdefault(unicodedata.normalize("NFC", name).casefold(), []).append(name)
    doubts += [
        f"classes {', '.join(map(ascii, names))} differ only by case or by how letters are composed; are they one?"
        for names in same.values()
        if len(names) > 1
    ]
    return doubts


def _because(left_out: LeftOut) -> str:
    return f" ({left_out.said()})" if left_out.names else ""


def _listed(names: Iterable[str]) -> str:
    """Up to three names, and how many more there are."""
    every = list(names)
    shown = ", ".join(every[:3])
    return shown if len(every) <= 3 else f"{shown} and {len(every) - 3} more"
