"""The most alike of a store's images, against all distances of all rows at once."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from ground.errors import InvalidInput
from models.compute import Compute
from storage.store import Store
from teacher_cache.datasets.base import ArraySplit
from teacher_cache.selection import nearest
from teacher_cache.selection.nearest import Looker

CPU = Compute(torch.device("cpu"), "fp32")


@pytest.fixture
def looker(built_store) -> Looker:
    return Looker.of(Store.open(built_store), "pixels", CPU)


def all_distances(looker: Looker) -> np.ndarray:
    """(n, n), each from the difference of two rows of features; itself is no neighbour."""
    images = looker.store.read("train/images")
    pool = replace(looker.pool, images=ArraySplit(images, np.zeros(len(images), np.int64)))
    features = looker.encoder.features(pool, np.arange(len(images))).double().numpy()
    found = np.sqrt(np.square(features[:, None] - features[None]).sum(axis=2))
    usual = np.sqrt(np.square(found[np.triu_indices(len(found), 1)]).mean())
    np.fill_diagonal(found, np.inf)
    return found / usual


@pytest.mark.parametrize("at_once", [1, 7, 96, 256])
@pytest.mark.parametrize("rows", [[0], [95], [3, 4, 5, 40, 77], list(range(96))], ids=len)
def test_the_nearest_are_those_of_all_distances_however_many_are_seen_at_once(looker, monkeypatch, at_once, rows):
    monkeypatch.setattr(nearest, "images_at_once", lambda pool: at_once)
    found, distances = looker.nearest(np.array(rows), 5)
    expected = all_distances(looker)[rows]
    np.testing.assert_array_equal(found, expected.argsort(axis=1, kind="stable")[:, :5])
    np.testing.assert_allclose(distances, np.sort(expected, axis=1)[:, :5], rtol=1e-5, atol=1e-6)


def test_where_there_are_fewer_others_all_of_them_are_near(looker):
    found, distances = looker.nearest(np.array([7, 50]), 500)
    assert found.shape == distances.shape == (2, 95)
    assert [sorted(row) for row in found.tolist()] == [[r for r in range(96) if r != own] for own in (7, 50)]
    assert (np.diff(distances, axis=1) >= 0).all()


def test_the_same_image_again_is_no_distance_away(looker, monkeypatch):
    images = looker.store.read("train/images")
    images[90] = images[3]
    monkeypatch.setattr(Store, "read_sample", lambda store, name, rows: images[rows.index])
    found, distances = looker.nearest(np.array([3, 90]), 1)
    assert found.tolist() == [[90], [3]]
    np.testing.assert_allclose(distances, 0, atol=1e-6)


def test_images_that_are_all_the_same_are_no_distance_apart(looker, monkeypatch):
    images = np.full_like(looker.store.read("train/images"), 9)
    monkeypatch.setattr(Store, "read_sample", lambda store, name, rows: images[rows.index])
    np.testing.assert_allclose(looker.nearest(np.array([0, 8]), 3)[1], 0, atol=1e-5)


def test_nothing_asked_is_nothing_found(looker):
    assert looker.nearest(np.empty(0, np.int64), 3)[0].shape == (0, 3)


def test_progress_counts_every_image_that_was_looked_at(looker):
    counts = []
    looker.nearest(np.array([1, 2]), 1, lambda count, note: counts.append(count))
    assert sum(counts) == 2 + 96


def test_the_paid_teacher_compares_nothing(built_store, weights):
    with pytest.raises(InvalidInput, match="is the teacher resnet8 itself"):
        Looker.of(Store.open(built_store), f"resnet8@{weights}", CPU)
