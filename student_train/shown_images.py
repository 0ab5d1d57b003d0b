"""Validation images as a student is shown them: cut and resized once, for a training measures them hundreds of times.

Only the normalisation is left to each evaluation, so that they take a byte a number.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ground.geometry import Rendering
from ground.views import EVALUATED_AT_ONCE, plain_pixels


def takes_no_more(rendering: Rendering) -> bool:
    """Whether images take no more memory as they are shown than as they are stored.

    Otherwise they are not kept: such a student is slow enough that showing them anew is nothing beside it.
    """
    return rendering.size <= rendering.geometry.image_size


@dataclass(frozen=True, slots=True)
class ShownImages:
    """Images to measure a student on.

    Args:
        pixels: (N, 3, h, w) uint8, channels-last in memory, on the device.
        labels: (N,) int64, there too.
        rendering: that they are shown in.
    """

    pixels: Tensor
    labels: Tensor
    rendering: Rendering

    @classmethod
    def of(cls, images: Tensor, labels: Tensor, rendering: Rendering) -> ShownImages:
        """Of base images (N, H, W, 3) uint8, which are not needed any more."""
        shape = (len(images), 3, rendering.size, rendering.size)
        pixels = torch.empty(shape, dtype=torch.uint8, device=images.device, memory_format=torch.channels_last)
        for block, shown in zip(images.split(EVALUATED_AT_ONCE), pixels.split(EVALUATED_AT_ONCE), strict=True):
            shown.copy_(plain_pixels(block, rendering))
        return cls(pixels, labels, rendering)

    def batches(self, rendering: Rendering) -> Iterator[tuple[Tensor, Tensor]]:
        """Those that `ground.views.evaluation_batches` gives, bit for bit."""
        assert rendering == self.rendering, "they were cut for another student"
        for pixels, labels in zip(
            self.pixels.split(EVALUATED_AT_ONCE), self.labels.split(EVALUATED_AT_ONCE), strict=True
        ):
            yield rendering.normalisation.apply(pixels), labels
