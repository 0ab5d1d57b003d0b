"""The nested sample: smaller ones are the beginning of larger ones, and validation is apart."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ground.errors import InvalidInput
from ground.geometry import ViewGeometry
from ground.views import sample_views
from teacher_cache.sample import draw_sample


@given(st.integers(20, 500), st.integers(0, 5), st.data())
def test_samples_are_nested_and_disjoint(pool, seed, data):
    largest = pool - pool // 5
    n = data.draw(st.integers(2, largest))
    small, large = draw_sample(pool, n, seed), draw_sample(pool, largest, seed)
    np.testing.assert_array_equal(small.train, large.train[:n])
    np.testing.assert_array_equal(small.val, large.val[: len(small.val)])
    everything = np.concatenate([large.train, large.val])
    assert len(set(everything.tolist())) == len(everything)
    # At the largest n of some pools, rounding leaves one image fewer than n // 4.
    assert len(small.val) == max(1, min(n // 4, pool // 5))
    assert everything.min() >= 0
    assert everything.max() < pool


def test_every_fifth_place_of_one_permutation_is_validation():
    order = np.random.default_rng(7).permutation(100)
    sample = draw_sample(100, 80, seed=7)
    np.testing.assert_array_equal(sample.val, order[4::5])
    np.testing.assert_array_equal(sample.train, [index for place, index in enumerate(order) if place % 5 != 4])


def test_seeds_give_different_samples():
    assert not np.array_equal(draw_sample(100, 50, 0).train, draw_sample(100, 50, 1).train)


@pytest.mark.parametrize("n", [81, 10_000])
def test_more_than_the_pool_is_refused_with_the_limit(n):
    with pytest.raises(InvalidInput, match="more than the 80 images that can be sampled.*--n 80 or less"):
        draw_sample(100, n, seed=0)


@pytest.mark.parametrize("labelled", [None, 4])
def test_a_pool_without_an_image_for_validation_is_refused_for_that(labelled):
    is_labelled = None if labelled is None else np.arange(100) < labelled
    said = "there are 4 training images" if labelled is None else "4 training images have a label"
    with pytest.raises(
        InvalidInput, match=f"^{said}, and every fifth of those is for validation; (add some|label more)$"
    ):
        draw_sample(4 if labelled is None else 100, 4, seed=0, is_labelled=is_labelled)


@pytest.mark.parametrize("n", [-1, 0, 1])
def test_too_few_are_refused(n):
    with pytest.raises(InvalidInput, match="too small"):
        draw_sample(100, n, seed=0)


def test_a_view_depends_on_its_image_alone():
    geometry = ViewGeometry(image_size=32, crop_size=32, padding=4)
    index = np.array([5, 9, 2, 7])
    views = sample_views(geometry, "augmented", seed=1, source_index=index, num_views=3)
    again = sample_views(geometry, "augmented", seed=1, source_index=index[::-1], num_views=3)
    np.testing.assert_array_equal(views, again[::-1])
    assert views[..., :2].min() >= 0
    assert views[..., :2].max() <= 8
    plain = sample_views(geometry, "plain", seed=1, source_index=index, num_views=1)
    assert (plain == (4, 4, 0)).all()
