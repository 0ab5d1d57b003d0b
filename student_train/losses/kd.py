"""Soft-target distillation (KD).

Source: Hinton et al. 2015, arXiv:1503.02531.
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from student_train.losses.base import DistillationLoss, Recipe
from student_train.losses.kinds import AMONG_NAMED, AS_CERTAIN, LINEAR, OF_ROWS, Kinds
from student_train.losses.tensors import log_probabilities, require_positive, same_logits
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


def kd_of_weights(student: Tensor, weights: Tensor) -> Tensor:
    """Sum over classes of w * (log w - log softmax(s)), in nats, batch mean: KD at temperature 1 from weights w.

    Its gradient is linear in w. So weights whose mean is the teacher's probabilities give KD's gradient on average
    (Anshumann et al., ACL 2025, arXiv:2503.16870), and of a top-k that is neither completed nor normalised that of its
    mass times the normalised one's.

    Args:
        student: (B, K) logits.
        weights: (B, K), at least 0; rows need not sum to 1.

    Raises:
        ValueError: the shapes differ.
    """
    student, weights = same_logits(student, weights)
    own = torch.special.xlogy(weights, weights).sum(dim=1)
    loss: Tensor = (own - (weights * F.log_softmax(student, dim=1)).sum(dim=1)).mean()
    return loss


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
    kinds: ClassVar[Kinds] = Kinds(OF_ROWS | AMONG_NAMED | LINEAR | AS_CERTAIN)
    pulls_to_teacher: ClassVar[bool] = True

    def __init__(self, temperature: float = 4.0) -> None:
        super().__init__()
        require_positive(temperature=temperature)
        self.temperature = temperature

    def forward(self, signals: Signals) -> Tensor:
        """Logits of single samples, or differences of logits."""
        return kd(*self.logits(signals), temperature=self.temperature)

    def of_weights(self, signals: Signals) -> Tensor:
        """At temperature 1."""
        return kd_of_weights(*self.logits(signals))
