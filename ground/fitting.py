"""From a decoded image of any shape to a square base image, of which views are cut.

Stage one makes a store's images so, and whoever shows a student new photographs has to do the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from PIL import Image

from ground.decoding import require_pixels
from ground.geometry import Fit

_ROUNDINGS: Mapping[str, Callable[[float], int]] = {"centre": round, "centre-low": math.floor, "centre-high": math.ceil}


def fitted(image: Image.Image, size: int, fit: Fit) -> Image.Image:
    """An RGB image as a base image of `size` x `size` pixels."""
    return as_square(image, size, fit.shape, fit.interpolation)


def as_square(image: Image.Image, size: int, shape: str, interpolation: str) -> Image.Image:
    """The same for any of Pillow's interpolations, by its name there in small letters."""
    if shape == "squashed":
        return squash_to_square(image, size, interpolation)
    return fit_to_square(image, size, interpolation, _ROUNDINGS[shape])


def fit_to_square(
    image: Image.Image, size: int, interpolation: str = "bilinear", rounding: Callable[[float], int] = round
) -> Image.Image:
    """Shorter side to `size`, then the central square; an image of that size already keeps its pixels.

    Rounding follows torchvision's `Resize(size)` and `CenterCrop(size)`, unless another one is given.
    """
    width, height = image.size
    if min(width, height) != size:
        longer = int(size * max(width, height) / min(width, height))
        # A strip of one pixel grows by `size` both ways.
        require_pixels(size, longer)
        new_size = (size, longer) if width <= height else (longer, size)
        # Pillow's filters widen when they shrink an image, which is what "antialias" means.
        image = image.resize(new_size, Image.Resampling[interpolation.upper()])
        width, height = new_size
    left, top = rounding((width - size) / 2), rounding((height - size) / 2)
    return image.crop((left, top, left + size, top + size))


def squash_to_square(image: Image.Image, size: int, interpolation: str = "bilinear") -> Image.Image:
    """Resize to `size` x `size` whatever the shape, as torchvision's `Resize((size, size))` does."""
    return image.resize((size, size), Image.Resampling[interpolation.upper()])
