"""Balanced: the class with the fewest images so far comes next."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ground.errors import InvalidInput
from teacher_cache.selection.balanced import Balanced
from teacher_cache.selection.contract import require_labelled
from tests.teacher_cache.selection.pools import pool_of


def one_after_another(pool, count) -> list[int]:
    """The definition, an image at a time."""
    have = [int((pool.labels[pool.bought] == c).sum()) for c in range(pool.num_classes)]
    left, chosen = pool.left.tolist(), []
    for _ in range(count):
        fewest = min({pool.labels[index] for index in left}, key=lambda c: (have[c], c))
        index = next(index for index in left if pool.labels[index] == fewest)
        left.remove(index)
        chosen.append(index)
        have[fewest] += 1
    return chosen


@given(st.lists(st.integers(0, 3), min_size=2, max_size=40), st.data())
def test_it_is_the_next_of_the_class_with_the_fewest(labels, data):
    pool = pool_of(labels, bought=data.draw(st.integers(0, len(labels) - 1)))
    count = data.draw(st.integers(1, len(pool.left)))
    assert Balanced().choose(pool, count, np.random.default_rng(0)).tolist() == one_after_another(pool, count)


def test_classes_come_equally_often_where_they_can():
    pool = pool_of([0] * 50 + [1] * 10 + [2] * 5 + [3] * 30)
    chosen = Balanced().choose(pool, 20, np.random.default_rng(0))
    assert np.bincount(pool.labels[chosen]).tolist() == [5, 5, 5, 5]
    more = Balanced().choose(pool, 40, np.random.default_rng(0))
    assert np.bincount(pool.labels[more]).tolist() == [13, 10, 5, 12]


def test_images_without_a_label_are_refused_and_may_have_been_bought():
    labels = [0, 1, 2, 3, -1] * 4
    with pytest.raises(InvalidInput, match="of the 20 images that may be bought have none"):
        require_labelled(Balanced(), pool_of(labels))
    pool = pool_of([0, 1, 2, 3] * 3 + [0])
    unlabelled = pool.labels.copy()
    unlabelled[pool.left[0]] = -1
    again = pool_of(unlabelled, bought=1)
    require_labelled(Balanced(), again)
    assert len(Balanced().choose(again, 12, np.random.default_rng(0))) == 12
