"""Mixup and CutMix: calls are spent on mixes of two images that were bought, which the teacher answers as one."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from storage.made_images import PARTS, Kind, Recipes, box_side
from teacher_cache.selection.contract import Pool, Selector
from teacher_cache.selection.made_rule import MadeRule

# Draws for each mix that is wanted; of two images there are too few different mixes.
_ATTEMPTS = 4


class MixRule(MadeRule):
    """Two images at random, in shares by Beta(alpha, alpha), of which the first has the larger; in steps of 1/256.

    Args:
        by, among: see `MadeRule`.
        alpha: of the Beta distribution, above 0.
    """

    kind: ClassVar[Kind]
    fewest_images: ClassVar[int] = 2

    def __init__(self, by: Selector | None = None, among: int | None = None, alpha: float = 1.0) -> None:
        super().__init__(by, among)
        if alpha <= 0:
            raise ValueError(f"alpha must be above 0, got {alpha:g}")
        self.alpha = alpha

    def candidates(self, pool: Pool, images: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
        """See `MadeRule.candidates`."""
        number = _ATTEMPTS * count
        first = rng.integers(0, len(images), number)
        second = (first + rng.integers(1, len(images), number)) % len(images)
        share = rng.beta(self.alpha, self.alpha, number)
        parts = np.clip(np.rint(PARTS * np.maximum(share, 1 - share)), PARTS // 2, PARTS - 1).astype(np.int64)
        if self.kind is Kind.CUTMIX:
            # In small images the box of a small share has no pixel.
            parts = np.minimum(parts, most_parts(pool.identity.geometry.image_size))
        # Halves of the same two images are the same mix.
        swapped = (parts == PARTS // 2) & (first > second)
        first, second = np.where(swapped, second, first), np.where(swapped, first, second)
        made = Recipes(
            kind=np.full(number, self.kind, np.int64), first=images[first], second=images[second], parts=parts
        ).index
        _, places = np.unique(made, return_index=True)
        made = made[np.sort(places)]
        found: np.ndarray = made[~np.isin(made, pool.bought)][:count]
        return found


def most_parts(image_size: int) -> int:
    """The most parts of the first image in a CutMix that has a pixel of the second."""
    return max(parts for parts in range(PARTS // 2, PARTS) if box_side(parts, image_size))


class BoughtMixup(MixRule):
    """The weighted mean of two images."""

    name: ClassVar[str] = "mixup"
    source: ClassVar[str] = "Wang et al. 2020, arXiv:2003.13960 (Active Mixup); mixup: Zhang et al. 2018"
    kind = Kind.MIXUP


class BoughtCutMix(MixRule):
    """A square of one image in another, in its own place."""

    name: ClassVar[str] = "cutmix"
    source: ClassVar[str] = "Yun et al. 2019, arXiv:1905.04899; asked of the teacher as Wang et al. 2020 ask for mixup"
    kind = Kind.CUTMIX
