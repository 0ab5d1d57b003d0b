"""VGG with batch norm and one linear layer, for CIFAR.

Source: Simonyan and Zisserman 2015, arXiv:1409.1556; keys, shapes and numbers follow the CRD benchmark's
checkpoints.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.staged import BodyMaps, StagedNetwork, he_normal_

_WIDTHS = (64, 128, 256, 512, 512)
_LARGE_IMAGE = 64


class VGG(StagedNetwork):
    """Five blocks with max pooling between; the first block's map is the stem.

    Args:
        depths: convolutions in each block.
    """

    num_stages = 4

    def __init__(self, depths: Sequence[int], num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        inputs = (3, *_WIDTHS)
        self.block0, self.block1, self.block2, self.block3, self.block4 = (
            _block(inputs[place], width, depth)
            for place, (width, depth) in enumerate(zip(_WIDTHS, depths, strict=True))
        )
        self.classifier = nn.Linear(_WIDTHS[-1], num_classes)
        he_normal_(self)
        nn.init.normal_(self.classifier.weight, 0.0, 0.01)
        nn.init.zeros_(self.classifier.bias)

    @property
    def head(self) -> nn.Linear:
        """See `StagedNetwork.head`."""
        return self.classifier

    def trace(self, images: Tensor) -> BodyMaps:
        """See `StagedNetwork.trace`."""
        # The benchmark pools a fourth time for 64-pixel images, and for them alone.
        pools = (True, True, True, images.shape[2] == _LARGE_IMAGE)
        after = stem = torch.relu(self.block0(images))
        ends = []
        for pool, block in zip(pools, (self.block1, self.block2, self.block3, self.block4), strict=True):
            before = block(F.max_pool2d(after, 2) if pool else after)
            after = torch.relu(before)
            ends.append((after, before))
        return BodyMaps(stem, ends, after)

    def _norms_of_stages(self) -> Sequence[Tensor | nn.Module]:
        """See `Network.stage_norms`."""
        return [block[-1] for block in (self.block1, self.block2, self.block3, self.block4)]


def _block(inputs: int, outputs: int, depth: int) -> nn.Sequential:
    """Convolutions with batch norm, ReLU between them and none at the end."""
    layers: list[nn.Module] = []
    for place in range(depth):
        if place:
            layers.append(nn.ReLU(inplace=True))
        convolution = nn.Conv2d(inputs if place == 0 else outputs, outputs, 3, padding=1)
        layers += [convolution, nn.BatchNorm2d(outputs)]
    return nn.Sequential(*layers)
