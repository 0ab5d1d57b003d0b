"""A method in a training: its losses with what they have learned, and the sum that a step descends.

The training loop asks it for a loss, and never which method it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ground.errors import InvalidInput
from models import Network
from storage.answers import AnswerForm
from student_train.binding import Binding
from student_train.comparison import AllPairs
from student_train.losses import DistillationLoss
from student_train.losses.base import TeacherRows
from student_train.losses.kinds import reading_of
from student_train.losses.standardise import standardise
from student_train.method_spec import LossSpec, MethodSpec
from student_train.mixing import Part
from student_train.reading import Reading
from student_train.signals import Moment, Signals


class Losses(NamedTuple):
    """What a batch costs.

    Args:
        total: the weighted sum, a scalar of at least float32.
        terms: (T,) every loss before its weight, in the order of the method and without gradient.
    """

    total: Tensor
    terms: Tensor

    def plus(self, weight: float, value: Tensor) -> Losses:
        """These, and one more that is not the method's."""
        return Losses(self.total + weight * value, torch.cat([self.terms, value.detach().to(self.terms).view(1)]))


@dataclass(frozen=True, slots=True)
class Term:
    """One summand: what it is, the loss that learns, and how that reads the teacher's answers."""

    spec: LossSpec
    loss: DistillationLoss
    reading: Reading

    def given(self, signals: Signals) -> Signals:
        """What the loss sees of single samples."""
        read = self.reading(signals)
        return standardised(read) if self.spec.standardised else read

    def value(self, signals: Signals) -> Tensor:
        """The loss of what it is `given`."""
        found: Tensor = self.loss.of_weights(signals) if self.reading.is_weights else self.loss(signals)
        return found

    def logit_target(self, signals: Signals) -> Tensor | None:
        """See `DistillationLoss.logit_target`; standardised logits pull to no level, nor does what has no logits."""
        if self.spec.standardised or not self.reading.comparable:
            return None
        return self.loss.logit_target(self.reading(signals))


