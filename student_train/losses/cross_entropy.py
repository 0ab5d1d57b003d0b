"""Cross-entropy with the true labels: what a student learns without a teacher."""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from student_train.losses.base import DistillationLoss
from student_train.signals import Signals


class CrossEntropy(DistillationLoss):
    """Nats, batch mean. A difference of labels is no distribution, so it cannot be compared."""

    comparable: ClassVar[bool] = False

    def forward(self, signals: Signals) -> Tensor:
        """Labels (B,) are classes."""
        return F.cross_entropy(signals.student.logits, signals.labels)
