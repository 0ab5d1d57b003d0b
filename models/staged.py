"""The shape that all networks of the zoo share: a stem, some stages, and a linear head on what is pooled.

Subclasses say what those are; naming, pooling and the order of the features are here, once.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ground.layers import BEFORE, LAST, POOLED, STEM
from models.network import Network, require_extras
from models.representation import Representation


@dataclass(frozen=True, slots=True)
class BodyMaps:
    """What the body of a network leaves behind.

    Args:
        stem: the first map.
        stages: (feature map, its pre-activation) of each stage.
        last: the map that is pooled.
    """

    stem: Tensor
    stages: list[tuple[Tensor, Tensor]]
    last: Tensor


class StagedNetwork(Network):
    """A network of the zoo.

    Attributes:
        num_stages: named feature maps between stem and pooled vector.
    """

    num_stages: int

    @abstractmethod
    def trace(self, images: Tensor) -> BodyMaps:
        """Everything before the pooling, for (B, 3, H, W) normalised images."""

    @property
    @abstractmethod
    def head(self) -> nn.Linear:
        """The last layer: pooled vector to logits."""

    @property
    def feature_names(self) -> tuple[str, ...]:
        """stem, layer1, ..., pooled."""
        return (STEM, *self._stage_names, POOLED)

    @property
    def extra_names(self) -> tuple[str, ...]:
        """Each stage before its last ReLU (layer1.pre, ...), and the map that is pooled (last)."""
        return (*(f"{stage}{BEFORE}" for stage in self._stage_names), LAST)

    @property
    def stage_norms(self) -> Mapping[str, nn.BatchNorm2d]:
        """See `Network.stage_norms`."""
        norms = self._norms_of_stages()
        found = {}
        for stage, norm in zip(self._stage_names if norms else (), norms, strict=True):
            assert isinstance(norm, nn.BatchNorm2d)
            found[stage] = norm
        return found

    def represent(self, images: Tensor, extras: Collection[str] = ()) -> Representation:
        """See `Network.represent`."""
        require_extras(self, extras)
        trace = self.trace(images)
        pooled = F.adaptive_avg_pool2d(trace.last, 1).flatten(1)
        maps = [trace.stem, *(feature for feature, _ in trace.stages), pooled]
        more = zip(self.extra_names, [*(before for _, before in trace.stages), trace.last], strict=True)
        features = dict(zip(self.feature_names, maps, strict=True))
        features |= {name: tensor for name, tensor in more if name in extras}
        return Representation(logits=self.head(pooled), features=features)

    @property
    def _stage_names(self) -> tuple[str, ...]:
        return tuple(f"layer{stage}" for stage in range(1, self.num_stages + 1))

    def _norms_of_stages(self) -> Sequence[Tensor | nn.Module]:
        """See `stage_norms`: one for each stage, or none."""
        return ()


def he_normal_(network: nn.Module) -> None:
    """Convolutions from N(0, 2 / fan_out), batch norm at one and zero: He et al. 2015."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            # The benchmark's fan-out does not divide by groups.
            fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels
            nn.init.normal_(module.weight, 0.0, (2.0 / fan_out) ** 0.5)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)


def shuffle_channels(images: Tensor, groups: int) -> Tensor:
    """Interleave the channels of `groups` groups (ShuffleNet, eq. in section 3.1)."""
    # torch's own keeps channels-last memory where a reshape would lose it.
    return F.channel_shuffle(images, groups)


def conv3x3(inputs: int, outputs: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """3x3 convolution that keeps the size at stride 1."""
    return nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, groups=groups, bias=False)


def conv1x1(inputs: int, outputs: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """1x1 convolution."""
    return nn.Conv2d(inputs, outputs, 1, stride=stride, groups=groups, bias=False)


def relu_(tensor: Tensor) -> Tensor:
    """ReLU in place; only for tensors that nobody captured."""
    return torch.relu_(tensor)