class BoundMethod:
    """A method whose losses have learned parts.

    Args:
        losses: one for each of the spec's, in order, bound by `bind_method` as far as they need to be.
        form: of the teacher's answers; None is logits, and for features alone.
    """

    def __init__(self, spec: MethodSpec, losses: Sequence[DistillationLoss], form: AnswerForm | None = None) -> None:
        self.spec = spec
        pairs = zip(spec.losses, losses, strict=True)
        self.terms = tuple(Term(said, loss, reading_of(loss, form or AnswerForm())) for said, loss in pairs)
        self.learned = nn.ModuleList(losses)
        """Every loss as a module, for the optimizer and the checkpoint."""

    def require_room(self, binding: Binding, batch_size: int, free_bytes: float) -> None:
        """Raise `InvalidInput` if the differences of all pairs of a batch do not fit into memory."""
        if not isinstance(self.spec.comparison, AllPairs):
            return
        made = [term for term in self.terms if term.spec.compared and not term.loss.has_closed_form]
        shapes = [shape for term in made for pair in binding.shapes(term.loss.pairs) for shape in pair]
        # Float32, and as much again for each of: gradient, what the loss keeps, its gradient.
        needed = batch_size**2 * 16 * sum(map(math.prod, shapes))
        if needed > free_bytes / 2:
            names = ", ".join(term.spec.name for term in made)
            raise InvalidInput(
                f"{names} of all {batch_size}^2 pairs of a batch would take {needed / 1e9:.1f} GB, and "
                f"{free_bytes / 1e9:.1f} GB are free; compare sampled pairs, or lower --batch-size"
            )

    def prepare(self, teacher: TeacherRows, moment: Moment) -> None:
        """Train what losses learn from stored answers alone, before the first step."""
        for term in self.terms:
            term.loss.prepare(teacher, moment)

    def losses(self, signals: Signals, parts: Sequence[Part] = ()) -> Losses:
        """The sum of all terms, and each of them.

        Args:
            parts: what mixed inputs are made of; empty for plain ones.
        """
        if not parts:
            return self._losses(signals)
        device = signals.labels.device
        found = [self._losses(signals.reordered(part.order.to(device))) for part in parts]
        totals = [part.share * losses.total for part, losses in zip(parts, found, strict=True)]
        terms = [part.share * losses.terms for part, losses in zip(parts, found, strict=True)]
        return Losses(torch.stack(totals).sum(), torch.stack(terms).sum(dim=0))

    def _losses(self, signals: Signals) -> Losses:
        total = torch.zeros((), device=signals.student.logits.device)
        compared: dict[tuple[Reading, bool], Signals] = {}
        values = []
        for term in self.terms:
            given = term.given(signals)
            value = self._compared(term, given, compared) if term.spec.compared else term.value(given)
            values.append(_scalar(term, value))
            total = total + term.spec.weight * values[-1]
        # On the device, so that recording makes no step wait.
        return Losses(total, torch.stack([value.detach().to(total) for value in values]))

    def _compared(self, term: Term, given: Signals, compared: dict[tuple[Reading, bool], Signals]) -> Tensor:
        """A loss of comparisons, which are made once for all terms that are given the same: kept in `compared`."""
        assert self.spec.comparison is not None
        value = term.loss.over_all_pairs(given) if isinstance(self.spec.comparison, AllPairs) else None
        if value is not None:
            return value
        kept = term.reading, term.spec.standardised
        if kept not in compared:
            compared[kept] = self.spec.comparison(given.only(self._compared_pairs))
        return term.value(compared[kept])

    @property
    def _compared_pairs(self) -> list[tuple[str, str]]:
        """Outputs that compared terms read: differences of others would be made for nothing."""
        return [pair for term in self.terms if term.spec.compared for pair in term.loss.pairs]

    def logit_target(self, signals: Signals) -> Tensor | None:
        """Weighted mean of what the terms pull single samples' logits to, (B, K); None if none of them says."""
        said = [(term.spec.weight, term.logit_target(signals)) for term in self.terms]
        targets = [(weight, target) for weight, target in said if target is not None]
        total = sum(weight for weight, _ in targets)
        if not total:
            return None
        return torch.stack([weight * target for weight, target in targets]).sum(dim=0) / total


def bind_method(
    spec: MethodSpec,
    student: Network,
    describe: Callable[[Network], Binding],
    seed: int,
    form: AnswerForm | None = None,
) -> tuple[BoundMethod, Network]:
    """Bind every loss to a training; returns what trains, and the student to train.

    Args:
        describe: what there is to bind to, for a student.
        seed: of the learned parts.
        form: of the teacher's answers; None is logits, and for features alone.

    Raises:
        InvalidInput: shapes do not fit, or two losses would change what the student is.
    """
    losses = [loss.make() for loss in spec.losses]
    dressing = [loss for loss in losses if loss.dresses]
    if len(dressing) > 1:
        names = " and ".join(said.name for said, loss in zip(spec.losses, losses, strict=True) if loss.dresses)
        raise InvalidInput(f"{names} would each change what the student is; give one of them")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(Moment(seed=seed).generator("learned parts").initial_seed())
        for loss in dressing:
            loss.bind(describe(student))
            student = loss.dress(student)
        binding = describe(student)
        for loss in losses:
            if not loss.dresses:
                loss.bind(binding)
    return BoundMethod(spec, losses, form), student


def standardised(signals: Signals) -> Signals:
    """The same with both sides' logits of mean 0 and deviation 1 in each row."""
    teacher = signals.teacher
    return replace(
        signals,
        student=replace(signals.student, logits=standardise(signals.student.logits)),
        teacher=None if teacher is None else replace(teacher, logits=standardise(teacher.logits)),
    )


def _scalar(term: Term, value: Tensor) -> Tensor:
    if not isinstance(value, Tensor) or value.dim():
        found = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise InvalidInput(f"{term.spec.name} gave {found} where a scalar tensor is needed; take its mean or sum")
    return value
