"""Soft-target distillation (KD).

Source: Hinton et al. 2015, arXiv:1503.02531.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from student_train.losses import functional
from student_train.losses.base import DistillationLoss
from student_train.signals import Signals


class KD(DistillationLoss):
    """`functional.kd`; CIFAR papers use temperature 4.

    Args:
        temperature: above 0.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"logits"})

    def __init__(self, temperature: float = 4.0) -> None:
        super().__init__()
        if not temperature > 0:
            raise ValueError(f"temperature must be above 0, got {temperature}")
        self.temperature = temperature

    def forward(self, signals: Signals) -> Tensor:
        """Logits of single samples, or differences of logits."""
        assert signals.teacher is not None
        return functional.kd(signals.student.logits, signals.teacher.logits, self.temperature)

    def logit_target(self, signals: Signals) -> Tensor:
        """The teacher's logits."""
        assert signals.teacher is not None
        return signals.teacher.logits
