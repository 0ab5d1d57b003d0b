"""The table of data sets: what a `--dataset` can name."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from ground.errors import InvalidInput, UnknownName
from teacher_cache.datasets.base import ImageDataset
from teacher_cache.datasets.digits import open_digits
from teacher_cache.datasets.image_folder import open_image_folder
from teacher_cache.datasets.torchvision_sets import open_cifar10, open_cifar100, open_stanford_cars


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What the user asked for, beside the name.

    Args:
        path: what follows the colon in the spec; empty where the data set takes no path.
        data_root: where named data sets lie.
        image_size: side of the base images, where the user may choose it.
        download: fetch the data set if it is absent and can be fetched.
        interpolation: of `ground.geometry.INTERPOLATIONS`, where images are resized to that side.
        squares: of `ground.geometry.FIT_SHAPES`, how squares are made of them.
    """

    path: str
    data_root: Path
    image_size: int | None
    download: bool
    interpolation: str = "bilinear"
    squares: str = "centre"


@dataclass(frozen=True, slots=True)
class Opener:
    """How a name is opened, and whether the user says where it is and how large its images get."""

    open: Callable[[Request], ImageDataset]
    is_folder: bool = False


def _in_root(name: str, open_it: Callable[[Request], ImageDataset]) -> Opener:
    """For a data set that is found below the root of all."""

    def opened(request: Request) -> ImageDataset:
        return replace(open_it(request), options={"dataset": name, "data_root": os.path.abspath(request.data_root)})

    return Opener(opened)


def _open_folder(request: Request) -> ImageDataset:
    return open_image_folder(request.path, request.image_size, request.interpolation, request.squares)


DATASETS: dict[str, Opener] = {
    "cifar10": _in_root("cifar10", lambda request: open_cifar10(request.data_root, download=request.download)),
    "cifar100": _in_root("cifar100", lambda request: open_cifar100(request.data_root, download=request.download)),
    "stanford_cars": _in_root("stanford_cars", lambda request: open_stanford_cars(request.data_root)),
    "digits": Opener(lambda request: open_digits()),
    "imagefolder": Opener(_open_folder, is_folder=True),
}


def is_folder(spec: str) -> bool:
    """Whether a data set, or its name, is a folder of the user's, which a path leads to."""
    opener = DATASETS.get(spec.partition(":")[0])
    return opener is not None and opener.is_folder


def open_dataset(
    spec: str,
    *,
    data_root: Path | None = None,
    image_size: int | None = None,
    download: bool = False,
    interpolation: str = "bilinear",
    squares: str = "centre",
) -> ImageDataset:
    """Open a data set by name; no image is decoded yet.

    Args:
        spec: `cifar10`, `cifar100`, `stanford_cars`, `digits` or `imagefolder:PATH`.
        data_root: where the named sets lie; by default the folder in CKD_DATA, else ./data. A PATH and the
            digits do not depend on it.
        image_size: side of the base images in pixels; only an image folder takes it.
        download: fetch CIFAR if it is absent; the other sets cannot be fetched.
        interpolation: of the images of a folder to that side.
        squares: how squares are made of them, of `ground.geometry.FIT_SHAPES`.

    Raises:
        UnknownName: no data set is called that.
        DatasetMissing: it is not where it was looked for; the message says how to get it.
        InvalidInput: it is there and cannot be used, or an argument does not suit it.
    """
    name, _, path = spec.partition(":")
    opener = DATASETS.get(name)
    if opener is None:
        known = [f"{known}:PATH" if DATASETS[known].is_folder else known for known in DATASETS]
        raise UnknownName("dataset", name, known)
    if opener.is_folder and not path:
        raise InvalidInput(f"{name} needs a folder; write {name}:PATH")
    if path and not opener.is_folder:
        raise InvalidInput(f"{name} takes no path, got {spec!r}; name its folder with --data-root")
    if image_size is not None and not opener.is_folder:
        raise InvalidInput(f"{name} has images of a fixed size, got image size {image_size}; leave it out")
    root = Path(os.environ.get("CKD_DATA") or "data") if data_root is None else data_root
    # Unlike `Path.expanduser` this leaves a home that is not known as it is written.
    root = Path(os.path.expanduser(root))
    return opener.open(
        Request(
            path=path,
            data_root=root,
            image_size=image_size,
            download=download,
            interpolation=interpolation,
            squares=squares,
        )
    )
