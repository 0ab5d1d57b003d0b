"""Images that are made of others, against the same made by hand."""

from __future__ import annotations

import numpy as np
import pytest

from storage.made_images import Kind, Recipes, box_side
from teacher_cache.datasets.base import ArraySplit
from teacher_cache.datasets.made_split import MadeSplit

SIDE = 9


@pytest.fixture
def split() -> ArraySplit:
    images = np.random.default_rng(0).integers(0, 256, (6, SIDE, SIDE, 3), dtype=np.uint8)
    return ArraySplit(images, np.array([0, 1, 2, -1, 1, 0]))


def recipe(kind: Kind, first: int, second: int, parts: int = 0) -> int:
    return int(Recipes(*(np.array([value], np.int64) for value in (kind, first, second, parts))).index[0])


def test_images_of_the_split_are_read_as_they_are(split):
    index = np.array([4, 1, 4])
    np.testing.assert_array_equal(MadeSplit(split).read(index), split.images[index])
    np.testing.assert_array_equal(MadeSplit(split).labels_of(index), [1, 1, 1])
    assert MadeSplit(split).content_digest() == split.content_digest()


def test_an_image_again_has_its_pixels_and_its_label_whatever_number_it_has(split):
    index = np.array([recipe(Kind.AGAIN, 2, 1), 0, recipe(Kind.AGAIN, 2, 40)])
    np.testing.assert_array_equal(MadeSplit(split).read(index), split.images[[2, 0, 2]])
    assert MadeSplit(split).labels_of(index).tolist() == [2, 0, 2]


@pytest.mark.parametrize("parts", [128, 170, 255])
def test_a_mixup_is_the_weighted_mean_rounded_to_the_nearest(split, parts):
    [mixed] = MadeSplit(split).read(np.array([recipe(Kind.MIXUP, 5, 1, parts)]))
    share = parts / 256
    exact = share * split.images[5].astype(np.float64) + (1 - share) * split.images[1]
    np.testing.assert_array_equal(mixed, np.floor(exact + 0.5))


@pytest.mark.parametrize("parts", [128, 170, 250])
def test_a_cutmix_is_a_square_of_the_other_image_in_its_own_place(split, parts):
    index = np.array([recipe(Kind.CUTMIX, 0, 4, parts)])
    [mixed] = MadeSplit(split).read(index)
    theirs = (mixed != split.images[0]).any(axis=2)
    rows, columns = np.flatnonzero(theirs.any(axis=1)), np.flatnonzero(theirs.any(axis=0))
    box = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
    assert mixed[box].shape[:2] == (box_side(parts, SIDE),) * 2
    np.testing.assert_array_equal(mixed[box], split.images[4][box])
    np.testing.assert_array_equal(MadeSplit(split).read(index)[0], mixed)


def test_a_mix_has_the_label_of_its_larger_part_where_both_have_one(split):
    index = np.array([recipe(Kind.MIXUP, 1, 2, 130), recipe(Kind.CUTMIX, 1, 3, 130), recipe(Kind.MIXUP, 3, 1, 130)])
    assert MadeSplit(split).labels_of(index).tolist() == [1, -1, -1]
