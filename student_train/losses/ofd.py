"""Overhaul of feature distillation (OFD): match pre-activations where it matters after the ReLU.

Source: Heo et al. 2019, A Comprehensive Overhaul of Feature Distillation, ICCV, arXiv:1904.01866.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import ClassVar

import torch
from torch import Tensor, nn

from student_train.binding import Binding, Shape
from student_train.losses.ab import stage_weights
from student_train.losses.base import Recipe
from student_train.losses.kinds import NONE, Kinds
from student_train.losses.layerwise import LayerwiseLoss
from student_train.losses.requirements import are_maps
from student_train.losses.tensors import maps_of_one_size, same_shape, sum_of_squares, with_gradient
from student_train.needs import LayerPair, Needs
from student_train.signals import Signals

# From here on mean - deviation * density / probability loses its digits, and a continued fraction has them all.
_FAR = 30.0


def partial_l2(student: Tensor, teacher: Tensor, margin: Tensor) -> Tensor:
    """Squared difference to max(teacher, margin), where it matters: summed over elements, batch mean.

    Nothing where the student is at most that target and the target is not positive: it is as negative as it needs
    to be. Source: Heo et al. 2019, arXiv:1904.01866, margin ReLU and partial L2.

    Args:
        student: (B, C, H, W) pre-activations, after the connector.
        teacher: (B, C, H, W) pre-activations.
        margin: (C,), negative: see `negative_mean`.

    Raises:
        ValueError: the shapes differ.
    """
    student, teacher = same_shape(student, teacher, "pre-activations", 4)
    if margin.shape != teacher.shape[1:2]:
        raise ValueError(f"margin is {tuple(margin.shape)}; maps of {teacher.shape[1]} channels need one for each")
    with torch.no_grad():
        target = torch.maximum(teacher, margin.to(teacher.dtype).view(-1, 1, 1))
        difference = student - target
        # Positive targets are matched from below too. By arithmetic: choosing by a mask takes ten times as long.
        least = target.sign_().relu_().mul_(-torch.finfo(target.dtype).max)
        kept = torch.maximum(difference, least)
        value = sum_of_squares(kept) / len(student)
        gradient = kept.mul_(2 / len(student))
    return with_gradient(value, student, gradient)


def negative_mean(mean: Tensor, deviation: Tensor) -> Tensor:
    """E[x | x < 0] of normal x, float64; with a batch norm's shift and scale, OFD's margin of that channel.

    mean - deviation * density(r) / probability(-r) with r = mean / deviation, in logarithms. Where r is large, the
    Mills ratio's continued fraction: -deviation / (r + 2 / (r + 3 / (r + ...))). The released code gives up where
    probability(-r) is at most 0.001, and takes -3 deviations.
    Source: Heo et al. 2019, arXiv:1904.01866, the margin of the margin ReLU.

    Args:
        mean: (C,).
        deviation: (C,), of either sign; 0 is the limit from above.
    """
    mean, deviation = mean.double(), deviation.double().abs().clamp(min=1e-30)
    ratio = mean / deviation
    log_density = -0.5 * (ratio.square() + math.log(2 * math.pi))
    near = ratio - (log_density - torch.special.log_ndtr(-ratio)).exp()
    rest = ratio
    for term in (6, 5, 4, 3, 2):
        rest = ratio + term / rest
    far = -1 / rest
    return deviation * torch.where(ratio > _FAR, far, near)


class OFD(LayerwiseLoss):
    """Sum over layers i of partial L2(c(s), max(t, margin)) / 2^(L-1-i), elements summed, batch mean; c is learned.

    c is a 1x1 convolution and batch norm. Where the sizes differ, the larger map is average-pooled: the released code
    has no such pairs. Compared, the margins stay those of single samples.

    Args:
        layers: which pre-activations, as in `Needs.outputs`.

    Note:
        exact margins (the released code switches to -3 deviations in the tail); refused for teachers without a batch
        norm before the activation (ShuffleNets).

    Checked:
        the margin against SciPy's truncated normal.
    """

    name: ClassVar[str] = "ofd"
    source: ClassVar[str] = "Heo et al. 2019 (ICCV), arXiv:1904.01866, margin ReLU and partial L2"
    recipe: ClassVar[Recipe] = Recipe(weight=0.001, ce=1.0)
    kinds: ClassVar[Kinds] = NONE
    requires = (are_maps,)

    def __init__(self, layers: str = "stages.pre") -> None:
        super().__init__(layers)
        self.layers = layers
        self.connectors = nn.ModuleList()

    @property
    def needs(self) -> Needs:
        """The pre-activations, and the batch norms that made the teacher's."""
        return Needs(outputs=self.layers, norms=True)

    def build(self, binding: Binding) -> None:
        """A connector and margins for each pair of maps."""
        for pair, shapes in zip(self.pairs, binding.shapes(self.pairs), strict=True):
            self.connectors.append(_Connector(*shapes, _margin(binding, pair)))

    def summands(self, signals: Signals) -> Iterator[Tensor]:
        """One for each pair of maps, with its weight."""
        weights = stage_weights(len(self.pairs))
        for weight, connector, pair in zip(weights, self.connectors, self.outputs(signals), strict=True):
            student, teacher = maps_of_one_size(*pair)
            yield weight * partial_l2(connector(student), teacher, connector.get_buffer("margin"))


class _Connector(nn.Sequential):
    """1x1 convolution and batch norm to the teacher's channels, and those channels' margins."""

    def __init__(self, student: Shape, teacher: Shape, margin: Tensor) -> None:
        convolution = nn.Conv2d(student[0], teacher[0], 1, bias=False)
        nn.init.kaiming_normal_(convolution.weight, mode="fan_out")
        super().__init__(convolution, nn.BatchNorm2d(teacher[0]))
        self.register_buffer("margin", margin)


def _margin(binding: Binding, pair: LayerPair) -> Tensor:
    """(C,) float32."""
    stage, before, _ = pair[1].partition(".pre")
    scale, shift = (binding.parameters.get(f"norm/{stage}/{kind}") for kind in ("scale", "shift"))
    if not before or scale is None or shift is None:
        reason = (
            "the teacher has no single batch norm that makes this layer, so no margin follows (the shuffle nets have "
            "none, the others only before layerN.pre); choose another teacher, or ab"
        )
        raise binding.misfit("ofd", reason, [pair])
    return negative_mean(shift, scale).float()
