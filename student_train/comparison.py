"""Comparison: differences between samples in place of single samples.

Source: Xu et al., Comparative Knowledge Distillation, WACV 2025, eq. 2, 3 and 5. Groups of samples are drawn, each
side of a group is averaged, and the difference of the two sides replaces the single-sample representation: for
logits, one-hot labels and feature maps alike. It is a transformation of signals, not a loss, so any loss can be
applied to what comes out, and n teacher calls give n**2 signals.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from ground.errors import UnknownName
from student_train.signals import Moment, Signals


class Comparison(ABC):
    """Turns signals about samples into signals about differences between them."""

    @property
    def opens_level(self) -> bool:
        """Whether a vector added to all samples leaves no trace, as in a difference."""
        return True

    @abstractmethod
    def compare(self, tensor: Tensor, moment: Moment) -> Tensor:
        """Differences of rows: (B, ...) in, (G, ...) out."""

    def __call__(self, signals: Signals) -> Signals:
        """Compare everything: student, teacher and labels."""

        def compare(tensor: Tensor) -> Tensor:
            return self.compare(tensor, signals.moment)

        return Signals(
            student=signals.student.map(compare),
            teacher=None if signals.teacher is None else signals.teacher.map(compare),
            labels=compare(signals.label_targets),
            index=None,
            moment=signals.moment,
        )


@dataclass(frozen=True, slots=True)
class GroupComparison(Comparison):
    """The two sides of each group, averaged and combined: by default mean of positives minus mean of negatives.

    Rows come sorted by side: the positives of all G groups, then the negatives of all.

    Args:
        positives, negatives: samples on each side of a group; 1 + 1 and 2 + 1 are the paper's.
        combine: "difference"; the paper's ablations are "mean" of the group and "mixture" of the two sides.
    """

    positives: int = 1
    negatives: int = 1
    combine: str = "difference"

    def __post_init__(self) -> None:
        if self.combine not in COMBINATIONS:
            raise UnknownName("way to combine", self.combine, COMBINATIONS)

    @property
    def opens_level(self) -> bool:
        """Only differences do."""
        return self.combine == "difference"

    def compare(self, tensor: Tensor, moment: Moment) -> Tensor:
        """See `Comparison.compare`; B = G * (positives + negatives)."""
        groups = len(tensor) // (self.positives + self.negatives)
        cut = groups * self.positives
        # Split, not sliced twice: the gradients of slices are as large as the whole, and are added.
        positive, negative = (_means(side, groups) for side in tensor.split([cut, len(tensor) - cut]))
        return COMBINATIONS[self.combine](self, moment, positive, negative)


def _means(side: Tensor, groups: int) -> Tensor:
    """Of each group's samples, (G, ...); of one sample itself, in its own layout."""
    return side if len(side) == groups else side.unflatten(0, (groups, -1)).mean(dim=1)


def _difference(_: GroupComparison, __: Moment, positive: Tensor, negative: Tensor) -> Tensor:
    return positive - negative


def _mean(groups: GroupComparison, _: Moment, positive: Tensor, negative: Tensor) -> Tensor:
    size = groups.positives + groups.negatives
    return groups.positives / size * positive + groups.negatives / size * negative


def _mixture(_: GroupComparison, moment: Moment, positive: Tensor, negative: Tensor) -> Tensor:
    share = float(moment.numpy_generator("mixture").uniform())  # Beta(1, 1)
    return share * positive + (1.0 - share) * negative


# What becomes of the mean of the positives and the mean of the negatives.
COMBINATIONS: dict[str, Callable[[GroupComparison, Moment, Tensor, Tensor], Tensor]] = {
    "difference": _difference,
    "mean": _mean,
    "mixture": _mixture,
}


@dataclass(frozen=True, slots=True)
class AllPairs(Comparison):
    """Every ordered pair of a batch, i and j alike: G = B * B.

    Losses with a closed form over all pairs never make these tensors (`DistillationLoss.over_all_pairs`).
    """

    def compare(self, tensor: Tensor, moment: Moment) -> Tensor:
        """See `Comparison.compare`."""
        return (tensor[:, None] - tensor[None, :]).flatten(0, 1)
