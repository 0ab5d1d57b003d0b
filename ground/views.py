"""Views: one augmentation of a base image, shared by both stages.

The teacher sees a view in stage one; stage two can replay the very same pixels, because a view is a few small
integers and both stages cut it with the same function. It is a square of the size that the geometry says (top, left,
flip), or a box with a height and a width of its own. Cropping happens on uint8 pixels, before normalisation, so the
padding is black as in torchvision's `RandomCrop` on images.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ground.boxes import NUM_DRAWN, box_of, cut_boxes
from ground.geometry import VIEW_POLICIES, Rendering, ViewGeometry, numbers_of_view, shows_boxes

# Numbers that torch works on by one thread.
_NOT_SHARED = (1 << 15) - 1
# Images of a batch of an evaluation.
EVALUATED_AT_ONCE = 256


def draw_views(geometry: ViewGeometry, count: int, generator: torch.Generator, *, boxes: bool = False) -> Tensor:
    """Random views, on the CPU.

    Args:
        boxes: draw boxes of any area and aspect, and not crops.

    Returns:
        (count, 3) int16, crops and flips, uniform as in the CIFAR protocol; or (count, 5) int16, boxes.
    """
    if boxes:
        drawn = torch.rand(count, NUM_DRAWN, generator=generator, dtype=torch.float64).tolist()
        found = [box_of(numbers, geometry.image_size, flips=geometry.flips) for numbers in drawn]
        return torch.tensor(found, dtype=torch.int16)
    offsets = torch.randint(0, geometry.num_offsets, (count, 2), generator=generator)
    flips = torch.randint(0, 1 + geometry.flips, (count, 1), generator=generator)
    return torch.cat([offsets, flips], dim=1).to(torch.int16)


def sample_views(
    geometry: ViewGeometry, policy: str, *, seed: int, source_index: np.ndarray, num_views: int
) -> np.ndarray:
    """The views that the teacher sees of each image: (n, V, 3) int16, or (n, V, 5) of boxes.

    A view depends on (seed, source index, view number) alone, so a sample that grows keeps the views it had.
    """
    if policy not in VIEW_POLICIES:
        raise ValueError(f"view policy {policy!r} is not one of {VIEW_POLICIES}")
    views = np.empty((len(source_index), num_views, numbers_of_view(policy)), dtype=np.int16)
    if policy == "plain":
        views[:] = geometry.plain_view
        return views
    for row, index in enumerate(source_index.tolist()):
        if shows_boxes(policy):
            views[row] = [_box(geometry, seed, index, view) for view in range(num_views)]
            continue
        rng = np.random.default_rng([seed, index])
        views[row, :, :2] = rng.integers(0, geometry.num_offsets, size=(num_views, 2))
        views[row, :, 2] = rng.integers(0, 1 + geometry.flips, size=num_views)
    return views


def _box(geometry: ViewGeometry, seed: int, index: int, view: int) -> tuple[int, ...]:
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(index, view)))
    return box_of(rng.random(NUM_DRAWN).tolist(), geometry.image_size, flips=geometry.flips)


def view_pixels(images: Tensor, views: Tensor, rendering: Rendering) -> Tensor:
    """Look at one view of each image, on the images' device: squares as they are cut, boxes at the network's size.

    Args:
        images: (B, H, W, 3) uint8 base images.
        views: (B, 3) or (B, 5) integers.

    Returns:
        (B, 3, h, w) uint8, channels-last in memory.

    Raises:
        IndexError: a box does not lie inside its image.
    """
    if views.shape[1] == 3:
        return apply_views(images, views, rendering.geometry)
    shape = (len(images), 3, rendering.size, rendering.size)
    pixels = torch.empty(shape, dtype=torch.uint8, device=images.device, memory_format=torch.channels_last)
    for place, box in enumerate(cut_boxes(images, views)):
        pixels[place] = resize(box[None], rendering.size, rendering.interpolation)[0]
    return pixels


def apply_views(images: Tensor, views: Tensor, geometry: ViewGeometry) -> Tensor:
    """Cut one square from each image, on the images' device.

    Args:
        images: (B, H, W, 3) uint8 base images.
        views: (B, 3) integers top, left, flip.
        geometry: sizes that `images` and `views` were made for.

    Returns:
        (B, 3, h, w) uint8, channels-last in memory.
    """
    # A CPU copies whole lines much faster than it gathers pixels; a GPU is faster with few large steps.
    cut = cut_by_lines if images.device.type == "cpu" else cut_by_pixels
    return cut(images, views, geometry).permute(0, 3, 1, 2)


def cut_by_lines(images: Tensor, views: Tensor, geometry: ViewGeometry) -> Tensor:
    """Image after image; see `apply_views`: (B, h, w, 3)."""
    side, source = geometry.crop_size, images.numpy()
    squares = np.zeros((len(images), side, side, 3), dtype=np.uint8)
    for image, square, (top, left, _) in zip(source, squares, views.tolist(), strict=True):
        rows, rows_there = _overlap(top - geometry.padding, side, geometry.image_size)
        columns, columns_there = _overlap(left - geometry.padding, side, geometry.image_size)
        square[rows, columns] = image[rows_there, columns_there]
    flipped = [place for place, flip in enumerate(views[:, 2].tolist()) if flip > 0]
    squares[flipped] = _mirrored(squares[flipped])
    return torch.from_numpy(squares)


def _mirrored(squares: np.ndarray) -> np.ndarray:
    """Squares, (n, h, w, 3) uint8 and contiguous, with their lines reversed in place."""
    lines = torch.from_numpy(squares).view(-1, *squares.shape[2:])
    # Several times faster than a reversed view, whose pixels have three bytes; few enough lines at once that torch does
    # not share them out to threads, which would wait for each other.
    for part in lines.split(max(1, _NOT_SHARED // (3 * squares.shape[2]))):
        part.copy_(part.flip(1))
    return squares


def _overlap(first: int, side: int, size: int) -> tuple[slice, slice]:
    """The part of first..first + side that is in 0..size: as seen from `first`, and as it is."""
    start = max(first, 0)
    stop = max(start, min(first + side, size))
    return slice(start - first, stop - first), slice(start, stop)


def cut_by_pixels(images: Tensor, views: Tensor, geometry: ViewGeometry) -> Tensor:
    """All images at once; see `apply_views`: (B, h, w, 3)."""
    views = views.to(images.device, torch.int64)
    top, left, flip = views.unbind(dim=1)
    span = torch.arange(geometry.crop_size, device=images.device)
    rows = top[:, None] + span - geometry.padding
    columns = torch.where(flip[:, None] > 0, span.flip(0), span) + left[:, None] - geometry.padding
    inside = _inside(rows, geometry.image_size)[:, :, None] & _inside(columns, geometry.image_size)[:, None, :]
    last = geometry.image_size - 1
    batch = torch.arange(len(images), device=images.device)[:, None, None]
    crops = images[batch, rows.clamp(0, last)[:, :, None], columns.clamp(0, last)[:, None, :]]
    return crops * inside[..., None]


def render(views: Tensor, rendering: Rendering) -> Tensor:
    """Views as a network is given them: resized where it has a size of its own, and normalised.

    Args:
        views: (B, 3, h, w) uint8.

    Returns:
        (B, 3, H, W) float32.
    """
    return rendering.normalisation.apply(resize(views, rendering.size, rendering.interpolation))


def resize(views: Tensor, size: int, interpolation: str) -> Tensor:
    """Pixels (B, 3, h, w) uint8 at another size, antialiased and rounded as Pillow does it; the same size is left."""
    if views.shape[-2:] == (size, size):
        return views
    # PyTorch has its own for bytes on the CPU alone; elsewhere the rounding is ours.
    pixels = views if views.device.type == "cpu" else views.float()
    resized = F.interpolate(pixels, size=(size, size), mode=interpolation, align_corners=False, antialias=True)
    return resized if resized.dtype == torch.uint8 else resized.round_().clamp_(0, 255).to(torch.uint8)


def plain_views(geometry: ViewGeometry, count: int) -> Tensor:
    """The evaluation view of `count` images: (count, 3) int16."""
    return torch.tensor(geometry.plain_view, dtype=torch.int16).expand(count, 3)


def _inside(positions: Tensor, size: int) -> Tensor:
    return (positions >= 0) & (positions < size)


def evaluation_batches(
    images: Tensor, labels: Tensor, rendering: Rendering, batch_size: int = EVALUATED_AT_ONCE
) -> Iterator[tuple[Tensor, Tensor]]:
    """Network inputs (B, 3, h, w) float32 of the plain view, with their labels, on the images' device."""
    for first in range(0, len(images), batch_size):
        pixels = plain_pixels(images[first : first + batch_size], rendering)
        yield rendering.normalisation.apply(pixels), labels[first : first + batch_size]


def plain_pixels(images: Tensor, rendering: Rendering) -> Tensor:
    """The plain view of base images, (B, H, W, 3) uint8, at the network's size: (B, 3, h, w) uint8."""
    views = apply_views(images, plain_views(rendering.geometry, len(images)), rendering.geometry)
    return resize(views, rendering.size, rendering.interpolation)
