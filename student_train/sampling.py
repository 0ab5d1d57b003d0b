"""Which rows a step trains on, as a function of (seed, step) alone: a resumed run draws what it would have drawn."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import lru_cache
from math import ceil

import torch
from torch import Tensor

from storage.errors import InvalidInput
from storage.seeding import generator_for


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of one step.

    Args:
        rows: (B,) int64 into the sample.
        passes: slices of `rows` that go through the student together; batch norm sees each alone.
    """

    rows: Tensor
    passes: tuple[slice, ...]


@dataclass(frozen=True)
class Sampling(ABC):
    """Draws batches."""

    @abstractmethod
    def batch(self, step: int, *, n: int, batch_size: int, seed: int) -> Batch:
        """The batch of a step, counted from 0."""

    @property
    def least_rows(self) -> int:
        """The smallest sample that batches can be drawn from."""
        return 2

    def check(self, n: int) -> None:
        """Raise `InvalidInput` if n rows are too few."""
        if n < self.least_rows:
            raise InvalidInput(f"--n {n} is too small for this method; give at least {self.least_rows}")


@dataclass(frozen=True)
class EpochSampling(Sampling):
    """Every row once an epoch, in an order that depends on (seed, epoch)."""

    def batch(self, step: int, *, n: int, batch_size: int, seed: int) -> Batch:
        """The last batch of an epoch may be smaller, but never one row: batch norm needs two."""
        steps = ceil(n / batch_size)
        epoch, place = divmod(step, steps)
        cuts = [*range(0, n, batch_size), n]
        if steps > 1 and n % batch_size == 1:
            cuts[-2] -= 1
        rows = _epoch_order(seed, epoch, n)[cuts[place] : cuts[place + 1]]
        return Batch(rows, (slice(0, len(rows)),))


@dataclass(frozen=True)
class GroupSampling(Sampling):
    """`batch_size` groups of distinct rows, drawn afresh each step; sides as `GroupComparison` wants them.

    Args:
        positives, negatives: rows on each side of a group.
        joint: both sides in one forward pass; the paper's code runs them separately.
    """

    positives: int = 1
    negatives: int = 1
    joint: bool = False

    def __post_init__(self) -> None:
        if self.positives < 1 or self.negatives < 1:
            raise InvalidInput(
                f"a comparison needs at least 1 sample on each side, got {self.positives} and {self.negatives}"
            )

    @property
    def least_rows(self) -> int:
        """A group needs distinct rows."""
        return self.positives + self.negatives

    def batch(self, step: int, *, n: int, batch_size: int, seed: int) -> Batch:
        """B = batch_size * (positives + negatives) rows."""
        generator = generator_for(seed, "groups", step)
        groups = _draw_groups(n, batch_size, self.positives + self.negatives, generator)
        rows = torch.cat([groups[:, : self.positives].flatten(), groups[:, self.positives :].flatten()])
        cut = batch_size * self.positives
        sides = (slice(0, cut), slice(cut, len(rows)))
        return Batch(rows, (slice(0, len(rows)),) if self.joint else sides)


@lru_cache(maxsize=2)
def _epoch_order(seed: int, epoch: int, n: int) -> Tensor:
    return torch.randperm(n, generator=generator_for(seed, "epoch", epoch))


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
