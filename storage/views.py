"""Views: one augmentation of a base image, shared by both stages.

The teacher sees a view in stage one; stage two can replay the very same pixels, because a view is three small
integers (top, left, flip) and both stages cut it with `apply_views`. Cropping happens on uint8 pixels, before
normalisation, so the padding is black as in torchvision's `RandomCrop` on images.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

VIEW_POLICIES = ("augmented", "plain")


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewGeometry:
    """How a view is cut from a base image.

    Args:
        image_size: height and width of the stored base images, in pixels.
        crop_size: height and width of a view, in pixels.
        padding: black pixels added on each side of the base image before cropping.
        flips: half of the augmented views are mirrored; off where left and right differ in meaning (digits).
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
        """Turn uint8 pixels (B, 3, H, W) into a network's float32 input of the same shape."""
        mean = torch.tensor(self.mean, device=images_u8.device).view(1, 3, 1, 1)
        std = torch.tensor(self.std, device=images_u8.device).view(1, 3, 1, 1)
        return images_u8.float().div_(255.0).sub_(mean).div_(std)


def draw_views(geometry: ViewGeometry, count: int, generator: torch.Generator) -> Tensor:
    """Random crops and flips, uniform as in the CIFAR protocol: (count, 3) int16 on the CPU."""
    offsets = torch.randint(0, geometry.num_offsets, (count, 2), generator=generator)
    flips = torch.randint(0, 1 + geometry.flips, (count, 1), generator=generator)
    return torch.cat([offsets, flips], dim=1).to(torch.int16)


def sample_views(
    geometry: ViewGeometry, policy: str, *, seed: int, source_index: np.ndarray, num_views: int
) -> np.ndarray:
    """The views that the teacher sees of each image: (n, V, 3) int16.

    A view depends on (seed, source index, view number) alone, so a sample that grows keeps the views it had.
    """
    if policy not in VIEW_POLICIES:
        raise ValueError(f"view policy {policy!r} is not one of {VIEW_POLICIES}")
    views = np.empty((len(source_index), num_views, 3), dtype=np.int16)
    if policy == "plain":
        views[:] = geometry.plain_view
        return views
    for row, index in enumerate(source_index.tolist()):
        rng = np.random.default_rng([seed, index])
        views[row, :, :2] = rng.integers(0, geometry.num_offsets, size=(num_views, 2))
        views[row, :, 2] = rng.integers(0, 1 + geometry.flips, size=num_views)
    return views


def apply_views(images: Tensor, views: Tensor, geometry: ViewGeometry) -> Tensor:
    """Cut one view from each image, on the images' device.

    Args:
        images: (B, H, W, 3) uint8 base images.
        views: (B, 3) integers top, left, flip.
        geometry: sizes that `images` and `views` were made for.

    Returns:
        (B, 3, h, w) uint8, channels-last in memory.
    """
    views = views.to(images.device, torch.int64)
    top, left, flip = views.unbind(dim=1)
    span = torch.arange(geometry.crop_size, device=images.device)
    rows = top[:, None] + span - geometry.padding
    columns = torch.where(flip[:, None] > 0, span.flip(0), span) + left[:, None] - geometry.padding
    inside = _inside(rows, geometry.image_size)[:, :, None] & _inside(columns, geometry.image_size)[:, None, :]
    last = geometry.image_size - 1
    batch = torch.arange(len(images), device=images.device)[:, None, None]
    crops = images[batch, rows.clamp(0, last)[:, :, None], columns.clamp(0, last)[:, None, :]]
    return (crops * inside[..., None]).permute(0, 3, 1, 2)


def plain_views(geometry: ViewGeometry, count: int) -> Tensor:
    """The evaluation view of `count` images: (count, 3) int16."""
    return torch.tensor(geometry.plain_view, dtype=torch.int16).expand(count, 3)


def _inside(positions: Tensor, size: int) -> Tensor:
    return (positions >= 0) & (positions < size)


def evaluation_batches(
    images: Tensor,
    labels: Tensor,
    geometry: ViewGeometry,
    normalisation: Normalisation,
    batch_size: int = 256,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Network inputs (B, 3, h, w) float32 of the plain view, with their labels, on the images' device."""
    for first in range(0, len(images), batch_size):
        block = images[first : first + batch_size]
        views = apply_views(block, plain_views(geometry, len(block)), geometry)
        yield normalisation.apply(views), labels[first : first + batch_size]
