"""In which order a stream goes through the blocks of a store, and through their rows: a function of (seed, epoch).

A block is a stretch of neighbouring rows that is read at once. An epoch visits every block once, in a random order,
and visits are counted on from one epoch to the next. A row comes at a random moment within `window` visits from that of
its block: so every row comes once an epoch, and between two batches no more than about `window` blocks have rows that
came or are still to come.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import ceil

import torch
from torch import Tensor

from ground.seeding import generator_for


@dataclass(frozen=True, slots=True)
class Visits:
    """A stretch of visits, first to stop - 1, in the order of a seed."""

    seed: int
    first: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.first


@dataclass(frozen=True, slots=True)
class EpochOrder:
    """The rows of one epoch.

    Args:
        rows: (n,) int64, each row once.
        first, last: (n,) int64, of each place in `rows`: the first visit whose rows have not all come before, and the
            last one of which a row has come by then.
    """

    rows: Tensor
    first: Tensor
    last: Tensor


class BlockOrder:
    """The order of a stream.

    Args:
        block_of: (n,) int64, the block of each row: 0, ..., 0, 1, ..., 1, 2, ...
        window: visits within which a row comes, at least 1.

    Attributes:
        sizes, starts: (blocks,) rows of each block, and its first row.
        epoch: (seed, epoch) -> `EpochOrder`.
    """

    def __init__(self, block_of: Tensor, window: int) -> None:
        self.block_of, self.window = block_of, window
        self.sizes = torch.bincount(block_of)
        self.starts = self.sizes.cumsum(0) - self.sizes
        # One epoch goes over into the next.
        self._blocks_of = lru_cache(maxsize=2)(self._draw_blocks)
        self.epoch = lru_cache(maxsize=2)(self._draw_rows)

    @property
    def num_blocks(self) -> int:
        """Visits of an epoch."""
        return len(self.sizes)

    @property
    def least_rows(self) -> int:
        """Rows in any window: where one epoch goes over into the next, a block may be in it twice."""
        distinct = ceil(min(self.window, self.num_blocks) / 2)
        return int(self.sizes.sort().values[:distinct].sum())

    def block(self, seed: int, visit: int) -> int:
        """The block of a visit."""
        epoch, place = divmod(visit, self.num_blocks)
        return int(self._blocks_of(seed, epoch)[place])

    def window_at(self, seed: int, progress: int, of: int) -> Visits:
        """The visits of one window, which moves on by an epoch's visits while `progress` grows by `of`."""
        first = progress * self.num_blocks // of
        return Visits(seed, first, first + min(self.window, self.num_blocks))

    def rows_in(self, visits: Visits) -> Tensor:
        """Rows of some visits, each once, in increasing order: (R,) int64."""
        blocks = sorted({self.block(visits.seed, visit) for visit in range(visits.first, visits.stop)})
        starts, sizes = self.starts[blocks].tolist(), self.sizes[blocks].tolist()
        return torch.cat([torch.arange(start, start + size) for start, size in zip(starts, sizes, strict=True)])

    def _draw_blocks(self, seed: int, epoch: int) -> Tensor:
        return torch.randperm(self.num_blocks, generator=generator_for(seed, "blocks", epoch))

    def _draw_rows(self, seed: int, epoch: int) -> EpochOrder:
        """The rows of an epoch."""
        visit_of = self._blocks_of(seed, epoch).argsort()[self.block_of]
        moments = torch.rand(len(visit_of), generator=generator_for(seed, "stream", epoch), dtype=torch.float64)
        rows = (visit_of + self.window * moments).argsort(stable=True)
        visits = visit_of[rows] + epoch * self.num_blocks
        return EpochOrder(rows, visits.flip(0).cummin(0).values.flip(0), visits.cummax(0).values)
