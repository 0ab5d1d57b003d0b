"""Soft-target distillation (KD).

Source: Hinton et al. 2015, arXiv:1503.02531.
"""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from student_train.losses.base import DistillationLoss, Recipe
from student_train.losses.tensors import log_probabilities, require_positive
from student_train.signals import Signals


def kd(student: Tensor, teacher: Tensor, temperature: float = 4.0) -> Tensor:
    """KL(teacher || student) of softened probabilities, times temperature squared: nats, batch mean.

    Source: Hinton et al. 2015, arXiv:1503.02531, eq. 1; T**2 from section 2.

    Args:
        student: (B, K) logits.
        teacher: (B, K) logits.
        temperature: above 0.

    Raises:
        ValueError: the shapes differ or the temperature is not positive.
    """
    student_log_probs, teacher_log_probs = log_probabilities(student, teacher, temperature)
    # T**2 keeps this gradient level with the hard-label term as T changes.
    return temperature**2 * F.kl_div(student_log_probs, teacher_log_probs, reduction="batchmean", log_target=True)


class KD(DistillationLoss):
    """T^2 * KL(softmax(t/T) || softmax(s/T)), summed over classes, batch mean.

    Args:
        temperature: above 0; CIFAR papers use 4.

    Checked:
        a hand value; zero for equal logits; no change by a constant added to a row.
    """

    name: ClassVar[str] = "kd"
    source: ClassVar[str] = "Hinton et al. 2015, arXiv:1503.02531, eq. 1"
    recipe: ClassVar[Recipe] = Recipe(weight=1.0, ce=1.0)
    pulls_to_teacher: ClassVar[bool] = True

    def __init__(self, temperature: float = 4.0) -> None:
        super().__init__()
        require_positive(temperature=temperature)
        self.temperature = temperature

    def forward(self, signals: Signals) -> Tensor:
        """Logits of single samples, or differences of logits."""
        return kd(*self.logits(signals), temperature=self.temperature)
