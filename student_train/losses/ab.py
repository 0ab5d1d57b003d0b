"""Activation boundaries (AB): the student's neurons fire where the teacher's do, however strongly.

Source: Heo et al. 2019, arXiv:1811.03233.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import torch
from torch import Tensor, nn

from student_train.binding import Binding
from student_train.losses.base import Recipe
from student_train.losses.connectors import resizing_layers
from student_train.losses.kinds import NONE, Kinds
from student_train.losses.layerwise import LayerwiseLoss
from student_train.losses.requirements import are_maps
from student_train.losses.tensors import pooled_like, require_positive, same_shape, sum_of_squares, with_gradient
from student_train.signals import Signals

# The released code's, so that the loss is of the size of a cross-entropy.
_SCALE = 3 / 1000


def activation_boundary(student: Tensor, teacher: Tensor, margin: float = 1.0) -> Tensor:
    """Squared hinge on the side of zero that the teacher is on: summed over elements, batch mean.

    (s + margin)^2 where t <= 0 and s > -margin, (s - margin)^2 where t > 0 and s <= margin, else 0.
    Source: Heo et al. 2019, arXiv:1811.03233, the alternative loss.

    Args:
        student: (B, ...) pre-activations, brought to the teacher's shape by a connector.
        teacher: (B, ...) pre-activations; only their signs matter.
        margin: above 0.

    Raises:
        ValueError: the shapes differ or the margin is not positive.
    """
    student, teacher = same_shape(student, teacher, "pre-activations")
    require_positive(margin=margin)
    with torch.no_grad():
        # 1 above 0, else -1. By arithmetic: choosing by a mask takes ten times as long.
        sign = teacher.sign().sub_(0.5).sign_()
        short = (sign * student).neg_().add_(margin).relu_()
        # What is no number has no sign, and must not look like one.
        largest = teacher.amax()
        scale = torch.where(largest.isnan(), largest, 1.0) / len(student)
        value = sum_of_squares(short) * scale
        gradient = short.mul_(sign).mul_(-2 * scale)
    return with_gradient(value, student, gradient)


def stage_weights(layers: int) -> list[float]:
    """1 for the last layer, and half of the next one's for every other."""
    return [0.5 ** (layers - 1 - place) for place in range(layers)]


class ActivationBoundary(LayerwiseLoss):
    """3/1000 * sum over layers i of 2^(i-L+1) * sum of relu(margin - sign(t) c(s))^2 / batch; c is learned.

    c is a convolution (1x1 where the sizes are equal) and batch norm; nothing where the shapes are equal already.

    Args:
        layers: which pre-activations, as in `Needs.outputs`.
        margin: how far on the right side counts as right; above 0.

    Note:
        a teacher's map that is larger than the student's, but not twice as large, is average-pooled to what c makes, so
        that the boundary is that of the mean (ours; the CRD benchmark's code has no connector for such pairs).

    Recipe:
        ours: added to the loss, in one stage. The authors and the CRD benchmark train with AB alone first, without
        labels (30 epochs of the benchmark's 270), and then with cross-entropy (the authors: KD) alone, starting from
        those weights.

    Checked:
        the margin on both sides of the boundary.
    """

    name: ClassVar[str] = "ab"
    source: ClassVar[str] = "Heo et al. 2019, arXiv:1811.03233, the alternative loss"
    recipe: ClassVar[Recipe] = Recipe(weight=1.0, ce=1.0)
    kinds: ClassVar[Kinds] = NONE
    requires = (are_maps,)

    def __init__(self, layers: str = "stages.pre", margin: float = 1.0) -> None:
        super().__init__(layers)
        require_positive(margin=margin)
        self.layers, self.margin = layers, margin
        self.connectors = nn.ModuleList()

    def build(self, binding: Binding) -> None:
        """A connector for each pair of maps."""
        for student, teacher in binding.shapes(self.pairs):
            learned = [] if student == teacher else resizing_layers(student, teacher)
            self.connectors.append(nn.Sequential(*learned))

    def summands(self, signals: Signals) -> Iterator[Tensor]:
        """One for each pair of maps, with its weight."""
        weights = stage_weights(len(self.pairs))
        for weight, connector, (student, teacher) in zip(weights, self.connectors, self.outputs(signals), strict=True):
            connected = connector(student)
            yield weight * activation_boundary(connected, pooled_like(teacher, connected), self.margin)

    def forward(self, signals: Signals) -> Tensor:
        """The sum of all, scaled."""
        return _SCALE * super().forward(signals)
