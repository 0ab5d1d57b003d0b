"""MobileNetV2 at half width, for CIFAR.

Source: Sandler et al. 2018, arXiv:1801.04381; keys, shapes and numbers follow the CRD benchmark's
checkpoints.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn

from models.staged import BodyMaps, StagedNetwork, conv1x1, conv3x3, he_normal_

_WIDTH = 0.5
_LAST = 1280
# Expansion, channels before the width factor, blocks, stride of the first one.
_SETTINGS = (
    (1, 16, 1, 1),
    (6, 24, 2, 1),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
# Feature maps are taken after these groups of blocks.
_TAPS = (1, 2, 4, 6)


class InvertedResidual(nn.Module):
    """Widen, convolve each channel, narrow without activation; a shortcut where the shape stays."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = inputs * expansion
        self.has_shortcut = stride == 1 and inputs == outputs
        self.conv = nn.Sequential(
            conv1x1(inputs, inner),
            nn.BatchNorm2d(inner),
            nn.ReLU(inplace=True),
            conv3x3(inner, inner, stride, groups=inner),
            nn.BatchNorm2d(inner),
            nn.ReLU(inplace=True),
            conv1x1(inner, outputs),
            nn.BatchNorm2d(outputs),
        )

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W)."""
        changed: Tensor = self.conv(images)
        return changed.add_(images) if self.has_shortcut else changed


class MobileNetV2(StagedNetwork):
    """A strided stem, seven groups of inverted residuals, a wide 1x1 convolution."""

    num_stages = 4

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        channels = int(32 * _WIDTH)
        self.conv1 = nn.Sequential(conv3x3(3, channels, 2), nn.BatchNorm2d(channels), nn.ReLU(inplace=True))
        groups = []
        for expansion, width, blocks, stride in _SETTINGS:
            outputs = int(width * _WIDTH)
            first = InvertedResidual(channels, outputs, stride, expansion)
            rest = (InvertedResidual(outputs, outputs, 1, expansion) for _ in range(blocks - 1))
            groups.append(nn.Sequential(first, *rest))
            channels = outputs
        self.blocks = nn.ModuleList(groups)
        self.conv2 = nn.Sequential(conv1x1(channels, _LAST), nn.BatchNorm2d(_LAST), nn.ReLU(inplace=True))
        self.classifier = nn.Sequential(nn.Linear(_LAST, num_classes))
        he_normal_(self)
        nn.init.normal_(self.head.weight, 0.0, 0.01)
        nn.init.zeros_(self.head.bias)

    @property
    def head(self) -> nn.Linear:
        """See `StagedNetwork.head`."""
        return cast(nn.Linear, self.classifier[0])

    def trace(self, images: Tensor) -> BodyMaps:
        """See `StagedNetwork.trace`; the blocks end without activation, so each map is its own pre-activation."""
        stem = self.conv1(images)
        maps, current = [], stem
        for place, group in enumerate(self.blocks):
            current = group(current)
            if place in _TAPS:
                maps.append((current, current))
        return BodyMaps(stem, maps, self.conv2(current))

    def _norms_of_stages(self) -> Sequence[Tensor | nn.Module]:
        """See `Network.stage_norms`."""
        return [_last_norm(self.blocks[place]) for place in _TAPS]


def _last_norm(group: nn.Module) -> nn.BatchNorm2d:
    return [module for module in group.modules() if isinstance(module, nn.BatchNorm2d)][-1]
