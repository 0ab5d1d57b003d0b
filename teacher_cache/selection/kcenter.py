"""K-centre: the image that is farthest from all that were bought, and so on; no image is left far from one that was."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from teacher_cache.selection.feature_rule import FeatureRule

# Distances that are computed at once, and rows of features.
AT_ONCE, ROWS = 1 << 24, 1 << 12
_CHOSEN = -1.0


class KCenter(FeatureRule):
    """Greedy k-centre: the next image is argmax_i min_j |x_i - x_j|^2 over all j that were bought, or chosen before it.

    Where nothing was bought, the first is the one nearest to the mean. See `FeatureRule` for its settings. It takes
    O(M D (b + count)) of time, of M images with D features and b that were bought, and 4 M D bytes.
    """

    name: ClassVar[str] = "kcenter"
    source: ClassVar[str] = "Sener and Savarese 2018, arXiv:1708.00489, algorithm 1"

    def pick(self, features: Tensor, num_left: int, count: int, rng: np.random.Generator) -> np.ndarray:
        """See `FeatureRule.pick`."""
        return farthest_first(features[:num_left], features[num_left:], count)

    def bytes_beside(self, left: int, bought: int, count: int, width: int) -> int:
        """See `FeatureRule.bytes_beside`: squares and distances of all, then products with some of the others."""
        return 4 * (7 * left + bought + 2 * min(AT_ONCE, left * bought) + 6 * ROWS * width)


def farthest_first(features: Tensor, known: Tensor, count: int) -> np.ndarray:
    """Places of rows, (count,): each the farthest from the known ones and those before it; of equals, the first one.

    Args:
        features: (M, D) float32, M at least `count`.
        known: (b, D) float32; where there are none, the first row is the one nearest to the mean.
    """
    squares = _squares(features)
    chosen = np.empty(count, dtype=np.int64)
    first = 0
    if len(known):
        distances = _to_nearest(features, squares, known)
    else:
        distances = torch.full((len(features),), torch.inf)
        chosen[0] = place = _nearest_to_mean(features)
        _add(distances, features, squares, place)
        first = 1
    for turn in range(first, count):
        chosen[turn] = place = int(distances.argmax())
        _add(distances, features, squares, place)
    return chosen


def _add(distances: Tensor, features: Tensor, squares: Tensor, place: int) -> None:
    """Lower the distances of all rows to that from the row at a place, which is not chosen again."""
    new = torch.mv(features, features[place]).mul_(-2).add_(squares).add_(squares[place]).clamp_min_(0)
    torch.minimum(distances, new, out=distances)
    distances[place] = _CHOSEN


def _squares(features: Tensor) -> Tensor:
    """(M,) squared lengths."""
    found = torch.empty(len(features))
    for part, rows in zip(found.split(ROWS), features.split(ROWS), strict=True):
        part.copy_(rows.square().sum(dim=1))
    return found


def _to_nearest(features: Tensor, squares: Tensor, known: Tensor) -> Tensor:
    """(M,) squared distances to the nearest of the known rows."""
    others, found = _squares(known), torch.empty(len(features))
    rows = max(1, AT_ONCE // len(known))
    for start in range(0, len(features), rows):
        part = slice(start, start + rows)
        products = features[part] @ known.T
        found[part] = products.mul_(-2).add_(others).amin(dim=1).add_(squares[part]).clamp_min_(0)
    return found


def _nearest_to_mean(features: Tensor) -> int:
    mean = sum(rows.double().sum(dim=0) for rows in features.split(ROWS)) / len(features)
    return int(torch.cat([(rows - mean).square().sum(dim=1) for rows in features.split(ROWS)]).argmin())
