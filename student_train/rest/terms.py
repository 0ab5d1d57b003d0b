"""The losses of the rest in a training: each with the rows that it draws, and what it adds to a step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil

import torch
from torch import Tensor

from ground.errors import InvalidInput
from ground.geometry import Rendering, shows_boxes
from ground.seeding import generator_for
from models import Network
from models.compute import Compute
from storage.schema import UNLABELLED
from student_train.data import StudentData
from student_train.losses.tensors import raised
from student_train.rest.base import RestBatch, RestLoss
from student_train.rest.rows import RestRows
from student_train.rest.spec import RestSpec
from student_train.sampling import Batch, EpochSampling, Sampling
from student_train.signals import Moment
from student_train.student_views import show
from student_train.train_config import TrainConfig

# (network, inputs, batch) -> logits of the whole batch.
Said = Callable[[Network, Tensor, Batch], Tensor]


@dataclass(frozen=True, slots=True, eq=False)
class RestTerm:
    """One loss of the rest, which goes through its rows in epochs of its own.

    Args:
        weight: of the loss, once it has risen.
        batch_size: rows of a step.
        views: role in a `RestBatch` -> kind of view, for `show`.
        rendering: how it is shown images.
        boxes: whether the store's views are boxes.
        seed: of the training.
    """

    loss: RestLoss
    rows: RestRows
    weight: float
    sampling: Sampling
    batch_size: int
    views: Mapping[str, str]
    rendering: Rendering
    boxes: bool
    compute: Compute
    seed: int

    @property
    def num_rows(self) -> int:
        """Rows that it learns from."""
        return len(self.rows.labels)

    @property
    def steps_per_epoch(self) -> int:
        """Steps in which every row comes once."""
        return ceil(self.num_rows / self.batch_size)

    def weight_at(self, epoch: float) -> float:
        """The weight of the loss after so many epochs."""
        return self.weight * self.loss.risen(epoch)

    def value(self, student: Network, moment: Moment, said: Said) -> Tensor:
        """The loss of a step's batch, before its weight; random choices follow from (seed, loss, step)."""
        batch = self._batch(moment.step)
        rows = batch.rows
        images = self.compute.to_device(self.rows.images[rows.to(self.rows.images.device)])

        def look(role: str) -> Tensor:
            generator = generator_for(self.seed, f"rest {self.loss.name} {role}", moment.step)
            return show(images, self.views[role], self.rendering, generator, boxes=self.boxes)

        def logits(network: Network, inputs: Tensor) -> Tensor:
            (found,) = raised(said(network, inputs, batch))
            return found

        labels = self.rows.labels[rows.to(self.rows.labels.device)]
        value: Tensor = self.loss(RestBatch(rows, labels, student, look, logits))
        return value

    def _batch(self, step: int) -> Batch:
        # Another order than that of the answered rows, and of other losses.
        seed = generator_for(self.seed, "rest", *map(ord, self.loss.name)).initial_seed() & (2**63 - 1)
        labels = self.rows.labels
        batch = self.sampling.batch(step, labels=labels, batch_size=self.batch_size, seed=seed)
        if self.rows.stream is not None:
            assert batch.visits is not None, "batches of a stream come from its own sampling"
            self.rows.stream.hold(batch.visits)
        return batch

    def close(self) -> None:
        """Let go of threads and memory of a stream."""
        if self.rows.stream is not None:
            self.rows.stream.close()


def begin_terms(
    specs: Sequence[RestSpec], data: StudentData, student: Network, config: TrainConfig
) -> tuple[RestTerm, ...]:
    """The losses of the rest, ready for the first step.

    Args:
        config: its student view is not "auto".

    Raises:
        InvalidInput: a loss has fewer than two rows to learn from.
    """
    if data.rest is None:
        return ()
    # Where no answer is learned from, the method itself is given all labelled rows.
    beside = [spec for spec in specs if not (data.unasked and spec.kind.reads_labels)]
    return tuple(_begin(spec, data, data.rest, student, config) for spec in beside)


def _begin(spec: RestSpec, data: StudentData, rest: RestRows, student: Network, config: TrainConfig) -> RestTerm:
    loss, rows = spec.make(), _rows_of(spec, rest)
    with torch.random.fork_rng(devices=[]):
        loss.begin(student, rows, data.compute, config.code)
    sampling: Sampling = EpochSampling()
    return RestTerm(
        loss=loss,
        rows=rows,
        weight=loss.usual_weight(len(rows.labels), data.n) if loss.weight is None else loss.weight,
        sampling=sampling if rows.stream is None else sampling.streamed(rows.stream.order),
        batch_size=max(2, round(loss.ratio * config.batch_size)),
        views=_views(config.student_view),
        rendering=data.rendering,
        boxes=shows_boxes(data.manifest.identity.view_policy),
        compute=data.compute,
        seed=config.seed,
    )


def _views(student_view: str) -> dict[str, str]:
    """The kind of view of each role; the one that teaches is not changed, or what it says would be worth less."""
    # What the teacher saw of these rows, nobody knows.
    own = "fresh" if student_view == "teacher" else student_view
    return {"student": own, "teacher": "fresh" if own == "trivial" else own, "strong": "trivial"}


def _rows_of(spec: RestSpec, rest: RestRows) -> RestRows:
    every = torch.arange(len(rest.labels))
    if not spec.kind.reads_labels:
        return rest.only(every)
    labelled = every[(rest.labels != UNLABELLED).cpu()]
    if len(labelled) < 2:
        raise InvalidInput(
            f"--rest {spec.name} learns from labels, and {len(labelled)} of {len(every)} rows beyond the n have one; "
            "give pseudo, mean_teacher or proxy, which need none"
        )
    return rest.only(labelled)


def count_rows(terms: Sequence[RestTerm]) -> tuple[int, int]:
    """Rows of the rest that something is learned from, and those among them whose label is."""
    labelled = (term.num_rows for term in terms if term.loss.reads_labels)
    return max((term.num_rows for term in terms), default=0), max(labelled, default=0)
