"""The nested sample: which images the teacher is called on, and in which order.

One seeded permutation orders the whole training pool and every fifth position is validation, so the sample for
n = 1600 is the beginning of the one for n = 2400 and a store can grow. Validation images cost no call.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ground.errors import InvalidInput
from storage.rows import num_validation

_VALIDATION_EVERY = 5


@dataclass(frozen=True, slots=True)
class NestedSample:
    """Indices into the training split, in the order of the store's rows.

    Args:
        train: (n,) int64.
        val: (m,) int64, see `num_validation`; at most a fifth of the pool.
    """

    train: np.ndarray
    val: np.ndarray


def largest_sample(pool_size: int) -> int:
    """The largest n of a pool, a fifth of which is kept for validation."""
    return pool_size - pool_size // _VALIDATION_EVERY


def draw_sample(pool_size: int, n: int, seed: int) -> NestedSample:
    """The first n training images, and n/4 validation images, of the permutation that `seed` gives.

    Raises:
        InvalidInput: n is below 2 or the pool is too small for it.
    """
    order = np.random.default_rng(seed).permutation(pool_size)
    is_val = np.arange(pool_size) % _VALIDATION_EVERY == _VALIDATION_EVERY - 1
    train, val = order[~is_val], order[is_val]
    if n < 2:
        raise InvalidInput(f"--n {n} is too small to train on; give at least 2")
    if n > len(train) or not len(val):
        raise InvalidInput(
            f"--n {n} is more than the {len(train)} images that can be sampled: every fifth of the {pool_size} "
            f"training images is kept for validation; give --n {len(train)} or less"
        )
    return NestedSample(train[:n].astype(np.int64), val[: num_validation(n)].astype(np.int64))
