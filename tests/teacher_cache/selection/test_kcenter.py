"""K-centre: the farthest image comes next, by its definition in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from teacher_cache.selection import SelectorSpec
from teacher_cache.selection import kcenter as kcenter_module
from teacher_cache.selection.encoders import open_encoder
from teacher_cache.selection.kcenter import KCenter, farthest_first
from tests.teacher_cache.selection.pools import pool_of


def one_after_another(features: np.ndarray, known: np.ndarray, count: int) -> list[int]:
    """The definition: whoever is farthest from its nearest, all distances anew each time."""
    points, centres, chosen = features.astype(np.float64), list(known.astype(np.float64)), []
    for _ in range(count):
        distances = [min(((point - centre) ** 2).sum() for centre in centres) for point in points]
        place = max((i for i in range(len(points)) if i not in chosen), key=lambda i: (distances[i], -i))
        chosen.append(place)
        centres.append(points[place])
    return chosen


@st.composite
def grids(draw):
    """Points of whole numbers, whose distances are exact in any precision, with many ties; some of them known."""
    number, width = draw(st.integers(1, 24)), draw(st.integers(1, 4))
    values = draw(st.lists(st.integers(-3, 3), min_size=number * width, max_size=number * width))
    features = np.array(values, np.float32).reshape(number, width)
    known = draw(st.integers(1, 5))
    others = draw(st.lists(st.integers(-3, 3), min_size=known * width, max_size=known * width))
    return features, np.array(others, np.float32).reshape(known, width), draw(st.integers(1, number))


@given(grids(), st.sampled_from([1, 7, 1 << 24]))
def test_it_is_the_farthest_from_all_before_it_and_of_equals_the_first(grid, at_once):
    features, known, count = grid
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(kcenter_module, "ROWS", 3)
        patched.setattr(kcenter_module, "AT_ONCE", at_once)
        found = farthest_first(torch.from_numpy(features), torch.from_numpy(known), count)
    assert found.tolist() == one_after_another(features, known, count)


@given(grids())
def test_without_anything_known_it_begins_nearest_to_the_mean(grid):
    features, _, count = grid
    found = farthest_first(torch.from_numpy(features), torch.empty(0, features.shape[1]), count)
    distances = ((features.astype(np.float64) - features.astype(np.float64).mean(axis=0)) ** 2).sum(axis=1)
    assert distances[found[0]] <= distances.min() + 1e-9
    assert (
        found.tolist()[1:]
        == [place for place in one_after_another(features, features[found[:1]], count) if place != found[0]][
            : count - 1
        ]
    )


def test_what_it_chooses_is_far_from_what_was_bought_by_the_features_of_the_encoder():
    pool = pool_of([0] * 40, bought=6)
    chosen = KCenter().choose(pool, 9, np.random.default_rng(0))
    encoder = open_encoder("pixels", pool)
    features, known = (encoder.features(pool, index).numpy() for index in (pool.left, pool.bought))
    assert chosen.tolist() == pool.left[one_after_another(features, known, 9)].tolist()
    assert chosen.tolist() == KCenter().choose(pool, 9, np.random.default_rng(1)).tolist()


def test_a_subset_is_the_first_of_those_that_are_left():
    pool = pool_of([0] * 40, bought=6)
    rule = SelectorSpec.read("kcenter:subset=12").make()
    rule.require(pool, 5)
    assert set(rule.choose(pool, 5, np.random.default_rng(0))) <= set(pool.left[:12])
    everyone = SelectorSpec.read("kcenter:subset=12").make().choose(pool, 12, np.random.default_rng(0))
    assert sorted(everyone) == sorted(pool.left[:12])
