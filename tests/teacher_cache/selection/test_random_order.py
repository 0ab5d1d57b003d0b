"""Random: nothing is drawn that was not drawn before."""

from __future__ import annotations

import numpy as np

from teacher_cache.selection.random_order import Random
from tests.teacher_cache.selection.pools import pool_of


def test_it_is_the_beginning_of_what_is_left():
    pool = pool_of([0] * 20, bought=5)
    for seed in (0, 1):
        np.testing.assert_array_equal(Random().choose(pool, 7, np.random.default_rng(seed)), pool.left[:7])
