"""Recipes: what an image is made of is its index, and comes back from it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.made_images import MOST_IMAGES, Kind, Recipes, box_side, first_shares, first_unsound, is_made

places = st.integers(0, MOST_IMAGES - 1)


def recipes(kind: int, first: int, second: int, parts: int) -> Recipes:
    return Recipes(*(np.array([value], np.int64) for value in (kind, first, second, parts)))


@given(st.sampled_from(Kind), places, places, st.integers(0, 255))
def test_a_recipe_comes_back_from_its_index_which_no_image_has(kind, first, second, parts):
    index = recipes(kind, first, second, parts).index
    assert index.dtype == np.int64
    assert is_made(index).all()
    assert not is_made(np.array([0, MOST_IMAGES - 1, 2**40], np.int64)).any()
    found = Recipes.of(index)
    assert [int(of[0]) for of in (found.kind, found.first, found.second, found.parts)] == [kind, first, second, parts]


def test_bits_are_where_the_format_says():
    index = int(recipes(Kind.CUTMIX, 5, 7, 200).index[0])
    assert index == (1 << 62) | (3 << 60) | (200 << 48) | (7 << 24) | 5


def test_sources_are_images_and_no_counts():
    made = Recipes(
        kind=np.array([Kind.AGAIN, Kind.MIXUP]),
        first=np.array([4, 9]),
        second=np.array([1, 3]),
        parts=np.array([0, 128]),
    )
    assert made.sources.tolist() == [3, 4, 9]
    assert made.is_mix.tolist() == [False, True]


@given(st.integers(128, 255), st.integers(2, 512))
def test_the_share_of_a_cutmix_is_that_of_the_pixels_outside_its_box(parts, size):
    side = box_side(parts, size)
    share = first_shares(recipes(Kind.CUTMIX, 0, 1, parts), size)[0]
    assert share == pytest.approx((size * size - side * side) / (size * size))
    # Rounded to the nearest side: within half a pixel of it.
    assert abs(side - size * (1 - parts / 256) ** 0.5) <= 0.5


def test_the_share_of_a_mixup_is_drawn_and_that_of_an_image_again_is_one():
    assert first_shares(recipes(Kind.MIXUP, 0, 1, 192), 32)[0] == 0.75
    assert first_shares(recipes(Kind.AGAIN, 0, 1, 0), 32)[0] == 1.0


def row(kind: int, first: int, second: int, parts: int) -> int:
    return int(recipes(kind, first, second, parts).index[0])


def test_rows_that_are_made_of_rows_before_them_are_sound():
    made = [row(Kind.AGAIN, 7, 1, 0), row(Kind.AGAIN, 7, 2, 0), row(Kind.MIXUP, 3, 7, 128), row(Kind.CUTMIX, 7, 3, 255)]
    assert first_unsound(np.array([3, 7, *made])) is None
    assert first_unsound(np.array([3, 7])) is None


@pytest.mark.parametrize(
    "wrong",
    [
        row(0, 3, 7, 128),  # of no kind
        row(Kind.MIXUP, 3, 7, 128) | 1 << 57,  # a bit that has no meaning
        row(Kind.MIXUP, 3, 7, 127),  # the smaller part first
        row(Kind.CUTMIX, 3, 3, 128),  # of one image
        row(Kind.AGAIN, 3, 0, 0),
        row(Kind.AGAIN, 3, 1, 5),
        row(Kind.AGAIN, 5, 1, 0),  # of an image that is not there
        row(Kind.MIXUP, 3, 5, 128),
        row(Kind.MIXUP, 9, 3, 128),  # of one that comes later
    ],
)
def test_the_first_row_that_is_not_is_found(wrong):
    assert first_unsound(np.array([3, 7, row(Kind.AGAIN, 3, 1, 0), wrong, 9])) == 3
