"""WSLD: soft labels weighted sample by sample, less where the student already beats the teacher.

Source: Zhou et al. 2021, arXiv:2102.00650, the weighted soft labels.
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from storage.answers import Kind
from student_train.losses.base import DistillationLoss, Recipe
from student_train.losses.kinds import LABEL_OUTSIDE, OF_ROWS, Kinds
from student_train.losses.targets import require_classes
from student_train.losses.tensors import require_positive, same_logits
from student_train.needs import Needs
from student_train.signals import Signals

_EPS = 1e-7


def wsld(student: Tensor, teacher: Tensor, labels: Tensor, temperature: float = 2.0) -> Tensor:
    """T**2 * mean of w * cross-entropy of the student with the teacher's softened probabilities: nats.

    w = 1 - exp(-CE_s / CE_t), of the cross-entropies of both with the labels at T = 1; no gradient goes through it. A
    cross-entropy, as in the released code, not a KL divergence: with a weight that depends on the sample, the two
    differ by more than a constant, but not in the gradient.

    Source: Zhou et al. 2021, arXiv:2102.00650; 1e-7 is added to CE_t as in the released code.

    Args:
        student: (B, K) logits.
        teacher: (B, K) logits.
        labels: (B,) int64, the class of each sample.
        temperature: above 0; the authors have 2 on ImageNet and 4 on CIFAR-100.

    Raises:
        ValueError: the shapes differ or the temperature is not positive.
    """
    student, teacher = same_logits(student, teacher)
    require_positive(temperature=temperature)
    require_classes(labels, student)
    soft = F.cross_entropy(student / temperature, F.softmax(teacher / temperature, dim=1), reduction="none")
    return temperature**2 * (_weights(student, teacher, labels) * soft).mean()


@torch.no_grad()
def _weights(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    """(B,) in [0, 1]."""
    ours = F.cross_entropy(student, labels, reduction="none")
    theirs = F.cross_entropy(teacher, labels, reduction="none")
    return -torch.expm1(-ours / (theirs + _EPS))


class WSLD(DistillationLoss):
    """T^2 * mean of (1 - exp(-CE_s/CE_t)) * (-sum of softmax(t/T) * log softmax(s/T) over classes).

    CE_s and CE_t are the cross-entropies of both with the label; the weight is a constant to the gradient.

    Args:
        temperature: above 0; the authors have 2 on ImageNet and, with weight 2.25, 4 on CIFAR-100.

    Note:
        1e-7 is added to CE_t, as in the released code.

    Recipe:
        temperature and weight are those of the released ImageNet code.

    Checked:
        no gradient through the weight; CE_t = 0 and CE_s = 0.
    """

    name: ClassVar[str] = "wsld"
    source: ClassVar[str] = "Zhou et al. 2021, arXiv:2102.00650"
    recipe: ClassVar[Recipe] = Recipe(weight=2.5, ce=1.0)
    kinds: ClassVar[Kinds] = Kinds(
        OF_ROWS, LABEL_OUTSIDE | {Kind.LABEL: "it weighs samples by the teacher's confidence, and a label has none"}
    )
    pulls_to_teacher: ClassVar[bool] = True
    needs = Needs(outputs="logits", labels=True)

    def __init__(self, temperature: float = 2.0) -> None:
        super().__init__()
        require_positive(temperature=temperature)
        self.temperature = temperature

    def forward(self, signals: Signals) -> Tensor:
        """Single samples."""
        return wsld(*self.logits(signals), signals.labels, temperature=self.temperature)
