"""Boxes: parts of a base image of any area and aspect, drawn as torchvision's `RandomResizedCrop` draws them.

A box is top, left, flip, height and width, in pixels of the base image; no padding is added. Boxes have no size in
common, so each is resized to the input of the network that is shown it.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import exp, log, sqrt

from torch import Tensor

from ground.geometry import BOX_AREA, BOX_ASPECT, lie_inside

_TRIES = 10
# How many random numbers a box takes: for its place, its flip, and the area and aspect of each try.
NUM_DRAWN = 3 + 2 * _TRIES


def box_of(drawn: Sequence[float], side: int, *, flips: bool) -> tuple[int, int, int, int, int]:
    """The box that random numbers give of a square image: top, left, flip, height, width.

    Args:
        drawn: NUM_DRAWN numbers from [0, 1).
        side: of the image, in pixels.
        flips: whether half of the boxes are mirrored.
    """
    place, flip, tries = drawn[:2], drawn[2], drawn[3:]
    for area_drawn, aspect_drawn in zip(tries[::2], tries[1::2], strict=True):
        area = side * side * _between(*BOX_AREA, area_drawn)
        aspect = exp(_between(log(BOX_ASPECT[0]), log(BOX_ASPECT[1]), aspect_drawn))
        height, width = round(sqrt(area / aspect)), round(sqrt(area * aspect))
        if 0 < height <= side and 0 < width <= side:
            break
    else:
        # torchvision falls back on the largest centre of an allowed aspect; of a square that is all of it.
        height = width = side
    top, left = (int(share * (side - length + 1)) for share, length in zip(place, (height, width), strict=True))
    return top, left, int(flips and flip < 0.5), height, width


def _between(low: float, high: float, share: float) -> float:
    return low + share * (high - low)


def cut_boxes(images: Tensor, boxes: Tensor) -> list[Tensor]:
    """Cut one box from each image, on the images' device.

    Args:
        images: (B, S, S, 3) uint8 base images.
        boxes: (B, 5) integers top, left, flip, height, width.

    Returns:
        B times (3, h, w) uint8, each of its own size.

    Raises:
        IndexError: a box does not lie inside its image.
    """
    boxes, side = boxes.cpu(), images.shape[1]
    if not lie_inside(boxes.numpy(), side):
        raise IndexError(f"a box lies outside its image of {side} pixels")
    cut = []
    for image, (top, left, flip, height, width) in zip(images, boxes.tolist(), strict=True):
        box = image[top : top + height, left : left + width].permute(2, 0, 1)
        cut.append(box.flip(2) if flip > 0 else box)
    return cut
