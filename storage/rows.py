"""Sets of rows of a store's training split: what a student learns from, what a build makes whole.

The nested sample of size n is the first n rows, and is what every command asks for; `Rows` says nothing of how they
were chosen, so that other choices can be asked for in the same way.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

# The paper's split: four training images for one of validation.
_TRAIN_PER_VALIDATION = 4


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows as runs of neighbours, in increasing order.

    Args:
        runs: (first, count) of each; they neither touch nor overlap.

    Raises:
        ValueError: the runs are not in order, or one is empty.
    """

    runs: tuple[tuple[int, int], ...]

    def __post_init__(self) -> None:
        end = -1
        for first, count in self.runs:
            if count < 1 or first <= end or first < 0:
                raise ValueError(f"{self.runs} are no runs of rows in increasing order")
            end = first + count

    @classmethod
    def first(cls, n: int) -> Rows:
        """The nested sample of size n."""
        return cls(((0, n),) if n else ())

    @classmethod
    def between(cls, first: int, last: int) -> Rows:
        """Rows first..last."""
        return cls(((first, last - first),) if last > first else ())

    @classmethod
    def of(cls, index: np.ndarray) -> Rows:
        """These rows; (n,) integers, increasing and each once."""
        if not len(index):
            return cls(())
        cuts = np.flatnonzero(np.diff(index) != 1) + 1
        return cls(tuple((int(part[0]), len(part)) for part in np.split(index, cuts)))

    def __len__(self) -> int:
        return sum(count for _, count in self.runs)

    @property
    def end(self) -> int:
        """One more than the last row; 0 for none."""
        return sum(self.runs[-1]) if self.runs else 0

    @property
    def index(self) -> np.ndarray:
        """(n,) int64."""
        return np.concatenate([np.arange(first, first + count) for first, count in self.runs] or [np.arange(0)])

    def cells(self, views: int) -> np.ndarray:
        """Their cells, row * V + view, in order: (n * V,) int64."""
        return (self.index[:, None] * views + np.arange(views)).reshape(-1)

    def below(self, n: int) -> Rows:
        """Those of them that a store of n rows has."""
        return Rows(tuple((first, min(count, n - first)) for first, count in self.runs if first < n))

    def blocks(self, size: int) -> Iterator[tuple[int, int]]:
        """(first, last + 1) of at most `size` rows at a time."""
        for start, count in self.runs:
            for first in range(start, start + count, size):
                yield first, min(first + size, start + count)

    @property
    def num_validation(self) -> int:
        """Validation images that go with so many training images."""
        return num_validation(len(self))


def num_validation(n: int) -> int:
    """Validation images that go with n training images: a fifth of both, and at least one."""
    return max(1, n // _TRAIN_PER_VALIDATION)
