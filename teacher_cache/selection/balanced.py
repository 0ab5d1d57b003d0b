"""Balanced: as many of each class as can be had, at random within a class."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from teacher_cache.selection.contract import Pool, Selector


class Balanced(Selector):
    """Of the class with the fewest images so far, the next one in the order of the sample; of equals, the lowest class.

    A class that has no images left is passed over. It takes O(N) of time and memory.
    """

    name: ClassVar[str] = "balanced"
    source: ClassVar[str] = "stratified sampling (Cochran 1977, Sampling Techniques, chapter 5)"
    needs_labels = True

    def choose(self, pool: Pool, count: int, rng: np.random.Generator) -> np.ndarray:
        """See `Selector.choose`."""
        labels = pool.labels[pool.left]
        known = pool.labels_of(pool.bought)
        have = np.bincount(known[known >= 0], minlength=pool.num_classes)
        # How many of its class there are when an image is bought, were its class's images bought in their order.
        by_class = np.argsort(labels, kind="stable")
        first = np.searchsorted(labels[by_class], labels[by_class])
        turn = np.empty(len(labels), dtype=np.int64)
        turn[by_class] = have[labels[by_class]] + np.arange(len(labels)) - first
        return pool.left[np.lexsort((labels, turn))[:count]]
