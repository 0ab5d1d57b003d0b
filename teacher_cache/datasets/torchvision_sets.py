"""The data sets of the papers, read by torchvision: CIFAR-10, CIFAR-100 and Stanford Cars.

Sources: CIFAR-100's constants are those of the CRD benchmark (Tian et al. 2020, RepDistiller). Cars follow
the released code of CKD (Xu et al. 2025): resized to exactly 64 x 64, cropped to 56.
"""

from __future__ import annotations

import errno
import http.client
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from ground.errors import DatasetMissing, DiskFull, InvalidInput
from ground.fitting import squash_to_square
from ground.geometry import Normalisation, ViewGeometry
from teacher_cache.datasets.base import IMAGENET_NORMALISATION, ArraySplit, FileSplit, ImageDataset
from teacher_cache.datasets.known_files import KnownFiles

CIFAR_GEOMETRY = ViewGeometry(image_size=32, crop_size=32, padding=4)
CIFAR10_NORMALISATION = Normalisation(mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616))
CIFAR100_NORMALISATION = Normalisation(mean=(0.5071, 0.4867, 0.4408), std=(0.2675, 0.2565, 0.2761))

CARS_GEOMETRY = ViewGeometry(image_size=64, crop_size=56, padding=0)
_CARS_LAYOUT = (
    "devkit/cars_meta.mat",
    "devkit/cars_train_annos.mat",
    "cars_test_annos_withlabels.mat",
    "cars_train",
    "cars_test",
)


def open_cifar10(root: Path, *, download: bool = False) -> ImageDataset:
    """CIFAR-10 from `root`/cifar-10-batches-py."""
    from torchvision.datasets import CIFAR10

    return _open_cifar("cifar10", CIFAR10, CIFAR10_NORMALISATION, root, download)


def open_cifar100(root: Path, *, download: bool = False) -> ImageDataset:
    """CIFAR-100, with its 100 fine labels, from `root`/cifar-100-python."""
    from torchvision.datasets import CIFAR100

    return _open_cifar("cifar100", CIFAR100, CIFAR100_NORMALISATION, root, download)


def _open_cifar(name: str, source: Any, normalisation: Normalisation, root: Path, download: bool) -> ImageDataset:
    try:
        train, test = _load_cifar(source, root)
    except RuntimeError:  # torchvision's word for "absent or damaged"
        if download:
            _fetch_cifar(name, source, root)
        _require_cifar(name, source, root)
        train, test = _load_cifar(source, root)
    return ImageDataset(
        name=name,
        classes=tuple(train.classes),
        train=ArraySplit(np.ascontiguousarray(train.data), np.array(train.targets, dtype=np.int64)),
        test=ArraySplit(np.ascontiguousarray(test.data), np.array(test.targets, dtype=np.int64)),
        geometry=CIFAR_GEOMETRY,
        normalisation=normalisation,
    )


def _load_cifar(source: Any, root: Path) -> tuple[Any, Any]:
    with warnings.catch_warnings():
        # CIFAR's pickles are of Python 2; NumPy 2.4.0 to 2.4.4 warn about how those write a dtype.
        warnings.filterwarnings("ignore", message=r"dtype\(\): align should be passed")
        # Unpickling runs what the file says. torchvision compares each file with the MD5 of the published
        # one before it unpickles, and that check is what makes these pickles trusted: never bypass it.
        return source(root, train=True), source(root, train=False)


def _fetch_cifar(name: str, source: Any, root: Path) -> None:
    """Download and unpack the archive; one that lies in `root` already, whole, is used as it is."""
    from torchvision.datasets.utils import download_and_extract_archive

    try:
        download_and_extract_archive(source.url, root, filename=source.filename, md5=source.tgz_md5)
    except (OSError, RuntimeError, http.client.HTTPException) as error:
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise DiskFull(f"no room for {name} in {root}; free some or name another --data-root") from error
        raise DatasetMissing(
            f"could not download {name} from {source.url} to {root}: {error}; fetch {source.filename} "
            f"by other means and put it in {root}, then run the same command again"
        ) from error


def _require_cifar(name: str, source: Any, root: Path) -> None:
    """Name the file that is absent or damaged, where torchvision says only that one of them is."""
    from torchvision.datasets.utils import check_integrity

    folder = root / source.base_folder
    meta = (source.meta["filename"], source.meta["md5"])
    expected = [(folder / file, md5) for file, md5 in [*source.train_list, *source.test_list, meta]]
    for file, _ in expected:
        if not file.is_file():
            raise DatasetMissing(
                f"{name} is not in {root}: there is no {source.base_folder}/{file.name}; "
                f"it takes {source.filename} unpacked under {root}, or pass --download"
            )
    for file, md5 in expected:
        if not check_integrity(file, md5):
            raise InvalidInput(
                f"{file} is not the published file (its MD5 differs); "
                f"unpack {source.filename} again under {root}, or pass --download"
            )


def open_stanford_cars(root: Path, *, rehash: bool = False) -> ImageDataset:
    """Stanford Cars from `root`/stanford_cars, laid out as torchvision describes it."""
    from torchvision.datasets import StanfordCars

    folder = root / "stanford_cars"
    absent = [part for part in _CARS_LAYOUT if not (folder / part).exists()]
    if absent:
        raise DatasetMissing(
            f"stanford_cars is not whole in {folder}: there is no {', '.join(absent)}; "
            "get them from a mirror and lay them out as torchvision's StanfordCars describes "
            "(the original URL is gone, so torchvision cannot download them)"
        )
    try:
        train, test = StanfordCars(root, split="train"), StanfordCars(root, split="test")
    except Exception as error:  # scipy raises many kinds on a damaged .mat file
        raise InvalidInput(f"cannot read the .mat files in {folder}: {error}; replace them") from error
    known = KnownFiles(folder, rehash=rehash)
    return ImageDataset(
        name="stanford_cars",
        classes=tuple(train.classes),
        train=_cars_split(folder, "cars_train", train, known),
        test=_cars_split(folder, "cars_test", test, known),
        geometry=CARS_GEOMETRY,
        normalisation=IMAGENET_NORMALISATION,
    )


def _cars_split(folder: Path, images: str, source: Any, known: KnownFiles) -> FileSplit:
    names = [os.path.basename(path) for path, _ in source._samples]
    absent = sorted(set(names) - set(os.listdir(folder / images)))
    if absent:
        raise DatasetMissing(
            f"stanford_cars lacks {len(absent)} of {len(names)} images, the first {images}/{absent[0]}; "
            f"unpack its archive in {folder} again"
        )
    return FileSplit(
        root=folder,
        files=[f"{images}/{name}" for name in names],
        labels=np.array([label for _, label in source._samples], dtype=np.int64),
        image_size=CARS_GEOMETRY.image_size,
        fit=squash_to_square,
        remedy="replace",
        known=known,
    )
