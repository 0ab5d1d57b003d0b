"""NKD: the target class weighted by the teacher's confidence, the other classes normalised among themselves.

Source: Yang et al. 2023, arXiv:2303.13005, the NKD loss.
"""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from student_train.losses.base import DistillationLoss, Recipe
from student_train.losses.dkd import without_target
from student_train.losses.kinds import LABEL_OUTSIDE, OF_ROWS, Kinds
from student_train.losses.requirements import has_other_classes
from student_train.losses.soft_targets import soft_cross_entropy
from student_train.losses.tensors import require_positive, same_logits
from student_train.needs import Needs
from student_train.signals import Signals


def nkd(student: Tensor, teacher: Tensor, labels: Tensor, gamma: float = 1.5, temperature: float = 1.0) -> Tensor:
    """Cross-entropy with the target, times the teacher's confidence, plus that among the other classes; batch mean.

    -p_t[y] * log p_s[y] - gamma * T**2 * sum over i != y of n_t[i] * log n_s[i], where p is the softmax at T = 1 and n
    the softmax at T of the logits without the target. A cross-entropy: its minimum is not 0.

    Source: Yang et al. 2023, arXiv:2303.13005, as in the released code. (One version of that code had a mask that left
    the target among the other classes; here it is left out, as in the paper and in the other versions.)

    Args:
        student: (B, K) logits.
        teacher: (B, K) logits.
        labels: (B,) int64, the target class y of each sample.
        gamma: weight of the other classes; the authors have 1.5 on ImageNet and 3.5 on CIFAR-100.
        temperature: above 0, of the other classes; the authors have 1 on ImageNet and 3 on CIFAR-100.

    Raises:
        ValueError: the shapes differ, there is only one class, or the temperature is not positive.
    """
    student, teacher = same_logits(student, teacher)
    require_positive(temperature=temperature)
    others = soft_cross_entropy(without_target(student, labels), without_target(teacher, labels), temperature)
    confidences = F.softmax(teacher, dim=1).gather(1, labels[:, None]).squeeze(1)
    target = (confidences * F.cross_entropy(student, labels, reduction="none")).mean()
    return target + gamma * temperature**2 * others


class NKD(DistillationLoss):
    """-p_t[y] * log p_s[y] - gamma * T^2 * sum over i != y of n_t[i] * log n_s[i], batch mean.

    p = softmax(.), and n = softmax(./T) over all classes but the target y.

    Args:
        gamma: weight of the other classes; the authors have 1.5 on ImageNet and 3.5 on CIFAR-100.
        temperature: above 0, of the other classes; the authors have 1 on ImageNet and 3 on CIFAR-100.

    Checked:
        the part among the other classes ignores the target's logit.
    """

    name: ClassVar[str] = "nkd"
    source: ClassVar[str] = "Yang et al. 2023, arXiv:2303.13005"
    recipe: ClassVar[Recipe] = Recipe(weight=1.0, ce=1.0)
    kinds: ClassVar[Kinds] = Kinds(OF_ROWS, LABEL_OUTSIDE)
    needs = Needs(outputs="logits", labels=True)
    requires = (has_other_classes,)

    def __init__(self, gamma: float = 1.5, temperature: float = 1.0) -> None:
        super().__init__()
        require_positive(temperature=temperature)
        self.gamma, self.temperature = gamma, temperature

    def forward(self, signals: Signals) -> Tensor:
        """Single samples."""
        return nkd(*self.logits(signals), signals.labels, gamma=self.gamma, temperature=self.temperature)
