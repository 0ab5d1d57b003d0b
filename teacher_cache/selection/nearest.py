"""Which images of a store are most alike: the nearest of those that were bought, by the features that rules choose by.

Rows are looked at some at a time, so memory holds the features of the rows that are asked about, and of no others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ground.user_code import UserCode
from models.compute import Compute
from storage.rows import Rows
from storage.schema import IMAGES, UNLABELLED
from storage.store import Store
from teacher_cache.datasets.base import ArraySplit
from teacher_cache.selection.candidates import images_at_once
from teacher_cache.selection.contract import Pool
from teacher_cache.selection.encoders import Encoder, open_encoder

# Of squares of features in float32, which differ a little with those that are computed beside them.
_ROUNDING = 1e-12


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Looker:
    """A store's images as an encoder sees them."""

    store: Store
    pool: Pool
    encoder: Encoder

    @classmethod
    def of(cls, store: Store, encoder: str, compute: Compute, code: UserCode = UserCode.REFUSED) -> Looker:
        """With the encoder of a text; raises as `open_encoder`."""
        identity = store.manifest.identity
        side = identity.geometry.image_size
        pool = Pool(
            images=_split(np.empty((0, side, side, 3), np.uint8)),
            left=np.empty(0, np.int64),
            bought=np.arange(store.manifest.n),
            identity=identity,
            store_ids=frozenset(store.manifest.ids),
            compute=compute,
            code=code,
        )
        return cls(store=store, pool=pool, encoder=open_encoder(encoder, pool))

    def nearest(
        self, rows: np.ndarray, count: int, advance: Callable[[int, str], object] = lambda count, note: None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Of each of the rows the nearest others that were bought, (q, k) int64, the nearest first; and how far they
        are, (q, k) float64: Euclidean, where two rows of the store are 1 apart on the root of the mean square.

        It takes O(n q D) of time and shows the encoder n + q images, of n rows with D features, q of them asked about;
        and 8 q D bytes, with a few numbers for each of q and of the rows that are looked at together.

        Args:
            rows: (q,) int64, increasing and each once.
            count: k, of which there are fewer where the store has fewer.
            advance: told how many more images were looked at.

        Raises:
            StoreUnreadable: images are not what was written.
            InvalidInput: a feature is no number.
        """
        others = np.arange(self.store.manifest.n)
        asked = torch.cat(
            [torch.empty(0, self.encoder.width).double(), *(part for _, part in self._features(rows, advance))]
        )
        found, spread = _Found.none(len(rows), min(count, len(others) - 1)), _Spread(self.encoder.width)
        squares = asked.square().sum(dim=1)
        for seen, features in self._features(others, advance):
            distances = (asked @ features.T).mul_(-2).add_(squares[:, None]).add_(features.square().sum(dim=1))
            distances[torch.from_numpy(rows[:, None] == seen)] = torch.inf
            found.add(distances.clamp_min_(0), torch.from_numpy(seen))
            spread.add(features)
        return found.rows.numpy(), found.distances.sqrt().div(spread.distance or 1.0).numpy()

    def _features(
        self, index: np.ndarray, advance: Callable[[int, str], object]
    ) -> Iterator[tuple[np.ndarray, Tensor]]:
        """Of rows, some at a time: which, and (B, D) float64."""
        step = images_at_once(self.pool)
        for first in range(0, len(index), step):
            rows = index[first : first + step]
            images = _split(self.store.read_sample(IMAGES, Rows.of(rows)))
            yield rows, self.encoder.features(replace(self.pool, images=images), np.arange(len(rows))).double()
            advance(len(rows), "")


def _split(images: np.ndarray) -> ArraySplit:
    return ArraySplit(images, np.full(len(images), UNLABELLED, np.int64))


@dataclass(slots=True, eq=False)
class _Found:
    """The nearest so far: (q, k) rows and squared distances, the nearest first."""

    rows: Tensor
    distances: Tensor

    @classmethod
    def none(cls, number: int, count: int) -> _Found:
        return cls(torch.full((number, count), -1), torch.full((number, count), torch.inf, dtype=torch.float64))

    def add(self, distances: Tensor, seen: Tensor) -> None:
        """Take those of further rows that are nearer; distances (q, B), rows (B,) beyond all before."""
        # Soon most have none, and only what has is sorted.
        nearer = (distances < self.distances[:, -1:]).any(dim=1).nonzero()[:, 0]
        together = torch.cat([self.distances[nearer], distances[nearer]], dim=1)
        rows = torch.cat([self.rows[nearer], seen.expand(len(nearer), -1)], dim=1)
        ranked = together.sort(dim=1, stable=True)
        kept = self.rows.shape[1]
        self.distances[nearer] = ranked.values[:, :kept]
        self.rows[nearer] = rows.gather(1, ranked.indices[:, :kept])


class _Spread:
    """How far two rows are apart on the root of the mean square, from sums over all rows."""

    def __init__(self, width: int) -> None:
        self._number, self._sum, self._squares = 0, torch.zeros(width, dtype=torch.float64), 0.0

    def add(self, features: Tensor) -> None:
        """Count further rows, (B, D)."""
        self._number += len(features)
        self._sum += features.sum(dim=0)
        self._squares += float(features.square().sum())

    @property
    def distance(self) -> float:
        """0 where all rows are the same, but for rounding."""
        number = self._number
        square = self._squares / number
        variance = square - float((self._sum / number).square().sum())
        return math.sqrt(2 * variance * number / (number - 1)) if variance > _ROUNDING * square else 0.0
