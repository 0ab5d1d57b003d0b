"""What a network is shown of a base image: how a view is cut, and how its pixels are normalised.

Plain values, which manifests and records hold; `ground.views` does the cutting. Nothing here needs torch to be loaded.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

VIEW_POLICIES = ("augmented", "plain", "resized")
INTERPOLATIONS = ("bilinear", "bicubic")
FIT_SHAPES = ("centre", "centre-low", "centre-high", "centre-1", "centre-2", "centre-3", "squashed")
MAX_INPUT_SIZE = 4096
# Of a box, share of the image's area, and width over height; the latter is drawn evenly on a logarithmic scale.
BOX_AREA = (0.08, 1.0)
BOX_ASPECT = (3 / 4, 4 / 3)


def shows_boxes(policy: str) -> bool:
    """Whether the views of a policy are boxes of any size, and not squares of one."""
    return policy == "resized"


def numbers_of_view(policy: str) -> int:
    """Numbers that say a view: top, left and flip; of a box its height and width too."""
    return 5 if shows_boxes(policy) else 3


def lie_inside(boxes: np.ndarray, side: int) -> bool:
    """Whether boxes, (..., 5) integers, lie inside an image of so many pixels each way, and hold one at least."""
    numbers = boxes.astype("int64")
    starts, lengths = numbers[..., :2], numbers[..., 3:]
    return bool((starts >= 0).all() and (lengths > 0).all() and (starts + lengths <= side).all())


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewGeometry:
    """How a view is cut from a base image.

    Args:
        image_size: height and width of the stored base images, in pixels.
        crop_size: height and width of a view, in pixels.
        padding: black pixels added on each side of the base image before cropping; boxes are cut without.
        flips: half of the random views are mirrored; off where left and right differ in meaning (digits).
    """

    image_size: int
    crop_size: int
    padding: int
    flips: bool = True

    def __post_init__(self) -> None:
        if self.image_size < 1 or self.crop_size < 1 or self.padding < 0:
            raise ValueError(f"sizes must be positive and padding not negative, got {self}")
        if self.crop_size > self.image_size + 2 * self.padding:
            raise ValueError(f"a {self.crop_size}-pixel crop does not fit {self}")

    @property
    def num_offsets(self) -> int:
        """Positions a crop can take along one axis."""
        return self.image_size + 2 * self.padding - self.crop_size + 1

    @property
    def plain_view(self) -> tuple[int, int, int]:
        """The centred, unflipped view that evaluation uses: (top, left, flip)."""
        centre = (self.num_offsets - 1) // 2
        return centre, centre, 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Normalisation:
    """Per-channel mean and standard deviation of pixels on [0, 1], red green blue."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __post_init__(self) -> None:
        numbers = (*self.mean, *self.std)
        if len(self.mean) != 3 or len(self.std) != 3 or not all(map(math.isfinite, numbers)) or min(self.std) <= 0:
            raise ValueError(f"three finite means and three positive deviations are needed, got {self}")

    def apply(self, images_u8: Tensor) -> Tensor:
        """Turn uint8 pixels (B, 3, H, W) into a network's float32 input of the same shape and layout."""
        pixels = images_u8.float()
        numbers, constants = pixels, [pixels.new_tensor(values).view(3, 1, 1) for values in (self.mean, self.std)]
        channels_last, width = pixels.permute(0, 2, 3, 1), pixels.shape[3]
        if channels_last.is_contiguous():
            # The same numbers line by line: the three of a pixel at a time take three times as long.
            numbers, constants = channels_last.view(-1, 3 * width), [one.flatten().repeat(width) for one in constants]
        mean, std = constants
        numbers.div_(255.0).sub_(mean).div_(std)
        return pixels


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """How an image of any shape becomes a square base image; `ground.fitting` does it.

    Args:
        shape: "centre" resizes the shorter side and takes the central square, "squashed" resizes both sides. Half a
            pixel beside the square goes to the even side in "centre", as in torchvision; "centre-low" rounds it down,
            "centre-high" up. "centre-1" to "centre-3" are torchvision's for a smaller square in the same centre, see
            `ground.fitting.for_margin`.
        interpolation: of the resizing, with antialiasing.
    """

    shape: str = "centre"
    interpolation: str = "bilinear"

    def __post_init__(self) -> None:
        if self.shape not in FIT_SHAPES:
            raise ValueError(f"the shape {self.shape!r} is not one of {FIT_SHAPES}")
        if self.interpolation not in INTERPOLATIONS:
            raise ValueError(f"the interpolation {self.interpolation!r} is not one of {INTERPOLATIONS}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rendering:
    """How a network is shown a base image: the teacher's and the student's need not be the same.

    Args:
        geometry: how its views are cut.
        normalisation: what its pixels become.
        input_size: height and width of its input, to which a view is resized; None is the size of the views.
        interpolation: of that resizing, with antialiasing.
    """

    geometry: ViewGeometry
    normalisation: Normalisation
    input_size: int | None = None
    interpolation: str = "bilinear"

    def __post_init__(self) -> None:
        if self.input_size is not None and not 1 <= self.input_size <= MAX_INPUT_SIZE:
            raise ValueError(f"the input of a network is 1 to {MAX_INPUT_SIZE} pixels, got {self.input_size}")
        if self.interpolation not in INTERPOLATIONS:
            raise ValueError(f"the interpolation {self.interpolation!r} is not one of {INTERPOLATIONS}")

    @property
    def size(self) -> int:
        """Height and width of the network's input."""
        return self.geometry.crop_size if self.input_size is None else self.input_size

    def __str__(self) -> str:
        geometry, normalisation = self.geometry, self.normalisation
        padded = f", padded by {geometry.padding}" if geometry.padding else ""
        own = "" if self.input_size is None else f", shown at {self.size} ({self.interpolation})"
        mean, std = (" ".join(f"{value:.4g}" for value in values) for values in (normalisation.mean, normalisation.std))
        return f"views of {geometry.crop_size} of {geometry.image_size} pixels{padded}{own}; mean {mean}, std {std}"
