"""Comparison: differences between samples in place of single samples.

Source: Xu et al., Comparative Knowledge Distillation, WACV 2025, eq. 2, 3 and 5. Groups of samples are drawn, each
side of a group is averaged, and the difference of the two sides replaces the single-sample representation: for
logits, one-hot labels and feature maps alike. It is a transformation of signals, not a loss, so any loss can be
applied to what comes out, and n teacher calls give n**2 signals.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor

from student_train.signals import Signals


class Comparison(ABC):
    """Turns signals about samples into signals about differences between them."""

    @abstractmethod
    def compare(self, tensor: Tensor) -> Tensor:
        """Differences of rows: (B, ...) in, (G, ...) out."""

    def __call__(self, signals: Signals) -> Signals:
        """Compare everything: student, teacher and labels."""
        return Signals(
            student=signals.student.map(self.compare),
            teacher=None if signals.teacher is None else signals.teacher.map(self.compare),
            labels=self.compare(signals.label_targets),
            index=None,
        )


@dataclass(frozen=True, slots=True)
class GroupComparison(Comparison):
    """Mean of the positives minus mean of the negatives, group by group.

    Rows come sorted by side: the positives of all G groups, then the negatives of all.

    Args:
        positives, negatives: samples on each side of a group; 1 + 1 and 2 + 1 are the paper's.
    """

    positives: int = 1
    negatives: int = 1

    def compare(self, tensor: Tensor) -> Tensor:
        """See `Comparison.compare`; B = G * (positives + negatives)."""
        groups = len(tensor) // (self.positives + self.negatives)
        cut = groups * self.positives
        positive: Tensor = tensor[:cut].unflatten(0, (groups, self.positives)).mean(dim=1)
        negative: Tensor = tensor[cut:].unflatten(0, (groups, self.negatives)).mean(dim=1)
        return positive - negative


@dataclass(frozen=True, slots=True)
class AllPairs(Comparison):
    """Every ordered pair of a batch, i and j alike: G = B * B.

    Losses with a closed form over all pairs never make these tensors (`DistillationLoss.over_all_pairs`).
    """

    def compare(self, tensor: Tensor) -> Tensor:
        """See `Comparison.compare`."""
        return (tensor[:, None] - tensor[None, :]).flatten(0, 1)
