"""SRRL: features that the teacher's last layer reads as it reads the teacher's own.

Source: Yang et al. 2021, ICLR, section 3.
"""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from student_train.binding import Binding
from student_train.losses.base import DistillationLoss, Recipe
from student_train.losses.batch_norm import LenientBatchNorm2d
from student_train.losses.kinds import NONE, Kinds
from student_train.losses.teacher_head import teacher_head
from student_train.losses.tensors import raised, same_shape
from student_train.needs import Needs
from student_train.signals import Signals


def srrl(student: Tensor, teacher: Tensor, weight: Tensor) -> Tensor:
    """Mean squared error of features plus that of the logits which the teacher's last layer makes of them.

    The bias of that layer is in both logits and cancels, so it is left out; then differences of features fit too.

    Source: Yang et al. 2021, ICLR, section 3, with the means over all elements of the released code.

    Args:
        student: (B, D) features, already of the teacher's width.
        teacher: (B, D) features.
        weight: (K, D) of the teacher's last layer.

    Raises:
        ValueError: the shapes differ.
    """
    student, teacher = same_shape(student, teacher, "features (samples, channels)", 2)
    (weight,) = raised(weight)
    if weight.shape[1:] != student.shape[1:]:
        raise ValueError(
            f"the features are {tuple(student.shape)}, the teacher's last layer is {tuple(weight.shape)}; it must take "
            "these features"
        )
    return F.mse_loss(student, teacher) + F.mse_loss(F.linear(student, weight), F.linear(teacher, weight))


class SRRL(DistillationLoss):
    """Mean of (c(s) - t)^2 + mean of (W c(s) - W t)^2; t: pooled features; c(s): pooled, of a learned connector.

    The connector is a 1x1 convolution, batch norm and ReLU on the student's last map, as in the authors' code, and its
    mean over positions is taken afterwards. W is the teacher's last layer.

    Note:
        comparing W c(s) with W t is comparing with the stored logits, and holds for differences too.

    Recipe:
        the authors' script; the comparison in SimKD's repository has kd=1.

    Checked:
        equals the form with biases.
    """

    name: ClassVar[str] = "srrl"
    source: ClassVar[str] = "Yang et al. 2021, ICLR, section 3"
    recipe: ClassVar[Recipe] = Recipe(weight=1.0, ce=1.0)
    kinds: ClassVar[Kinds] = NONE
    # In the first, the connector was applied to the pooled features.
    revision: ClassVar[int] = 2
    needs = Needs(outputs="last:pooled", head=True)

    weight: Tensor

    def build(self, binding: Binding) -> None:
        """The connector, started as the released code does."""
        ((student, teacher),) = binding.shapes(self.pairs)
        if len(student) != 3:
            raise binding.misfit("srrl", "the student's last output must be a map", self.pairs)
        weight, _ = teacher_head(binding, "srrl", self.pairs)
        convolution = nn.Conv2d(student[0], teacher[0], 1, bias=False)
        nn.init.kaiming_normal_(convolution.weight, mode="fan_out")
        self.connector = nn.Sequential(convolution, LenientBatchNorm2d(teacher[0]), nn.ReLU())
        # A fact of the store, not something to resume from.
        self.register_buffer("weight", weight, persistent=False)

    def forward(self, signals: Signals) -> Tensor:
        """Single samples or comparisons."""
        ((student, teacher),) = self.outputs(signals)
        return srrl(self.connector(student).mean(dim=(2, 3)), teacher, self.weight)
