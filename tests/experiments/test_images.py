"""The images of a grid: how many there are for what it asks, and which of them have labels."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from experiments.grid import Grid
from experiments.grid_file import read_grid
from experiments.images import GridImages, open_images
from ground.errors import InvalidInput
from storage.schema import UNLABELLED
from tests.experiments.grids import small, write


def grid_of(folder: Path, weights: Path, **changes) -> Grid:
    return read_grid(write(folder / "grid.yaml", small(weights, **({"store": {"rest": 40}} | changes))))


def test_a_rest_of_which_nothing_is_left_is_refused_with_the_line(tmp_path, weights):
    beside = {"label": "kd + labels", "method": "kd", "rest": "ce"}
    grid = grid_of(tmp_path, weights, methods=["vanilla", beside], n=[24], store={"rest": 1}, labels_only=False)
    with pytest.raises(InvalidInput, match=r"line \d+: kd \+ labels: digits has 1 images beside the 24"):
        GridImages(grid).check_labels()


def test_more_rest_than_there_is_names_the_line(tmp_path, weights):
    grid = grid_of(tmp_path, weights, n=[150], store={"rest": 1001})
    with pytest.raises(InvalidInput, match=r"line \d+: rest is 1001, and digits has 1000 images beside the largest n"):
        GridImages(grid)


@pytest.mark.parametrize(("store", "kept"), [({"rest": 40}, 88), ({}, 48), ({"rest": "all"}, 1150)])
def test_labels_are_counted_among_the_images_that_a_sample_keeps(tmp_path, weights, store, kept):
    grid = grid_of(tmp_path, weights, store=store, sample_seeds=2)
    images = GridImages(grid)
    assert images.num_images == kept
    assert (images.has_labels, images.keeps_labels) == (True, True)
    assert images.num_labelled_beyond(10) == kept - 10


def test_images_without_a_label_are_none_to_learn_labels_from(tmp_path, weights):
    grid = grid_of(tmp_path, weights, n=[24], store={"rest": "all"})
    dataset = open_images(grid)
    labels = np.full(len(dataset.train), UNLABELLED)
    order = np.random.default_rng(0).permutation(len(labels))
    # Every fifth with a label is for validation.
    labels[order[:5]] = 3
    images = GridImages(grid, replace(dataset, train=replace(dataset.train, labels=labels)))
    assert images.num_images == len(labels) - 1
    assert [images.num_labelled_beyond(n) for n in (0, 3, 4)] == [4, 1, 0]
    assert (images.has_labels, images.keeps_labels) == (True, True)
    # Behind the 24 that are asked about, and a rest that is not kept.
    labels[order[:5]], labels[order[30:35]] = UNLABELLED, 3
    without = replace(grid, store=replace(grid.store, rest=0))
    images = GridImages(without, replace(dataset, train=replace(dataset.train, labels=labels)))
    assert (images.has_labels, images.keeps_labels) == (True, False)
