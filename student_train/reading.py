"""How a loss of logits reads a batch when the teacher did not answer with logits: what is done to both sides.

Which reading a loss takes for which kind of answers is said by its class (`student_train.losses.kinds`). Nothing here
knows a loss, or what a store keeps: signals have the teacher's answer over all classes in the place of its logits, as
`student_train.dense_answers` makes it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from student_train.signals import Signals
from student_train.sparse_answers import log_one_hot, restricted, spread_student


class Reading(ABC):
    """What becomes of both sides' logits; everything else of the signals stays.

    Attributes:
        comparable: whether samples have finite numbers in the same coordinates, so that differences between them mean
            something; what has not pulls no logits to a level either.
        standardisable: whether rows can be standardised (LSKD) afterwards.
        is_weights: whether what a loss gets are weights of classes: `DistillationLoss.of_weights`, not `forward`.
    """

    comparable: ClassVar[bool] = True
    standardisable: ClassVar[bool] = True
    is_weights: ClassVar[bool] = False

    @abstractmethod
    def __call__(self, signals: Signals) -> Signals:
        """The signals as a loss is to see them."""


@dataclass(frozen=True, slots=True)
class AsTheyAre(Reading):
    """Logits, and whatever no loss of logits reads."""

    def __call__(self, signals: Signals) -> Signals:
        """Unchanged."""
        return signals


@dataclass(frozen=True, slots=True)
class Centred(Reading):
    """Log-probabilities are logits up to a number for each row: the mean over classes is taken off on both sides.

    What does not change with that number has the value that logits give, and what does has that of centred logits.
    """

    def __call__(self, signals: Signals) -> Signals:
        """Rows of mean 0."""
        teacher = _teacher(signals)
        return _with_logits(signals, centred(signals.student.logits), centred(teacher))


@dataclass(frozen=True, slots=True)
class Spread(Reading):
    """The rule `spread` of top-k: the student's probability of classes that are not named is shared evenly too."""

    def __call__(self, signals: Signals) -> Signals:
        """Both over k + 1 cells, written over all classes, rows of mean 0."""
        student = spread_student(signals.student.logits, _ids(signals))
        return _with_logits(signals, centred(student), centred(_teacher(signals)))


@dataclass(frozen=True, slots=True)
class Restricted(Reading):
    """The rule `renormalise` of top-k: both sides among the named classes, each sample with its own."""

    comparable: ClassVar[bool] = False

    def __call__(self, signals: Signals) -> Signals:
        """(B, k) of both, rows of mean 0."""
        ids = _ids(signals)
        student, teacher = restricted(signals.student.logits, ids), restricted(_teacher(signals), ids)
        return _with_logits(signals, centred(student), centred(teacher))


@dataclass(frozen=True, slots=True)
class Weights(Reading):
    """Weights of the classes at temperature 1, 0 for most: the rule `zero` of top-k, and sampled ids."""

    comparable: ClassVar[bool] = False
    standardisable: ClassVar[bool] = False
    is_weights: ClassVar[bool] = True

    def __call__(self, signals: Signals) -> Signals:
        """Unchanged: the teacher's side is weights."""
        return signals


@dataclass(frozen=True, slots=True)
class CertainLabel(Reading):
    """A label as a teacher that is sure: all probability on one class, at every temperature."""

    comparable: ClassVar[bool] = False
    standardisable: ClassVar[bool] = False

    def __call__(self, signals: Signals) -> Signals:
        """The logarithm of one-hot labels on the teacher's side."""
        return _with_logits(signals, signals.student.logits, log_one_hot(_teacher(signals)))


@dataclass(frozen=True, slots=True)
class LabelVector(Reading):
    """A label as the vector 0, ..., 1, ..., 0, as `match_labels` takes those of the data."""

    standardisable: ClassVar[bool] = False

    def __call__(self, signals: Signals) -> Signals:
        """Unchanged: the teacher's side is one-hot."""
        return signals


def centred(rows: Tensor) -> Tensor:
    """(B, K) less the mean of each row."""
    return rows - rows.mean(dim=1, keepdim=True)


def _teacher(signals: Signals) -> Tensor:
    assert signals.teacher is not None
    return signals.teacher.logits


def _ids(signals: Signals) -> Tensor:
    assert signals.ids is not None, "answers of top-k name their classes"
    return signals.ids


def _with_logits(signals: Signals, student: Tensor, teacher: Tensor) -> Signals:
    assert signals.teacher is not None
    return replace(
        signals,
        student=replace(signals.student, logits=student),
        teacher=replace(signals.teacher, logits=teacher),
    )
