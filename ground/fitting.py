"""From a decoded image of any shape to a square base image, of which views are cut.

Stage one makes a store's images so, and whoever shows a student new photographs has to do the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
from PIL import Image

from ground.decoding import require_pixels
from ground.geometry import Fit

_ROUNDINGS: Mapping[str, Callable[[float], int]] = {
    "centre": round,
    "centre-low": math.floor,
    "centre-high": math.ceil,
    "centre-1": lambda place: round(place + 1 / 2),
    "centre-2": lambda place: round(place + 1) - 1,
    "centre-3": lambda place: round(place + 3 / 2) - 1,
}


def for_margin(shape: str, margin: int) -> str:
    """The shape by which a plain view, `margin` pixels smaller than the base image, is what a library crops at once.

    A library rounds half a pixel once: torchvision ("centre") to even, transformers ("centre-low") down. Here there are
    two steps, of which the second, the plain view, takes half of the margin, rounded down. So the first has to round
    what the whole would be.
    """
    if shape in ("centre-low", "centre-high"):
        return "centre-high" if margin % 2 else "centre-low"
    # Four pixels more are an even number on each side, which changes no rounding.
    return f"centre-{margin % 4}" if shape == "centre" and margin % 4 else shape


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
    over = max(0, left + size - width), max(0, top + size - height)
    square = image.crop((left, top, left + size - over[0], top + size - over[1]))
    # "centre-3" begins a pixel further in, also where the image has none to spare: then its edge is repeated.
    return (
        Image.fromarray(np.pad(np.asarray(square), ((0, over[1]), (0, over[0]), (0, 0)), mode="edge"))
        if any(over)
        else square
    )


def squash_to_square(image: Image.Image, size: int, interpolation: str = "bilinear") -> Image.Image:
    """Resize to `size` x `size` whatever the shape, as torchvision's `Resize((size, size))` does."""
    return image.resize((size, size), Image.Resampling[interpolation.upper()])
