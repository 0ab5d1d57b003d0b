"""The table of data sets: what a `--dataset` can name."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from ground.errors import InvalidInput, UnknownName
from teacher_cache.datasets.base import ImageDataset
from teacher_cache.datasets.digits import open_digits
from teacher_cache.datasets.division import Division
from teacher_cache.datasets.image_folder import open_image_folder
from teacher_cache.datasets.parquet_files import open_parquet
from teacher_cache.datasets.request import Request
from teacher_cache.datasets.table import open_table
from teacher_cache.datasets.tar_shards import open_shards
from teacher_cache.datasets.torchvision_sets import open_cifar10, open_cifar100, open_stanford_cars


@dataclass(frozen=True, slots=True)
class Opener:
    """How a name is opened.

    Args:
        place: what the user names after a colon, FILE for instance, whose images then get the size that the user
            chooses; None for data sets that are found by their name.
    """

    open: Callable[[Request], ImageDataset]
    place: str | None = None

    @property
    def kind(self) -> str:
        """What lies at its place."""
        return "file" if self.place == "FILE" else "folder"


def _in_root(name: str, open_it: Callable[[Request], ImageDataset]) -> Opener:
    """For a data set that is found below the root of all."""

    def opened(request: Request) -> ImageDataset:
        return replace(open_it(request), options={"dataset": name, "data_root": os.path.abspath(request.data_root)})

    return Opener(opened)


DATASETS: dict[str, Opener] = {
    "cifar10": _in_root("cifar10", lambda request: open_cifar10(request.data_root, download=request.download)),
    "cifar100": _in_root("cifar100", lambda request: open_cifar100(request.data_root, download=request.download)),
    "stanford_cars": _in_root(
        "stanford_cars", lambda request: open_stanford_cars(request.data_root, rehash=request.rehash)
    ),
    "digits": Opener(lambda request: open_digits()),
    "imagefolder": Opener(open_image_folder, "PATH"),
    "csv": Opener(open_table, "FILE"),
    "parquet": Opener(open_parquet, "FOLDER"),
    "tar": Opener(open_shards, "FOLDER"),
}


def takes_path(spec: str) -> bool:
    """Whether a data set, or its name, is the user's own, which a path leads to."""
    opener = DATASETS.get(spec.partition(":")[0])
    return opener is not None and opener.place is not None


def may_be(spec: str, own: str) -> bool:
    """Whether a data set, as a user writes it, can be the one that a store has by this name: it is the same, or both
    are images of the user's own, which may lie elsewhere by now and be called otherwise. What is no data set may be.
    """
    known = spec.partition(":")[0] in DATASETS
    return not known or spec == own or (takes_path(spec) and takes_path(own))


def open_dataset(
    spec: str,
    *,
    data_root: Path | None = None,
    image_size: int | None = None,
    download: bool = False,
    interpolation: str = "bilinear",
    squares: str = "centre",
    split: str | None = None,
    split_seed: int = 0,
    rehash: bool = False,
) -> ImageDataset:
    """Open a data set by name; no image is decoded yet.

    Args:
        spec: `cifar10`, `cifar100`, `stanford_cars`, `digits`, `imagefolder:PATH`, `csv:FILE`, `parquet:FOLDER` or
            `tar:FOLDER`.
        data_root: where the named sets lie; by default the folder in CKD_DATA, else ./data. A path and the
            digits do not depend on it.
        image_size: side of the base images in pixels; only the user's own data take it.
        download: fetch CIFAR if it is absent; the other sets cannot be fetched.
        interpolation: of those images to that side.
        squares: how squares are made of them, of `ground.geometry.FIT_SHAPES`.
        split: shares of training and test images, as "0.8/0.2", for the user's own data without splits.
        split_seed: which images those are, 0 to 2**40.
        rehash: read every file for its digest, whatever is known of it.

    Raises:
        UnknownName: no data set is called that.
        DatasetMissing: it is not where it was looked for; the message says how to get it.
        InvalidInput: it is there and cannot be used, or an argument does not suit it.
    """
    name, _, path = spec.partition(":")
    opener = DATASETS.get(name)
    if opener is None:
        raise UnknownName("dataset", name, [_spec(known) for known in DATASETS])
    if opener.place is not None and not path:
        raise InvalidInput(f"{name} needs a {opener.kind}; write {_spec(name)}")
    if opener.place is None:
        if path:
            raise InvalidInput(f"{name} takes no path, got {spec!r}; name its folder with --data-root")
        if image_size is not None:
            raise InvalidInput(f"{name} has images of a fixed size, got image size {image_size}; leave it out")
        if split is not None:
            raise InvalidInput(f"{name} has its own splits; leave out --split")
    if split is None and split_seed:
        raise InvalidInput("--split-seed decides how --split divides images; give that too, or leave both out")
    root = Path(os.environ.get("CKD_DATA") or "data") if data_root is None else data_root
    return opener.open(
        Request(
            path=path,
            # Unlike `Path.expanduser` this leaves a home that is not known as it is written.
            data_root=Path(os.path.expanduser(root)),
            image_size=image_size,
            download=download,
            interpolation=interpolation,
            squares=squares,
            division=None if split is None else Division(split, split_seed),
            rehash=rehash,
        )
    )


def _spec(name: str) -> str:
    """How a data set is written."""
    place = DATASETS[name].place
    return name if place is None else f"{name}:{place}"
