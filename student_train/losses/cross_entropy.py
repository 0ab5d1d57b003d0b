"""Cross-entropy with the true labels: what a student learns without a teacher."""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from student_train.losses.base import DistillationLoss, Recipe
from student_train.losses.kinds import NONE, Kinds
from student_train.needs import Needs
from student_train.signals import Signals


class CrossEntropy(DistillationLoss):
    """Cross-entropy with the labels: nats, batch mean."""

    name: ClassVar[str] = "ce"
    source: ClassVar[str] = "no teacher"
    recipe: ClassVar[Recipe] = Recipe(ce=0.0)
    kinds: ClassVar[Kinds] = NONE
    needs = Needs(labels=True)
    constrains_logits = True

    def forward(self, signals: Signals) -> Tensor:
        """Labels (B,) are classes; those of mixes are shares of two."""
        labels = signals.labels if signals.mixed is None else signals.label_targets
        return F.cross_entropy(signals.student.logits, labels)
