"""Images that are made of others of the pool, so that a call can be spent on them: the same one again, or a mix of two.

What an image is made of is its index: a store's `train/source_index` has the place of an image in the training split,
or, from 2**62 on, a recipe. Whoever has the pool can make it again from that number alone, to the last bit. From the
highest bit down: 1, the kind (2 bits), 4 bits of 0, the share (8), and the places of two images (24 each).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import IntEnum

import numpy as np

_MADE = 1 << 62
_KIND_AT, _SHARE_AT, _SECOND_AT = 60, 48, 24
_PLACE_MASK, _SHARE_MASK, _KIND_MASK = (1 << 24) - 1, (1 << 8) - 1, 3
# A pool of more images has places that no recipe can name.
MOST_IMAGES = 1 << 24
# Shares are counted in these.
PARTS = 256


class Kind(IntEnum):
    """How an image is made."""

    AGAIN = 1
    MIXUP = 2
    CUTMIX = 3


@dataclass(frozen=True, slots=True, eq=False)
class Recipes:
    """What images are made of, (m,) each.

    Args:
        kind: int64, of `Kind`.
        first: int64, place of the image that it is again, or of which a mix has the larger part.
        second: int64, place of the other one; of an image again, the how manyth time after the first it is.
        parts: int64, of `PARTS` how many of a mix are of the first image, as its rule drew them; 0 of an image again.
    """

    kind: np.ndarray
    first: np.ndarray
    second: np.ndarray
    parts: np.ndarray

    @property
    def index(self) -> np.ndarray:
        """(m,) int64, the recipes as a store has them."""
        found: np.ndarray = (
            _MADE | self.kind << _KIND_AT | self.parts << _SHARE_AT | self.second << _SECOND_AT | self.first
        )
        return found

    @classmethod
    def of(cls, index: np.ndarray) -> Recipes:
        """The recipes of (m,) int64 that all are some."""
        return cls(
            kind=index >> _KIND_AT & _KIND_MASK,
            first=index & _PLACE_MASK,
            second=index >> _SECOND_AT & _PLACE_MASK,
            parts=index >> _SHARE_AT & _SHARE_MASK,
        )

    @property
    def is_mix(self) -> np.ndarray:
        """(m,) bool."""
        found: np.ndarray = self.kind != Kind.AGAIN
        return found

    @property
    def sources(self) -> np.ndarray:
        """Places of all images that any of these is made of."""
        return np.unique(np.concatenate([self.first, self.second[self.is_mix]]))


def first_unsound(index: np.ndarray) -> int | None:
    """The first row of a store whose recipe is none, or is of images that are no rows before it; None where none is.

    Args:
        index: (n,) int64, of its rows from the first on.
    """
    rows = np.flatnonzero(is_made(index))
    if not len(rows):
        return None
    made = Recipes.of(index[rows])
    mix, again = made.is_mix, made.kind == Kind.AGAIN
    sound = (made.index == index[rows]) & (made.kind >= Kind.AGAIN)
    sound &= np.where(again, (made.parts == 0) & (made.second >= 1), made.parts >= PARTS // 2)
    sound &= again | (made.first != made.second)
    order = np.argsort(index, kind="stable")
    for places, needed in ((made.first, np.ones_like(mix)), (made.second, mix)):
        found = order[np.minimum(np.searchsorted(index[order], places), len(index) - 1)]
        sound &= ~needed | ((index[found] == places) & (found < rows))
    wrong = rows[~sound]
    return int(wrong[0]) if len(wrong) else None


def is_made(index: np.ndarray) -> np.ndarray:
    """Which of (n,) int64 are recipes: (n,) bool."""
    found: np.ndarray = index >= _MADE
    return found


def box_side(parts: int, image_size: int) -> int:
    """Pixels of the side of the box of the second image in a CutMix: its area is the second's share, rounded."""
    return round(image_size * math.sqrt(1 - parts / PARTS))


def first_shares(recipes: Recipes, image_size: int) -> np.ndarray:
    """(m,) float64 in [0, 1], how much of each image is of its first part: 1 where it is that image again."""
    shares = recipes.parts / PARTS
    shares[recipes.kind == Kind.AGAIN] = 1.0
    for place in np.flatnonzero(recipes.kind == Kind.CUTMIX).tolist():
        shares[place] = 1 - (box_side(int(recipes.parts[place]), image_size) / image_size) ** 2
    return shares
