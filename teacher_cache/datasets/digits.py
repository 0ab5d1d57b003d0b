"""The handwritten digits that come with scikit-learn: 1,797 real images that need no download.

Source: UCI "Optical Recognition of Handwritten Digits", as `sklearn.datasets.load_digits` ships it: 8 x 8
pixels with values 0 to 16. They are enlarged to 32 x 32 so that the CIFAR networks take them, and split once
and for all into 1,437 for training and 360 for testing, with each digit's share kept.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from ground.geometry import Normalisation, ViewGeometry
from teacher_cache.datasets.base import ArraySplit, ImageDataset

IMAGE_SIZE = 32
NUM_TEST = 360

# Mean and standard deviation of the training pixels; a test computes them again.
NORMALISATION = Normalisation(mean=(0.3057, 0.3057, 0.3057), std=(0.3235, 0.3235, 0.3235))


def open_digits() -> ImageDataset:
    """The digits, with their fixed split."""
    # scikit-learn takes seconds to import; only this data set needs it.
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    source = load_digits()
    labels = source.target.astype(np.int64)
    images = np.stack([enlarge(values) for values in source.images])
    train_rows, test_rows = train_test_split(
        np.arange(len(labels)), test_size=NUM_TEST, stratify=labels, random_state=0
    )
    train_rows, test_rows = np.sort(train_rows), np.sort(test_rows)
    return ImageDataset(
        name="digits",
        classes=tuple(str(digit) for digit in source.target_names),
        train=ArraySplit(images[train_rows], labels[train_rows]),
        test=ArraySplit(images[test_rows], labels[test_rows]),
        geometry=ViewGeometry(image_size=IMAGE_SIZE, crop_size=IMAGE_SIZE, padding=2, flips=False),
        normalisation=NORMALISATION,
    )


def enlarge(values: np.ndarray) -> np.ndarray:
    """Turn one digit, (8, 8) with values 0 to 16, into a grey RGB image (32, 32, 3) uint8."""
    grey = Image.fromarray(np.rint(values * (255 / 16)).astype(np.uint8))
    large = np.asarray(grey.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BILINEAR))
    return np.repeat(large[:, :, None], 3, axis=2)
