"""Wide residual networks, pre-activation, for CIFAR.

Source: Zagoruyko and Komodakis 2016, arXiv:1605.07146; keys, shapes and numbers follow the CRD benchmark's
checkpoints. The stem's feature is the bare convolution, and a stage's feature its bare sum, as in that
benchmark: the ReLU that would follow belongs to the next block.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.staged import BodyMaps, StagedNetwork, conv1x1, conv3x3, he_normal_, relu_


class PreActivationBlock(nn.Module):
    """Batch norm and ReLU before each of two convolutions; where the width changes, also before the shortcut.

    Returns the sum, and the block's input after its batch norm: the pre-activation of the stage before.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = conv3x3(inputs, outputs, stride)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = conv3x3(outputs, outputs)
        self.convShortcut = conv1x1(inputs, outputs, stride) if inputs != outputs else None

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C', H', W') sum and (B, C, H, W) normalised input."""
        normalised = self.bn1(images)
        active = torch.relu(normalised)
        inner = self.conv2(relu_(self.bn2(self.conv1(active))))
        shortcut = images if self.convShortcut is None else self.convShortcut(active)
        return inner.add_(shortcut), normalised


class Stage(nn.Module):
    """A stack of blocks, under the benchmark's name `layer`."""

    def __init__(self, inputs: int, outputs: int, blocks: int, stride: int) -> None:
        super().__init__()
        first = PreActivationBlock(inputs, outputs, stride)
        self.layer = nn.ModuleList([first, *(PreActivationBlock(outputs, outputs, 1) for _ in range(blocks - 1))])

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The last block's sum, and the first block's normalised input."""
        images, entering = self.layer[0](images)
        for block in list(self.layer)[1:]:
            images, _ = block(images)
        return images, entering


class WideResNet(StagedNetwork):
    """Three stages, depth = 6 * blocks + 4.

    Args:
        depth: 16 or 40.
        factor: how much wider than 16, 32 and 64 channels.
    """

    num_stages = 3

    def __init__(self, depth: int, factor: int, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        widths = (16, 16 * factor, 32 * factor, 64 * factor)
        blocks = (depth - 4) // 6
        self.conv1 = conv3x3(3, widths[0])
        self.block1 = Stage(widths[0], widths[1], blocks, stride=1)
        self.block2 = Stage(widths[1], widths[2], blocks, stride=2)
        self.block3 = Stage(widths[2], widths[3], blocks, stride=2)
        self.bn1 = nn.BatchNorm2d(widths[3])
        self.fc = nn.Linear(widths[3], num_classes)
        he_normal_(self)
        nn.init.zeros_(self.fc.bias)

    @property
    def head(self) -> nn.Linear:
        """See `StagedNetwork.head`."""
        return self.fc

    def trace(self, images: Tensor) -> BodyMaps:
        """See `StagedNetwork.trace`; a stage's pre-activation is made by the batch norm that follows it."""
        stem = self.conv1(images)
        sum1, _ = self.block1(stem)
        sum2, before1 = self.block2(sum1)
        sum3, before2 = self.block3(sum2)
        before3 = self.bn1(sum3)
        return BodyMaps(stem, [(sum1, before1), (sum2, before2), (sum3, before3)], torch.relu(before3))

    def _norms_of_stages(self) -> Sequence[Tensor | nn.Module]:
        """See `Network.stage_norms`."""
        return [self.block2.layer[0].bn1, self.block3.layer[0].bn1, self.bn1]
