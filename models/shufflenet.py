"""ShuffleNet V1 (3 groups) and V2 (size 1) with a 1x1 stem, for CIFAR.

Sources: Zhang et al. 2018, arXiv:1707.01083; Ma et al. 2018, arXiv:1807.11164. Keys, shapes and numbers
follow the CRD benchmark's checkpoints.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.staged import BodyMaps, StagedNetwork, conv1x1, conv3x3, relu_, shuffle_channels

_STEM = 24
_V1_GROUPS = 3
_V1_STAGES = ((240, 4), (480, 8), (960, 4))
_V2_STAGES = ((116, 3), (232, 7), (464, 3))
_V2_LAST = 1024


class ShuffleBottleneck(nn.Module):
    """V1: grouped 1x1, shuffle, 3x3 per channel, grouped 1x1; appends the pooled input where it strides."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        inner = outputs // 4
        # The stem has too few channels to be grouped.
        self.first_groups = 1 if inputs == _STEM else _V1_GROUPS
        self.stride = stride
        self.conv1 = conv1x1(inputs, inner, groups=self.first_groups)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = conv3x3(inner, inner, stride, groups=inner)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = conv1x1(inner, outputs, groups=_V1_GROUPS)
        self.bn3 = nn.BatchNorm2d(outputs)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, H, W) after and before the last ReLU."""
        inner = shuffle_channels(relu_(self.bn1(self.conv1(images))), self.first_groups)
        inner = self.bn3(self.conv3(relu_(self.bn2(self.conv2(inner)))))
        if self.stride == 2:
            before = torch.cat([inner, F.avg_pool2d(images, 3, stride=2, padding=1)], dim=1)
        else:
            before = inner.add_(images)
        return torch.relu(before), before


class SplitBlock(nn.Module):
    """V2 at stride 1: half of the channels pass untouched.

    The pre-activation is not shuffled while the map is, as in the benchmark: its channels are in another
    order.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.conv1 = conv1x1(half, half)
        self.bn1 = nn.BatchNorm2d(half)
        self.conv2 = conv3x3(half, half, groups=half)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = conv1x1(half, half)
        self.bn3 = nn.BatchNorm2d(half)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, H, W) after and before the last ReLU."""
        kept, changed = images.chunk(2, dim=1)
        changed = self.bn2(self.conv2(relu_(self.bn1(self.conv1(changed)))))
        changed = self.bn3(self.conv3(changed))
        after = shuffle_channels(torch.cat([kept, torch.relu(changed)], dim=1), 2)
        return after, torch.cat([kept, changed], dim=1)


class DownBlock(nn.Module):
    """V2 at stride 2: both branches convolve, then concatenate."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        half = outputs // 2
        self.conv1 = conv3x3(inputs, inputs, 2, groups=inputs)
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv2 = conv1x1(inputs, half)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = conv1x1(inputs, half)
        self.bn3 = nn.BatchNorm2d(half)
        self.conv4 = conv3x3(half, half, 2, groups=half)
        self.bn4 = nn.BatchNorm2d(half)
        self.conv5 = conv1x1(half, half)
        self.bn5 = nn.BatchNorm2d(half)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, H / 2, W / 2) twice: no stage ends here, so nobody asks for its pre-activation."""
        left = relu_(self.bn2(self.conv2(self.bn1(self.conv1(images)))))
        right = self.bn4(self.conv4(relu_(self.bn3(self.conv3(images)))))
        right = relu_(self.bn5(self.conv5(right)))
        joined = shuffle_channels(torch.cat([left, right], dim=1), 2)
        return joined, joined


class ShuffleNet(StagedNetwork):
    """A 1x1 stem and three stages; V2 ends in one more 1x1 convolution."""

    num_stages = 3
    conv1: nn.Conv2d
    bn1: nn.BatchNorm2d
    linear: nn.Linear
    layer1: nn.ModuleList
    layer2: nn.ModuleList
    layer3: nn.ModuleList

    @property
    def head(self) -> nn.Linear:
        """See `StagedNetwork.head`."""
        return self.linear

    def finish(self, images: Tensor) -> Tensor:
        """The map that is pooled."""
        return images

    def trace(self, images: Tensor) -> BodyMaps:
        """See `StagedNetwork.trace`."""
        after = stem = relu_(self.bn1(self.conv1(images)))
        ends = []
        for stage in (self.layer1, self.layer2, self.layer3):
            for block in stage:
                after, before = block(after)
            ends.append((after, before))
        return BodyMaps(stem, ends, self.finish(after))


class ShuffleV1(ShuffleNet):
    """ShuffleNet V1 with three groups."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.conv1 = conv1x1(3, _STEM)
        self.bn1 = nn.BatchNorm2d(_STEM)
        widths = (_STEM, *(width for width, _ in _V1_STAGES))
        self.layer1, self.layer2, self.layer3 = (
            nn.ModuleList(
                [
                    # The pooled input is concatenated, so the block makes the rest of the channels.
                    ShuffleBottleneck(widths[place], width - widths[place], 2),
                    *(ShuffleBottleneck(width, width, 1) for _ in range(blocks - 1)),
                ]
            )
            for place, (width, blocks) in enumerate(_V1_STAGES)
        )
        self.linear = nn.Linear(widths[-1], num_classes)


class ShuffleV2(ShuffleNet):
    """ShuffleNet V2 at size 1."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.conv1 = conv1x1(3, _STEM)
        self.bn1 = nn.BatchNorm2d(_STEM)
        widths = (_STEM, *(width for width, _ in _V2_STAGES))
        self.layer1, self.layer2, self.layer3 = (
            nn.ModuleList([DownBlock(widths[place], width), *(SplitBlock(width) for _ in range(blocks))])
            for place, (width, blocks) in enumerate(_V2_STAGES)
        )
        self.conv2 = conv1x1(widths[-1], _V2_LAST)
        self.bn2 = nn.BatchNorm2d(_V2_LAST)
        self.linear = nn.Linear(_V2_LAST, num_classes)

    def finish(self, images: Tensor) -> Tensor:
        """See `ShuffleNet.finish`."""
        return relu_(self.bn2(self.conv2(images)))
