"""Which rows a step trains on, as a function of (seed, step) alone: a resumed run draws what it would have drawn."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from functools import lru_cache
from math import ceil

import torch
from torch import Tensor

from ground.errors import InvalidInput
from ground.seeding import generator_for
from student_train.stream_order import BlockOrder, Visits

# So many are drawn at once and kept in memory.
_MAX_COMPARISONS = 1 << 24


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of one step.

    Args:
        rows: (B,) int64 into the sample.
        passes: slices of `rows` that go through the student together; batch norm sees each alone.
        views: how often the images repeat, in view 0, then in view 1, ...; 1 where any stored view will do.
        visits: of a stream, what has to be in its buffer; None of rows that are drawn from all.
    """

    rows: Tensor
    passes: tuple[slice, ...]
    views: int = 1
    visits: Visits | None = None


@dataclass(frozen=True)
class Sampling(ABC):
    """Draws batches."""

    @abstractmethod
    def batch(self, step: int, *, labels: Tensor, batch_size: int, seed: int) -> Batch:
        """The batch of a step, counted from 0; labels (n,) int64 are on the CPU."""

    @property
    def least_rows(self) -> int:
        """The smallest sample that batches can be drawn from."""
        return 2

    @property
    def unstreamable(self) -> str | None:
        """Why it cannot be drawn from a stream and what to do, or None where it can."""
        return None

    def check(self, n: int) -> None:
        """Raise `InvalidInput` if n rows are too few."""
        if n < self.least_rows:
            raise InvalidInput(f"--n {n} is too small for this method; give at least {self.least_rows}")

    def streamed(self, order: BlockOrder) -> Sampling:
        """The same from a stream: what is drawn afresh in each step is drawn from the rows in the buffer."""
        return WindowSampling(self, order)


@dataclass(frozen=True)
class WindowSampling(Sampling):
    """The batches of another sampling, drawn from a window of blocks that moves on as in epochs."""

    drawn: Sampling
    order: BlockOrder

    @property
    def least_rows(self) -> int:
        """As the other's."""
        return self.drawn.least_rows

    def check(self, n: int) -> None:
        """Raise `InvalidInput` if the sample, or the window, has too few rows."""
        self.drawn.check(n)
        if self.order.least_rows < self.least_rows:
            raise InvalidInput(
                f"batches of this method are drawn from at least {self.least_rows} rows, and the stream's buffer may "
                f"have {self.order.least_rows}; raise --stream-rows"
            )

    def batch(self, step: int, *, labels: Tensor, batch_size: int, seed: int) -> Batch:
        """Rows of a class, or of a group, are drawn from those in the window alone."""
        visits = self.order.window_at(seed, step, ceil(len(labels) / batch_size))
        rows = self.order.rows_in(visits)
        batch = self.drawn.batch(step, labels=labels[rows], batch_size=batch_size, seed=seed)
        return replace(batch, rows=rows[batch.rows], visits=visits)


@dataclass(frozen=True)
class EpochSampling(Sampling):
    """Every row once an epoch, in an order that depends on (seed, epoch)."""

    def batch(self, step: int, *, labels: Tensor, batch_size: int, seed: int) -> Batch:
        """The last batch of an epoch may be smaller, but never one row: batch norm needs two."""
        epoch, places = _epoch_places(step, len(labels), batch_size)
        rows = _epoch_order(seed, epoch, len(labels))[places]
        return Batch(rows, (slice(0, len(rows)),))

    def streamed(self, order: BlockOrder) -> Sampling:
        """Every row once an epoch too, in the stream's order."""
        return StreamSampling(order)


@dataclass(frozen=True)
class StreamSampling(Sampling):
    """Every row once an epoch, in the order of a stream."""

    order: BlockOrder

    def batch(self, step: int, *, labels: Tensor, batch_size: int, seed: int) -> Batch:
        """Cut as `EpochSampling` cuts."""
        epoch, places = _epoch_places(step, len(labels), batch_size)
        order = self.order.epoch(seed, epoch)
        rows = order.rows[places]
        visits = Visits(seed, int(order.first[places.start]), int(order.last[places.stop - 1]) + 1)
        return Batch(rows, (slice(0, len(rows)),), visits=visits)


@dataclass(frozen=True)
class ClassSampling(Sampling):
    """Up to `per_class` rows of each class, classes in random order, until a batch is full; drawn afresh each step.

    Args:
        per_class: rows of a class, fewer where the sample has fewer; relations within a class need at least 2.
    """

    per_class: int = 5

    def __post_init__(self) -> None:
        if self.per_class < 1:
            raise InvalidInput(f"a batch needs at least 1 image of each class, got {self.per_class}")

    def batch(self, step: int, *, labels: Tensor, batch_size: int, seed: int) -> Batch:
        """B is at most batch_size: where all classes together have fewer rows, all of those."""
        generator = generator_for(seed, "classes", step)
        shuffled = torch.randperm(len(labels), generator=generator)
        classes = torch.randperm(int(labels.max()) + 1, generator=generator)[labels[shuffled]]
        order = classes.argsort(stable=True)
        classes, shuffled = classes[order], shuffled[order]
        # Within the rows of one class, in their new order, only the first few are taken.
        place = torch.arange(len(classes)) - torch.searchsorted(classes, classes)
        rows = shuffled[place < self.per_class][:batch_size]
        return Batch(rows, (slice(0, len(rows)),))


