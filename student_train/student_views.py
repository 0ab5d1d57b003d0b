"""What a student is shown of images in a step: views that are drawn anew each time, by (seed, step) alone.

Replaying the stored views, which is no drawing, is `student_train.data`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ground.errors import InvalidInput
from ground.geometry import Rendering
from ground.views import draw_views, render, resize, view_pixels
from student_train.method_spec import MethodSpec
from student_train.sampling import AllViews

# Pixels (B, 3, h, w) uint8 at the size of the network's input -> the same, changed by what they draw.
Change = Callable[[Tensor, torch.Generator], Tensor]


@dataclass(frozen=True, slots=True)
class Drawing:
    """How views of one kind are drawn.

    Args:
        boxes: of any area and aspect, also where the store's views are crops.
        change: what is done to the pixels then; None leaves them.
    """

    boxes: bool = False
    change: Change | None = None


def _trivially_augmented(pixels: Tensor, generator: torch.Generator) -> Tensor:
    # torchvision takes more than a second to import, which only those who use it should wait for.
    from student_train.trivial_augment import trivial_augment

    return trivial_augment(pixels, generator)


DRAWINGS: Mapping[str, Drawing] = {
    "fresh": Drawing(),
    "resized": Drawing(boxes=True),
    "trivial": Drawing(change=_trivially_augmented),
}


def show(images: Tensor, kind: str, rendering: Rendering, generator: torch.Generator, *, boxes: bool) -> Tensor:
    """A network's inputs from new views of images, on their device.

    Args:
        images: (B, H, W, 3) uint8 base images.
        kind: of `DRAWINGS`.
        rendering: how the network is shown images.
        generator: on the CPU; all that is random comes from it.
        boxes: the store's views are boxes, so that those of every kind are.

    Returns:
        (B, 3, h, w) float32.
    """
    drawing = DRAWINGS[kind]
    views = draw_views(rendering.geometry, len(images), generator, boxes=boxes or drawing.boxes)
    pixels = view_pixels(images, views, rendering)
    if drawing.change is not None:
        pixels = drawing.change(resize(pixels, rendering.size, rendering.interpolation), generator)
    return render(pixels, rendering)


def require_drawn(kind: str, method: MethodSpec, num_views: int) -> None:
    """Raise `InvalidInput` for views that are asked for and would not be drawn.

    Args:
        num_views: that the store has of each image.
    """
    asked = kind in DRAWINGS and DRAWINGS[kind] != DRAWINGS["fresh"]
    if asked and isinstance(method.sampling_of(num_views), AllViews):
        raise InvalidInput(
            f"{method.name} shows the student every stored view of an image, so that no {kind} one would be drawn; "
            "leave the student's view out, or give another method"
        )
