"""Typical: the densest image of the largest clusters of which nothing was bought."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.neighbors import NearestNeighbors

from ground.errors import InvalidInput
from teacher_cache.selection import SelectorSpec
from teacher_cache.selection import typical as typical_module
from teacher_cache.selection.typical import Typical, most_typical
from tests.teacher_cache.selection.pools import pool_of


def by_definition(features: np.ndarray, labels: np.ndarray, num_left: int, count: int) -> list[int]:
    """One image after another, with scikit-learn's neighbours."""
    typicality = np.zeros(len(features))
    for cluster in np.unique(labels):
        members = np.flatnonzero(labels == cluster)
        if len(members) > 1:
            near = NearestNeighbors(n_neighbors=min(20, len(members) - 1), algorithm="brute")
            distances, _ = near.fit(features[members].astype(np.float64)).kneighbors()  # without themselves
            typicality[members] = -distances.mean(axis=1)
    taken, chosen = set(range(num_left, len(features))), []
    for _ in range(count):

        def key(cluster: int) -> tuple[bool, int, int, int]:
            members = np.flatnonzero(labels == cluster)
            return len(members) <= 5, len(taken & set(members)), -len(members), cluster

        free = [i for i in range(num_left) if i not in taken]
        cluster = min({int(labels[i]) for i in free}, key=key)
        best = max((i for i in free if labels[i] == cluster), key=lambda i: (typicality[i], -i))
        taken.add(best)
        chosen.append(best)
    return chosen


@given(st.integers(1, 60), st.integers(1, 6), st.integers(0, 1 << 20), st.sampled_from([1, 50, 1 << 24]), st.data())
def test_it_is_the_most_typical_of_the_cluster_that_lacks_most(number, clusters, seed, at_once, data):
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(number, 3)).astype(np.float32)
    labels = rng.integers(0, clusters, number)
    num_left = data.draw(st.integers(1, number))
    count = data.draw(st.integers(1, num_left))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(typical_module, "AT_ONCE", at_once)
        found = most_typical(torch.from_numpy(features), labels, num_left, count)
    assert found.tolist() == by_definition(features, labels, num_left, count)


def drawn_in_groups(sizes: list[int]) -> np.ndarray:
    """Images of colours of their own, a group after the other, with a little noise."""
    rng = np.random.default_rng(1)
    patterns = rng.integers(40, 216, (len(sizes), 8, 8, 3))
    images = np.repeat(patterns, sizes, axis=0) + rng.integers(-8, 9, (sum(sizes), 8, 8, 3))
    return images.astype(np.uint8)


def test_groups_of_which_nothing_was_bought_come_first_and_the_largest_of_them():
    sizes = [30, 20, 14, 9]
    labels = np.repeat(np.arange(4), sizes)
    pool = pool_of(labels, images=drawn_in_groups(sizes))
    chosen = Typical().choose(pool, 4, np.random.default_rng(0))
    assert pool.labels[chosen].tolist() == [0, 1, 2, 3]
    again = pool_of(labels, images=drawn_in_groups(sizes), bought=2)
    rest = Typical(clusters=4).choose(again, 3, np.random.default_rng(0))
    assert not set(again.labels[rest][:2]) & set(again.labels[again.bought])
    assert set(rest) <= set(again.left)


def test_the_same_state_of_chance_gives_the_same_images_and_all_can_be_had():
    pool = pool_of([0] * 30, bought=4)
    rule = SelectorSpec.read("typical:clusters=3").make()
    first, second = (rule.choose(pool, 10, np.random.default_rng(3)).tolist() for _ in range(2))
    assert first == second
    assert sorted(rule.choose(pool, 26, np.random.default_rng(0))) == sorted(pool.left)


def test_images_that_are_all_alike_can_be_chosen_from():
    pool = pool_of([0] * 12, images=np.zeros((12, 8, 8, 3), np.uint8), bought=2)
    assert len(set(Typical().choose(pool, 7, np.random.default_rng(0)))) == 7


@pytest.mark.parametrize(("text", "said"), [("typical:clusters=0", "clusters must be"), ("typical:subset=0", "subset")])
def test_settings_out_of_range_are_refused(text, said):
    with pytest.raises(InvalidInput, match=said):
        SelectorSpec.read(text)
