"""Knowledge Review (ReviewKD): a student's stages, each fused with the deeper ones, against the teacher's.

Source: Chen et al. 2021, Distilling Knowledge via Knowledge Review, CVPR, arXiv:2104.09044.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from student_train.binding import Binding, Shape
from student_train.losses.base import Recipe
from student_train.losses.batch_norm import LenientBatchNorm2d
from student_train.losses.kinds import CENTRED, Kinds
from student_train.losses.layerwise import LayerwiseLoss
from student_train.losses.requirements import are_vectors_or_maps
from student_train.losses.targets import require_epochs
from student_train.losses.tensors import MAPS, pooled_to, require_positive, same_shape, sum_of_squares
from student_train.signals import Signals

_LEVELS = (4, 2, 1)


def hierarchical_context(student: Tensor, teacher: Tensor) -> Tensor:
    """Weighted mean of the mean squared errors of two maps at full size and average-pooled to 4, 2 and 1 a side.

    Weights are 1, 1/2, 1/4, 1/8, divided by their sum; a size that is not below that of the maps is left out, and the
    next one gets its weight.

    Source: Chen et al. 2021, arXiv:2104.09044, section 3.3 (HCL); weights as in the released code.

    Args:
        student: (B, C, H, W), already of the teacher's shape.
        teacher: (B, C, H, W).

    Raises:
        ValueError: the shapes differ.
    """
    student, teacher = same_shape(student, teacher, MAPS, 4)
    # Pooling is linear: the pooled difference is the difference of the pooled.
    difference = pooled = student - teacher
    loss, weight, total = sum_of_squares(difference) / difference.numel(), 1.0, 1.0
    # Where windows tile the map, the means of a coarser level are those of the finer one's.
    nested = all(side % _LEVELS[0] == 0 for side in difference.shape[2:])
    for level in _LEVELS:
        if level < min(difference.shape[2:]):
            weight /= 2
            total += weight
            pooled = pooled_to(pooled if nested else difference, (level, level))
            loss = loss + weight * sum_of_squares(pooled) / pooled.numel()
    return loss / total


class ReviewKD(LayerwiseLoss):
    """Sum over layers of HCL(f(s), t); f fuses a layer with the deeper ones by attention, HCL: MSE at 4 pool sizes.

    Args:
        layers: pairs from shallow to deep, as in `Needs.outputs`; vectors count as 1x1 maps. The released code's
            targets are the teacher's pre-activations: layer1:layer1.pre+layer2:layer2.pre+layer3:layer3.pre+pooled.
        mid_channels: width of the fusion, at most that of the deepest layer; 512 in the released code.
        warmup: epochs over which the weight grows linearly, in steps of an epoch: nothing in the first; the released
            code has 20; 0 for none.

    Note:
        targets are stages after their activation; maps of another size than the teacher's take the nearest positions.

    Recipe:
        the released CIFAR-100 runs: 5 for wrn_40_2 to wrn_16_2, wrn_40_1 or ShuffleNetV1 and for resnet32x4 to
        resnet8x4 or ShuffleNetV1; 8 for resnet32x4 to ShuffleNetV2, 1 for resnet110 to 32, 0.6 for resnet56 to 20.

    Checked:
        the whole fusion in NumPy.
    """

    name: ClassVar[str] = "reviewkd"
    source: ClassVar[str] = "Chen et al. 2021 (ReviewKD), arXiv:2104.09044, eq. 11 and section 3.3"
    recipe: ClassVar[Recipe] = Recipe(weight=5.0, ce=1.0)
    kinds: ClassVar[Kinds] = CENTRED
    requires = (are_vectors_or_maps,)
    # Whatever it matches goes through learned convolutions.
    constrains_logits = False

    def __init__(self, layers: str = "stages+pooled", mid_channels: int = 512, warmup: int = 0) -> None:
        super().__init__(layers)
        require_positive(mid_channels=mid_channels)
        require_epochs(warmup)
        self.layers, self.mid_channels, self.warmup = layers, mid_channels, warmup
        self.fusions = nn.ModuleList()

    def build(self, binding: Binding) -> None:
        """A fusion for each layer, the deepest first."""
        shapes = binding.shapes(self.pairs)
        mid = min(self.mid_channels, shapes[-1][0][0])
        for student, teacher in reversed(shapes):
            deepest = not self.fusions
            self.fusions.append(_Fusion(student[0], mid, teacher, deepest=deepest))

    def summands(self, signals: Signals) -> Iterator[Tensor]:
        """One for each layer, from the deepest up."""
        deeper: Tensor | None = None
        for fusion, (student, teacher) in zip(self.fusions, reversed(self.outputs(signals)), strict=True):
            fused, deeper = fusion(_as_map(student), deeper)
            yield hierarchical_context(fused, _as_map(teacher))

    def forward(self, signals: Signals) -> Tensor:
        """The sum of all, times the share that warm-up has reached."""
        share = min(1.0, math.floor(signals.moment.epoch) / self.warmup) if self.warmup else 1.0
        return share * super().forward(signals)


class _Fusion(nn.Module):
    """Attention-based fusion of one layer with what came from the deeper ones.

    Source: Chen et al. 2021, arXiv:2104.09044, section 3.3 and figure 3; convolutions, normalisation and initial
    weights as in the released code.

    Args:
        channels: of the student's map.
        mid: channels that all layers are brought to.
        target: shape of the teacher's output.
        deepest: nothing came before.
    """

    def __init__(self, channels: int, mid: int, target: Shape, *, deepest: bool) -> None:
        super().__init__()
        self.size = tuple(target[1:]) or (1, 1)
        self.narrow = nn.Sequential(nn.Conv2d(channels, mid, 1, bias=False), LenientBatchNorm2d(mid))
        self.attention = None if deepest else nn.Conv2d(2 * mid, 2, 1)
        self.widen = nn.Sequential(nn.Conv2d(mid, target[0], 3, padding=1, bias=False), LenientBatchNorm2d(target[0]))
        for convolution in (self.narrow[0], self.widen[0]):
            assert isinstance(convolution, nn.Conv2d)
            nn.init.kaiming_uniform_(convolution.weight, a=1)

    def forward(self, maps: Tensor, deeper: Tensor | None) -> tuple[Tensor, Tensor]:
        """What is compared with the teacher, and what is handed on to the next layer up."""
        mixed: Tensor = self.narrow(maps)
        if self.attention is not None:
            assert deeper is not None
            deeper = _resized(deeper, tuple(mixed.shape[2:]))
            mixed = mixed_by_shares(self.attention, mixed, deeper)
        mixed = _resized(mixed, self.size)
        return self.widen(mixed), mixed


def mixed_by_shares(attention: nn.Conv2d, mixed: Tensor, deeper: Tensor) -> Tensor:
    """Both maps (B, C, H, W), by the shares of every position that a 1x1 convolution of the two gives them."""
    one, other = (maps.movedim(1, 3).flatten(1, 2) for maps in (mixed, deeper))
    assert attention.bias is not None
    found: Tensor = _MixedByShares.apply(one, other, attention.weight.flatten(1), attention.bias)[0]
    placed: Tensor = found.unflatten(1, tuple(mixed.shape[2:]))
    return placed.movedim(3, 1)


class _MixedByShares(torch.autograd.Function):
    """`mixed_by_shares` of positions (B, P, C), with weights (2, 2C).

    The maps are not put side by side, and products with two outputs are taken a sample at a time: of all positions at
    once, as in a convolution, they and their gradients take four times as long.
    """

    @staticmethod
    def forward(ctx: Any, one: Tensor, other: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        first, second = weight.split(one.shape[2], dim=1)
        shares = torch.sigmoid(one @ first.T + other @ second.T + bias)
        ctx.save_for_backward(one, other, weight, shares)
        # The shares are put out too, so that a gradient's gradient goes back through them.
        return torch.addcmul(one * shares[..., :1], other, shares[..., 1:]), shares

    @staticmethod
    def backward(ctx: Any, outer: Tensor, of_shares: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        one, other, weight, shares = ctx.saved_tensors
        of_shares = of_shares + torch.stack([(outer * maps).sum(dim=2) for maps in (one, other)], dim=2)
        scores = of_shares * shares * (1 - shares)
        of_maps = [
            torch.baddbmm(outer * share, scores, part.expand(len(one), -1, -1))
            for share, part in zip(shares.split(1, dim=2), weight.split(one.shape[2], dim=1), strict=True)
        ]
        of_weight = torch.cat([(scores.mT @ maps).sum(dim=0) for maps in (one, other)], dim=1)
        return of_maps[0], of_maps[1], of_weight, scores.sum(dim=(0, 1))


def _as_map(tensor: Tensor) -> Tensor:
    return tensor if tensor.dim() == 4 else tensor[:, :, None, None]


def _resized(maps: Tensor, size: tuple[int, ...]) -> Tensor:
    return maps if tuple(maps.shape[2:]) == size else F.interpolate(maps, size, mode="nearest")