@dataclass(frozen=True)
class AllViews(Sampling):
    """The batches of another sampling, with every stored view of each image in them.

    Args:
        views: V, at least 1.
    """

    images: Sampling
    views: int

    def batch(self, step: int, *, labels: Tensor, batch_size: int, seed: int) -> Batch:
        """B = V times as many rows, which go through the student together."""
        batch = self.images.batch(step, labels=labels, batch_size=batch_size, seed=seed)
        rows = batch.rows.repeat(self.views)
        return Batch(rows, (slice(0, len(rows)),), self.views, batch.visits)

    def streamed(self, order: BlockOrder) -> Sampling:
        """With every stored view too."""
        return AllViews(self.images.streamed(order), self.views)


@dataclass(frozen=True)
class GroupSampling(Sampling):
    """`batch_size` groups of distinct rows; sides as `GroupComparison` wants them.

    Args:
        positives, negatives: rows on each side of a group.
        joint: both sides in one forward pass; the paper's code runs them separately.
        comparisons: draw so many groups once and go through them in epochs; 0 draws afresh each step.
    """

    positives: int = 1
    negatives: int = 1
    joint: bool = False
    comparisons: int = 0

    def __post_init__(self) -> None:
        if self.positives < 1 or self.negatives < 1:
            raise InvalidInput(
                f"a comparison needs at least 1 sample on each side, got {self.positives} and {self.negatives}"
            )
        if self.comparisons == 1 or not 0 <= self.comparisons <= _MAX_COMPARISONS:
            raise InvalidInput(
                f"comparisons must be 0 (fresh each step) or 2 to {_MAX_COMPARISONS}, got {self.comparisons}"
            )

    @property
    def least_rows(self) -> int:
        """A group needs distinct rows."""
        return self.positives + self.negatives

    @property
    def unstreamable(self) -> str | None:
        """Groups that come again have rows from anywhere."""
        if not self.comparisons:
            return None
        return (
            f"comparisons={self.comparisons} draws groups once from all rows, which a stream does not have at hand; "
            "leave comparisons out, which draws groups afresh in each step"
        )

    def batch(self, step: int, *, labels: Tensor, batch_size: int, seed: int) -> Batch:
        """B = batch_size * (positives + negatives) rows."""
        groups = self._groups(step, len(labels), batch_size, seed)
        rows = torch.cat([groups[:, : self.positives].flatten(), groups[:, self.positives :].flatten()])
        cut = len(groups) * self.positives
        sides = (slice(0, cut), slice(cut, len(rows)))
        return Batch(rows, (slice(0, len(rows)),) if self.joint else sides)

    def _groups(self, step: int, n: int, count: int, seed: int) -> Tensor:
        """Rows of the groups of a step: (G, positives + negatives)."""
        size = self.positives + self.negatives
        if not self.comparisons:
            return _draw_groups(n, count, size, generator_for(seed, "groups", step))
        pool = _group_pool(seed, n, self.comparisons, size)
        # The pool's epochs are cut as the sample's are.
        places = EpochSampling().batch(step, labels=pool[:, 0], batch_size=count, seed=seed).rows
        return pool[places]


def _epoch_places(step: int, n: int, batch_size: int) -> tuple[int, slice]:
    """The epoch of a step, and which places in the epoch's order are its batch."""
    steps = ceil(n / batch_size)
    epoch, place = divmod(step, steps)
    first, last = place * batch_size, min((place + 1) * batch_size, n)
    if steps > 1 and n % batch_size == 1:
        # The last one would be a single row.
        first, last = first - (place == steps - 1), last - (place == steps - 2)
    return epoch, slice(first, last)


# One for each set of rows that a training draws from, and the next where an epoch ends.
@lru_cache(maxsize=8)
def _epoch_order(seed: int, epoch: int, n: int) -> Tensor:
    return torch.randperm(n, generator=generator_for(seed, "epoch", epoch))


@lru_cache(maxsize=1)
def _group_pool(seed: int, n: int, count: int, size: int) -> Tensor:
    return _draw_groups(n, count, size, generator_for(seed, "group pool"))


def _draw_groups(n: int, count: int, size: int, generator: torch.Generator) -> Tensor:
    """Groups of distinct rows, uniform: (count, size)."""
    if size * size > n:
        # Drawing again until nothing repeats would take long, or for ever.
        return torch.rand(count, n, generator=generator).topk(size, dim=1).indices
    groups = torch.randint(0, n, (count, size), generator=generator)
    while (repeated := _has_repeats(groups)).any():
        groups[repeated] = torch.randint(0, n, (int(repeated.sum()), size), generator=generator)
    return groups


def _has_repeats(groups: Tensor) -> Tensor:
    ordered = groups.sort(dim=1).values
    return (ordered[:, 1:] == ordered[:, :-1]).any(dim=1)
