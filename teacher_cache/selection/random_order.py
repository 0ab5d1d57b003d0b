"""Random: the next images of the order that the sample's seed gives; what every other rule is held against."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from teacher_cache.selection.contract import Pool, Selector


class Random(Selector):
    """The order is drawn already, so nothing is left to chance here: the beginning of `pool.left`."""

    name: ClassVar[str] = "random"
    source: ClassVar[str] = "the paper's sample (Xu et al., WACV 2025)"

    def choose(self, pool: Pool, count: int, rng: np.random.Generator) -> np.ndarray:
        """See `Selector.choose`."""
        return pool.left[:count]
