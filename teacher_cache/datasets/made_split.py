"""Training images as a store has them: those of the split, and those that are made of them (`storage.made_images`)."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from storage.made_images import PARTS, Kind, Recipes, box_side, is_made
from storage.schema import UNLABELLED
from teacher_cache.datasets.base import Split


@dataclass(frozen=True, eq=False)
class MadeSplit(Split):
    """A split from which images can be read that are made of its own.

    Args:
        of: whose images they are made of.
        labels: (N,) int64, of those alone.
    """

    of: Split
    labels: np.ndarray = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "labels", self.of.labels)

    def read(self, indices: np.ndarray) -> np.ndarray:
        """See `Split.read`; each image that another is made of is decoded once."""
        index = np.asarray(indices, dtype=np.int64)
        made = is_made(index)
        if not made.any():
            return self.of.read(index)
        recipes = Recipes.of(index[made])
        places = np.unique(np.concatenate([index[~made], recipes.sources]))
        decoded = self.of.read(places)
        images = np.empty((len(index), *decoded.shape[1:]), np.uint8)
        images[~made] = decoded[np.searchsorted(places, index[~made])]
        first = decoded[np.searchsorted(places, recipes.first)]
        # Of an image again the second is a count, whatever place that would be.
        second = decoded[np.searchsorted(places, np.where(recipes.is_mix, recipes.second, recipes.first))]
        images[made] = [
            _MAKERS[Kind(kind)](ours, theirs, parts, seed)
            for ours, theirs, kind, parts, seed in zip(
                first, second, recipes.kind.tolist(), recipes.parts.tolist(), index[made].tolist(), strict=True
            )
        ]
        return images

    def content_digest(self) -> bytes:
        """See `Split.content_digest`: nothing is in it that is not in the images."""
        return self.of.content_digest()

    def labels_of(self, indices: np.ndarray) -> np.ndarray:
        """(n,) int64: of a mix that of its larger part, where both have one."""
        index = np.asarray(indices, dtype=np.int64)
        made = is_made(index)
        recipes = Recipes.of(index[made])
        found = np.empty(len(index), np.int64)
        found[~made] = self.labels[index[~made]]
        labels, is_mix = self.labels[recipes.first], recipes.is_mix
        labels[is_mix] = np.where(self.labels[recipes.second[is_mix]] == UNLABELLED, UNLABELLED, labels[is_mix])
        found[made] = labels
        return found


def _again(image: np.ndarray, other: np.ndarray, parts: int, seed: int) -> np.ndarray:
    return image


def _mixup(image: np.ndarray, other: np.ndarray, parts: int, seed: int) -> np.ndarray:
    """The weighted mean, rounded to the nearest, half up."""
    total = parts * image.astype(np.uint16) + (PARTS - parts) * other.astype(np.uint16) + PARTS // 2
    mixed: np.ndarray = (total // PARTS).astype(np.uint8)
    return mixed


def _cutmix(image: np.ndarray, other: np.ndarray, parts: int, seed: int) -> np.ndarray:
    """A square of the other image in its own place, which the recipe alone decides."""
    size = len(image)
    side = box_side(parts, size)
    top, left = np.random.default_rng(seed).integers(0, size - side + 1, size=2)
    mixed = image.copy()
    mixed[top : top + side, left : left + side] = other[top : top + side, left : left + side]
    return mixed


_MAKERS = {Kind.AGAIN: _again, Kind.MIXUP: _mixup, Kind.CUTMIX: _cutmix}
