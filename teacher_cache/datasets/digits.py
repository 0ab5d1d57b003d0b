"""The handwritten digits that come with scikit-learn: 1,797 real images that need no download.

Source: UCI "Optical Recognition of Handwritten Digits", as `sklearn.datasets.load_digits` ships it: 8 x 8
pixels with values 0 to 16. They are enlarged to 32 x 32 so that the CIFAR networks take them, and split once
and for all into 1,437 for training and 360 for testing, with each digit's share kept.
"""

from __future__ import annotations

import functools

import numpy as np
from PIL import Image

from ground.geometry import Normalisation, ViewGeometry
from teacher_cache.datasets.base import ArraySplit, ImageDataset

IMAGE_SIZE = 32
NUM_TEST = 360

# Mean and standard deviation of the training pixels; a test computes them again.
NORMALISATION = Normalisation(mean=(0.3057, 0.3057, 0.3057), std=(0.3235, 0.3235, 0.3235))


@functools.cache
def open_digits() -> ImageDataset:
    """The digits, with their fixed split; read once in a process, and read-only."""
    # scikit-learn takes seconds to import; only this data set needs it.
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    source = load_digits()
    labels = source.target.astype(np.int64)
    images = enlarge(source.images)
    train_rows, test_rows = train_test_split(
        np.arange(len(labels)), test_size=NUM_TEST, stratify=labels, random_state=0
    )
    train_rows, test_rows = np.sort(train_rows), np.sort(test_rows)
    splits = [ArraySplit(images[rows], labels[rows]) for rows in (train_rows, test_rows)]
    for split in splits:
        split.images.flags.writeable = split.labels.flags.writeable = False
    train, test = splits
    return ImageDataset(
        name="digits",
        classes=tuple(str(digit) for digit in source.target_names),
        train=train,
        test=test,
        geometry=ViewGeometry(image_size=IMAGE_SIZE, crop_size=IMAGE_SIZE, padding=2, flips=False),
        normalisation=NORMALISATION,
    )


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
