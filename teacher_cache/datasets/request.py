"""What a user asks of a data set beside its name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ground.geometry import Fit
from teacher_cache.datasets.division import Division


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What the user asked for, beside the name.

    Args:
        path: what follows the colon in the spec; empty where the data set takes no path.
        data_root: where named data sets lie.
        image_size: side of the base images, where the user may choose it.
        download: fetch the data set if it is absent and can be fetched.
        interpolation: of `ground.geometry.INTERPOLATIONS`, where images are resized to that side.
        squares: of `ground.geometry.FIT_SHAPES`, how squares are made of them.
        division: how images without splits are divided.
        rehash: read every file, whatever is known of it.
    """

    path: str
    data_root: Path
    image_size: int | None
    download: bool
    interpolation: str = "bilinear"
    squares: str = "centre"
    division: Division | None = None
    rehash: bool = False

    @property
    def fit(self) -> Fit:
        """How base images are made of the user's own."""
        return Fit(shape=self.squares, interpolation=self.interpolation)

    @property
    def own_squares(self) -> str | None:
        """What a data set says of how its squares were made; None of the usual way."""
        return None if self.squares == Fit().shape else self.squares
