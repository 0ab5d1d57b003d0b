"""How a teacher is shown images where the user says it, and how much of the images of a folder that takes.

What is not said is what the teacher's library does; of the zoo's networks, what the data set has.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TYPE_CHECKING

from ground.errors import InvalidInput, UnknownName
from ground.geometry import INTERPOLATIONS, MAX_INPUT_SIZE, Normalisation, Rendering, ViewGeometry
from teacher_cache.datasets.photographs import DEFAULT_IMAGE_SIZE

if TYPE_CHECKING:
    from models.origins import Preprocessing

Numbers = tuple[float, float, float]
LEAST_CROP_PCT = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class RenderingOverrides:
    """What the user says of it; None where he does not.

    Args:
        input_size: height and width of the teacher's input, in pixels, to which views are resized.
        interpolation: of resizing views, and the images of a folder.
        crop_pct: share of the side of an image of a folder that a plain view keeps, as timm's `crop_pct`.
        mean: of pixels on [0, 1], red green blue.
        std: likewise.
    """

    input_size: int | None = None
    interpolation: str | None = None
    crop_pct: float | None = None
    mean: Numbers | None = None
    std: Numbers | None = None

    def __post_init__(self) -> None:
        if self.input_size is not None and not 1 <= self.input_size <= MAX_INPUT_SIZE:
            raise InvalidInput(f"--input-size must be 1 to {MAX_INPUT_SIZE} pixels, got {self.input_size}")
        if self.interpolation not in (None, *INTERPOLATIONS):
            raise UnknownName("interpolation", str(self.interpolation), INTERPOLATIONS)
        if self.crop_pct is not None and not LEAST_CROP_PCT <= self.crop_pct <= 1:
            raise InvalidInput(f"--crop-pct must be a share from {LEAST_CROP_PCT} to 1, got {self.crop_pct:g}")
        try:
            self.normalisation(Normalisation(mean=(0, 0, 0), std=(1, 1, 1)))
        except ValueError as error:
            raise InvalidInput(f"--mean and --std: {error}") from error

    def normalisation(self, usual: Normalisation) -> Normalisation:
        """The usual one but for what is said."""
        return Normalisation(mean=self.mean or usual.mean, std=self.std or usual.std)

    def rendering(self, usual: Rendering, *, boxes: bool) -> Rendering:
        """The usual one but for what is said.

        Args:
            boxes: whether the views are boxes of any size: then the teacher has an input size, that of the views where
                nobody says another, and so has one whose interpolation is said. Both are part of what it is known by.
        """
        size = usual.input_size if self.input_size is None else self.input_size
        if size is None and (boxes or self.interpolation is not None):
            size = usual.geometry.crop_size
        return replace(
            usual,
            normalisation=self.normalisation(usual.normalisation),
            input_size=size,
            interpolation=self.interpolation or usual.interpolation,
        )

    def folder_geometry(self, own: Preprocessing | None, image_size: int | None) -> ViewGeometry | None:
        """How views are cut from the images of a folder; None where nobody says it but the data set.

        As timm does it, images are resized so that their plain view has the size of the input, unless the user says
        their size.

        Args:
            own: how the teacher's library shows images, if it has one.
            image_size: side of the base images, where the user says it.
        """
        if self.crop_pct is not None:
            share: Fraction | float = self.crop_pct
        elif own is not None:
            share = Fraction(own.input_size, own.resize_size)
        else:
            return None
        usual = None if own is None else own.input_size
        crop = usual if self.input_size is None else self.input_size
        if image_size is None and crop is not None:
            return ViewGeometry(image_size=math.floor(crop / share), crop_size=crop, padding=0)
        size = DEFAULT_IMAGE_SIZE if image_size is None else image_size
        return ViewGeometry(image_size=size, crop_size=max(1, round(size * share)), padding=0)
