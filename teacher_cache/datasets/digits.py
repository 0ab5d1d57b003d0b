"""The handwritten digits that come with scikit-learn: 1,797 real images that need no download.

Source: UCI "Optical Recognition of Handwritten Digits", as `sklearn.datasets.load_digits` ships it: 8 x 8
pixels with values 0 to 16. They are enlarged to 32 x 32 so that the CIFAR networks take them, and split once
and for all into 1,437 for training and 360 for testing, with each digit's share kept. scikit-learn takes more than a
second to import, so its file is read without it, and the split is written down.
"""

from __future__ import annotations

import base64
import functools
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

from ground.geometry import Normalisation, ViewGeometry
from teacher_cache.datasets.base import ArraySplit, ImageDataset

IMAGE_SIZE = 32
NUM_TEST = 360

# A bit for each digit, 1 for testing: `train_test_split(rows, test_size=360, stratify=labels, random_state=0)`.
_TESTED = (
    "AAAEiDUkEEAABkEAk0IFABoACAEAJAAoBiwSABAAlAoAkBkSBCD4oAKBEKAACAqIIEQVJElCQKAKAAAAQATYAACBgCAASAXEABBACKAQ"
    "AAVASAAwEAACDsQJAAIkhACDqAE8IKaYCgAAAAsIQAgEoBhIAgJAQcEAgARARoQ3aoECFgBEgABAQqCkGApQAIQLhWHGCBCACABMgMAg"
    "BAaOAAEIggCBADgIA8AIGQAAEA4BAIQQoCEAMygpBMBEwIBoDgECgwCCAIgipkAsJAQhCKhggJCBoAwCggJCEgE4pBUA"
)
_FILE = Path("datasets", "data", "digits.csv.gz")

# Mean and standard deviation of the training pixels; a test computes them again.
NORMALISATION = Normalisation(mean=(0.3057, 0.3057, 0.3057), std=(0.3235, 0.3235, 0.3235))


@functools.cache
def open_digits() -> ImageDataset:
    """The digits, with their fixed split; read once in a process, and read-only."""
    values, labels = _digits()
    images = enlarge(values)
    tested = np.unpackbits(np.frombuffer(base64.b64decode(_TESTED), np.uint8), count=len(labels)).astype(bool)
    train_rows, test_rows = np.flatnonzero(~tested), np.flatnonzero(tested)
    splits = [ArraySplit(images[rows], labels[rows]) for rows in (train_rows, test_rows)]
    for split in splits:
        split.images.flags.writeable = split.labels.flags.writeable = False
    train, test = splits
    return ImageDataset(
        name="digits",
        classes=tuple(map(str, range(10))),
        train=train,
        test=test,
        geometry=ViewGeometry(image_size=IMAGE_SIZE, crop_size=IMAGE_SIZE, padding=2, flips=False),
        normalisation=NORMALISATION,
    )


def _digits() -> tuple[np.ndarray, np.ndarray]:
    """Their pixels, (N, 8, 8) with values 0 to 16, and labels, (N,) int64."""
    package = find_spec("sklearn")
    file = None if package is None or package.origin is None else Path(package.origin).parent / _FILE
    if file is None or not file.exists():  # where another release keeps it
        from sklearn.datasets import load_digits

        source = load_digits()
        return source.images, source.target.astype(np.int64)
    table = np.loadtxt(file, delimiter=",")
    return table[:, :-1].reshape(-1, 8, 8), table[:, -1].astype(np.int64)


def enlarge(values: np.ndarray) -> np.ndarray:
    """Turn digits, (N, 8, 8) with values 0 to 16, into grey RGB images (N, 32, 32, 3) uint8."""
    grey = np.rint(values * (255 / 16)).astype(np.uint8)
    count, height, width = grey.shape
    # Pillow resizes along rows, then along columns, and never looks past either: all digits at once, one below the
    # other and then one beside the other, are the same bytes as each by itself, tens of times sooner.
    wide = _resized(grey.reshape(count * height, width), (IMAGE_SIZE, count * height))
    beside = wide.reshape(count, height, IMAGE_SIZE).transpose(1, 0, 2).reshape(height, count * IMAGE_SIZE)
    large = _resized(beside, (count * IMAGE_SIZE, IMAGE_SIZE)).reshape(IMAGE_SIZE, count, IMAGE_SIZE)
    return np.repeat(large.transpose(1, 0, 2)[..., None], 3, axis=3)


def _resized(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Grey pixels at another width and height."""
    return np.asarray(Image.fromarray(np.ascontiguousarray(pixels)).resize(size, Image.Resampling.BILINEAR))
