"""The nested sample: which images the teacher is called on, and in which order.

One seeded permutation orders the whole training pool and every fifth position is validation, so the sample for
n = 1600 is the beginning of the one for n = 2400 and a store can grow. Validation images cost no call. Where some
images have no label, every fifth of those that have one is validation. What is left of the pool is the rest: a store
may keep images of it that the teacher is not asked about, and a larger n asks about the first of them. Images that a
rule chose (`teacher_cache.rounds`) come in the order in which they were chosen, before all others.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from ground.errors import IdentityMismatch, InvalidInput
from storage.made_images import first_unsound, is_made
from storage.rows import num_validation

_VALIDATION_EVERY = 5


@dataclass(frozen=True, slots=True)
class NestedSample:
    """Indices into the training split, in the order of the store's rows.

    Args:
        train: (n,) int64.
        val: (m,) int64, see `num_validation`; at most a fifth of the pool.
        rest: (r,) int64, those that follow, without any that is for validation at whatever n.
    """

    train: np.ndarray
    val: np.ndarray
    rest: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))

    @property
    def images(self) -> np.ndarray:
        """(n + r,) int64, all training images in order."""
        return np.concatenate([self.train, self.rest])

    def keeping(self, num_rest: int) -> NestedSample:
        """The same with the first images of the rest alone."""
        return replace(self, rest=self.rest[:num_rest])


def largest_sample(pool_size: int) -> int:
    """The largest n of a pool, a fifth of which is kept for validation."""
    return pool_size - pool_size // _VALIDATION_EVERY


def draw_sample(
    pool_size: int,
    n: int,
    seed: int,
    is_labelled: np.ndarray | None = None,
    bought: np.ndarray | None = None,
    *,
    makes: bool = False,
) -> NestedSample:
    """The first n training images, all the rest, and n/4 validation images, of the permutation that `seed` gives.

    Args:
        is_labelled: (pool_size,) bool, which images can be validation images; None for all.
        bought: (b,) int64, images that come first, in this order, since a rule chose them; the others follow in theirs.
            Some may be made of those before them (`storage.made_images`).
        makes: whether a rule makes what the pool lacks; then there may be fewer than n.

    Raises:
        InvalidInput: n is below 2 or the pool is too small for it.
        IdentityMismatch: what was bought is not of this pool, or is kept for validation.
    """
    order = np.random.default_rng(seed).permutation(pool_size)
    can_be = np.ones(pool_size, dtype=np.bool_) if is_labelled is None else is_labelled[order]
    is_val = can_be & (can_be.cumsum() % _VALIDATION_EVERY == 0)
    train, val = order[~is_val], order[is_val]
    if n < 2:
        raise InvalidInput(f"--n {n} is too small to train on; give at least 2")
    if not len(val):
        there, more = f"there are {pool_size} training images", "add some"
        if is_labelled is not None:
            there, more = f"{can_be.sum()} training images have a label", "label more"
        raise InvalidInput(f"{there}, and every fifth of those is for validation; {more}")
    if bought is not None:
        train = _begun_with(bought, train)
    if n > len(train) and not makes:
        raise InvalidInput(
            f"--n {n} is more than the {len(train)} images that can be sampled: every fifth of the {can_be.sum()} "
            f"{'training images' if is_labelled is None else 'labelled images'} is kept for validation; "
            f"give --n {len(train)} or less"
        )
    train, val = train.astype(np.int64), val[: num_validation(n)].astype(np.int64)
    return NestedSample(train[:n], val, train[n:])


def _begun_with(bought: np.ndarray, line: np.ndarray) -> np.ndarray:
    """A line of images with some of them brought to its front."""
    images = bought[~is_made(bought)]
    is_sound = first_unsound(bought) is None and len(np.unique(bought)) == len(bought)
    if not is_sound or not np.isin(images, line).all():
        raise IdentityMismatch(
            "the store's rows are not images of this sample: some are kept for validation, are not there, or come "
            "twice; build another store"
        )
    return np.concatenate([bought, line[~np.isin(line, images)]])
