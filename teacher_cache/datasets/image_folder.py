"""The user's own images: a folder with train/ and test/ (or val/), each with one folder per class.

Files are listed by torchvision's `ImageFolder` rules: what has an image's extension counts, at any depth
below a class folder; anything else is ignored. Classes are the folder names in train/, sorted.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from ground.errors import DatasetMissing, InvalidInput
from ground.geometry import ViewGeometry
from teacher_cache.datasets.base import IMAGENET_NORMALISATION, FileSplit, ImageDataset
from teacher_cache.datasets.decoding import require_pixels

DEFAULT_IMAGE_SIZE = 32
_LAYOUT = "an image folder has train/CLASS/*.jpg and test/CLASS/*.jpg (or val/)"


def open_image_folder(path: str, image_size: int | None = None) -> ImageDataset:
    """Open the images below `path`.

    Args:
        path: the folder; `~` stands for the user's home.
        image_size: side of the base images in pixels, by default 32.
    """
    size = DEFAULT_IMAGE_SIZE if image_size is None else image_size
    if size < 1:
        raise InvalidInput(f"image size {size} is not positive; give the side of the images in pixels")
    root = Path(os.path.abspath(os.path.expanduser(path)))
    if not root.is_dir():
        raise DatasetMissing(f"{root} is not a folder; {_LAYOUT}")
    if not (root / "train").is_dir():
        raise DatasetMissing(f"{root} has no train/; {_LAYOUT}")
    test_name = next((name for name in ("test", "val") if (root / name).is_dir()), None)
    if test_name is None:
        raise DatasetMissing(f"{root} has neither test/ nor val/; {_LAYOUT}")

    classes = _class_folders(root / "train")
    if not classes:
        raise InvalidInput(f"{root / 'train'} has no class folders; {_LAYOUT}")
    unknown = sorted(set(_class_folders(root / test_name)) - set(classes))
    if unknown:
        raise InvalidInput(
            f"{root / test_name} has {_listed(unknown)}, which train/ lacks; add the same folder to train/ or remove it"
        )
    train = _list_split(root, "train", classes, size)
    empty = [name for label, name in enumerate(classes) if not (train.labels == label).any()]
    if empty:
        raise InvalidInput(
            f"no images in {_listed(f'train/{name}' for name in empty)} of {root}; add some or remove it"
        )
    test = _list_split(root, test_name, classes, size)
    if not len(test):
        raise InvalidInput(f"no images in {root / test_name}; {_LAYOUT}")
    return ImageDataset(
        name=f"imagefolder:{root.name}",
        classes=classes,
        train=train,
        test=test,
        geometry=ViewGeometry(image_size=size, crop_size=size, padding=size // 8),
        normalisation=IMAGENET_NORMALISATION,
    )


def fit_to_square(image: Image.Image, size: int) -> Image.Image:
    """Shorter side to `size`, then the central square; an image of that size already keeps its pixels.

    Rounding follows torchvision's `Resize(size)` and `CenterCrop(size)`.
    """
    width, height = image.size
    if min(width, height) != size:
        longer = int(size * max(width, height) / min(width, height))
        # A strip of one pixel grows by `size` both ways.
        require_pixels(size, longer)
        new_size = (size, longer) if width <= height else (longer, size)
        # Pillow's bilinear filter widens when it shrinks an image, which is what "antialias" means.
        image = image.resize(new_size, Image.Resampling.BILINEAR)
        width, height = new_size
    left, top = round((width - size) / 2), round((height - size) / 2)
    return image.crop((left, top, left + size, top + size))


def _class_folders(folder: Path) -> tuple[str, ...]:
    return tuple(sorted(entry.name for entry in folder.iterdir() if entry.is_dir()))


def _list_split(root: Path, split: str, classes: tuple[str, ...], image_size: int) -> FileSplit:
    from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset

    label_of = {name: label for label, name in enumerate(classes)}
    samples = make_dataset(str(root / split), label_of, extensions=IMG_EXTENSIONS, allow_empty=True)
    return FileSplit(
        root=root,
        files=[Path(file).relative_to(root).as_posix() for file, _ in samples],
        labels=np.array([label for _, label in samples], dtype=np.int64),
        image_size=image_size,
        fit=fit_to_square,
        remedy="replace or delete",
    )


def _listed(names: Iterable[str]) -> str:
    """Up to three names, and how many more there are."""
    every = list(names)
    shown = ", ".join(every[:3])
    return shown if len(every) <= 3 else f"{shown} and {len(every) - 3} more"
