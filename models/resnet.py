"""Residual networks for CIFAR, and ResNet-50 with a 3x3 stem.

Source: He et al. 2016, arXiv:1512.03385; keys, shapes and numbers follow the CRD benchmark's checkpoints.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.staged import BodyMaps, StagedNetwork, conv1x1, conv3x3, he_normal_, relu_


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut; returns the map after and before the last ReLU."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv3x3(inputs, outputs, stride)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = conv3x3(outputs, outputs)
        self.bn2 = nn.BatchNorm2d(outputs)
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(conv1x1(inputs, outputs, stride), nn.BatchNorm2d(outputs))
        else:
            self.downsample = nn.Sequential()

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, H, W) twice."""
        inner = self.bn2(self.conv2(relu_(self.bn1(self.conv1(images)))))
        before = inner.add_(self.downsample(images))
        return torch.relu(before), before


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 around a shortcut; four times as many channels out as inside."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = width * self.expansion
        self.conv1 = conv1x1(inputs, width)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv3x3(width, width, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = conv1x1(width, outputs)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(conv1x1(inputs, outputs, stride), nn.BatchNorm2d(outputs))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, H, W) twice."""
        inner = relu_(self.bn2(self.conv2(relu_(self.bn1(self.conv1(images))))))
        before = self.bn3(self.conv3(inner)).add_(self.shortcut(images))
        return torch.relu(before), before


class ResNet(StagedNetwork):
    """Three stages of basic blocks, depth = 6 * blocks + 2.

    Args:
        depth: 8, 14, 20, ...
        widths: channels of the stem and of the three stages.
    """

    num_stages = 3

    def __init__(self, depth: int, widths: Sequence[int], num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.conv1 = conv3x3(3, widths[0])
        self.bn1 = nn.BatchNorm2d(widths[0])
        blocks = (depth - 2) // 6
        self.layer1 = _basic_stage(widths[0], widths[1], blocks, stride=1)
        self.layer2 = _basic_stage(widths[1], widths[2], blocks, stride=2)
        self.layer3 = _basic_stage(widths[2], widths[3], blocks, stride=2)
        self.fc = nn.Linear(widths[3], num_classes)
        he_normal_(self)

    @property
    def head(self) -> nn.Linear:
        """See `StagedNetwork.head`."""
        return self.fc

    def trace(self, images: Tensor) -> BodyMaps:
        """See `StagedNetwork.trace`."""
        return _trace(relu_(self.bn1(self.conv1(images))), [self.layer1, self.layer2, self.layer3])

    def _norms_of_stages(self) -> Sequence[Tensor | nn.Module]:
        """See `Network.stage_norms`."""
        return [stage[-1].bn2 for stage in (self.layer1, self.layer2, self.layer3)]


class ResNet50(StagedNetwork):
    """Four stages of 3, 4, 6 and 3 bottlenecks."""

    num_stages = 4

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.conv1 = conv3x3(3, 64)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1 = _bottleneck_stage(64, 64, 3, stride=1)
        self.layer2 = _bottleneck_stage(256, 128, 4, stride=2)
        self.layer3 = _bottleneck_stage(512, 256, 6, stride=2)
        self.layer4 = _bottleneck_stage(1024, 512, 3, stride=2)
        self.linear = nn.Linear(2048, num_classes)
        he_normal_(self)

    @property
    def head(self) -> nn.Linear:
        """See `StagedNetwork.head`."""
        return self.linear

    def trace(self, images: Tensor) -> BodyMaps:
        """See `StagedNetwork.trace`."""
        stem = relu_(self.bn1(self.conv1(images)))
        return _trace(stem, [self.layer1, self.layer2, self.layer3, self.layer4])

    def _norms_of_stages(self) -> Sequence[Tensor | nn.Module]:
        """See `Network.stage_norms`."""
        return [stage[-1].bn3 for stage in (self.layer1, self.layer2, self.layer3, self.layer4)]


def _basic_stage(inputs: int, outputs: int, blocks: int, stride: int) -> nn.ModuleList:
    first = BasicBlock(inputs, outputs, stride)
    return nn.ModuleList([first, *(BasicBlock(outputs, outputs, 1) for _ in range(blocks - 1))])


def _bottleneck_stage(inputs: int, width: int, blocks: int, stride: int) -> nn.ModuleList:
    outputs = width * Bottleneck.expansion
    first = Bottleneck(inputs, width, stride)
    return nn.ModuleList([first, *(Bottleneck(outputs, width, 1) for _ in range(blocks - 1))])


def _trace(stem: Tensor, stages: list[nn.ModuleList]) -> BodyMaps:
    after, ends = stem, []
    for stage in stages:
        for block in stage:
            after, before = block(after)
        ends.append((after, before))
    return BodyMaps(stem, ends, after)
