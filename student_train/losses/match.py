"""Mean squared error on logits and on labels: compared, the two halves of CKD.

Source: Xu et al., WACV 2025, eq. 2 and 3; as in the released code, the student's logits are matched with the labels
as they are, without a softmax.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from student_train.losses import functional
from student_train.losses.base import DistillationLoss
from student_train.signals import Signals


class MatchLogits(DistillationLoss):
    """Student logits against teacher logits, mean over samples and classes."""

    needs: ClassVar[frozenset[str]] = frozenset({"logits"})

    def forward(self, signals: Signals) -> Tensor:
        """Single samples or comparisons."""
        assert signals.teacher is not None
        return functional.comparison(signals.student.logits, signals.teacher.logits)

    def over_all_pairs(self, signals: Signals) -> Tensor:
        """See `functional.all_pairs_comparison`."""
        assert signals.teacher is not None
        return functional.all_pairs_comparison(signals.student.logits, signals.teacher.logits)

    def logit_target(self, signals: Signals) -> Tensor:
        """The teacher's logits."""
        assert signals.teacher is not None
        return signals.teacher.logits


class MatchLabels(DistillationLoss):
    """Student logits against one-hot labels (soft where a group averages several)."""

    def forward(self, signals: Signals) -> Tensor:
        """Single samples or comparisons."""
        return functional.comparison(signals.student.logits, signals.label_targets)

    def over_all_pairs(self, signals: Signals) -> Tensor:
        """See `functional.all_pairs_comparison`."""
        return functional.all_pairs_comparison(signals.student.logits, signals.label_targets)

    def logit_target(self, signals: Signals) -> Tensor:
        """The labels."""
        return signals.label_targets
