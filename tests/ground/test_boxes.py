"""Boxes against torchvision's RandomResizedCrop, and Pillow's resizing of them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as tv
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import RandomResizedCrop

from ground.boxes import NUM_DRAWN, box_of, cut_boxes
from ground.geometry import BOX_AREA, BOX_ASPECT, INTERPOLATIONS, Normalisation, Rendering, ViewGeometry
from ground.views import apply_views, draw_views, sample_views, view_pixels
from tests.ground.test_views import photographs

CONSTANTS = Normalisation(mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))


def geometry_of(side: int, **changes: object) -> ViewGeometry:
    return ViewGeometry(**{"image_size": side, "crop_size": side, "padding": 0} | changes)


def drawn_boxes(side: int, count: int, **changes: object) -> np.ndarray:
    views = draw_views(geometry_of(side, **changes), count, torch.Generator().manual_seed(0), boxes=True)
    assert (views.shape, views.dtype) == ((count, 5), torch.int16)
    return views.numpy().astype(np.int64)


@given(st.integers(1, 300), st.lists(st.floats(0, 1, exclude_max=True), min_size=NUM_DRAWN, max_size=NUM_DRAWN))
def test_a_box_lies_inside_its_image(side, drawn):
    top, left, flip, height, width = box_of(drawn, side, flips=True)
    assert 0 <= top < top + height <= side
    assert 0 <= left < left + width <= side
    assert flip in (0, 1)


def test_areas_aspects_and_places_are_distributed_as_torchvisions():
    side, count = 224, 4000
    torch.manual_seed(0)
    image = torch.empty(3, side, side)
    theirs = np.array([RandomResizedCrop.get_params(image, BOX_AREA, BOX_ASPECT) for _ in range(count)])
    top, left, _, height, width = drawn_boxes(side, count).T
    ours = np.stack([top, left, height, width], axis=1)

    def measures(boxes: np.ndarray) -> list[np.ndarray]:
        top, left, height, width = boxes.T
        free = [(side - length + 1) for length in (height, width)]
        return [height * width, width / height, (top + 0.5) / free[0], (left + 0.5) / free[1]]

    # Kolmogorov and Smirnov's bound for two samples of one distribution, at one in a thousand.
    bound = 1.95 * math.sqrt(2 / count)
    for mine, other in zip(measures(ours), measures(theirs), strict=True):
        values = np.sort(np.concatenate([mine, other]))
        ranks = [np.searchsorted(np.sort(sample), values, side="right") / count for sample in (mine, other)]
        assert np.abs(ranks[0] - ranks[1]).max() < bound
    # In expectation the same as well: within four deviations of a mean.
    areas = [boxes[:, 2] * boxes[:, 3] / side**2 for boxes in (ours, theirs)]
    assert abs(areas[0].mean() - areas[1].mean()) < 4 * areas[1].std() * math.sqrt(2 / count)


def test_an_area_that_never_fits_falls_back_on_the_whole_image():
    # All of the area, three times as wide as high were it allowed: no try fits.
    assert box_of([0.3, 0.3, 0.9] + [1 - 1e-9, 1 - 1e-9] * 10, 64, flips=True) == (0, 0, 0, 64, 64)


def test_half_of_the_boxes_are_mirrored_where_that_is_allowed():
    assert abs(drawn_boxes(32, 2000)[:, 2].mean() - 0.5) < 0.05
    assert drawn_boxes(32, 500, flips=False)[:, 2].max() == 0


def test_padding_plays_no_role():
    assert (drawn_boxes(32, 20, padding=4) == drawn_boxes(32, 20)).all()
    assert (drawn_boxes(32, 20, crop_size=24) == drawn_boxes(32, 20)).all()


@given(st.integers(0, 1 << 40), st.lists(st.integers(0, 1 << 30), min_size=1, max_size=4, unique=True), st.data())
def test_a_box_depends_on_seed_image_and_view_number_alone(seed, index, data):
    geometry = geometry_of(40)

    def sampled(rows: list[int], views: int) -> np.ndarray:
        return sample_views(geometry, "resized", seed=seed, source_index=np.array(rows), num_views=views)

    whole = sampled(index, 3)
    assert (whole.shape, whole.dtype) == ((len(index), 3, 5), np.int16)
    row = data.draw(st.integers(0, len(index) - 1))
    np.testing.assert_array_equal(sampled([index[row]], 2)[0], whole[row, :2])
    assert len(np.unique(whole.reshape(-1, 5), axis=0)) > 1


def test_crops_are_those_of_earlier_releases():
    geometry, index = geometry_of(32, padding=4), np.array([0, 7, 50000])
    views = sample_views(geometry, "augmented", seed=3, source_index=index, num_views=2)
    assert views.tolist() == [[[7, 0, 0], [1, 2, 1]], [[4, 6, 0], [8, 5, 1]], [[3, 5, 1], [4, 8, 0]]]
    assert sample_views(geometry, "plain", seed=3, source_index=index, num_views=1).tolist() == [[[4, 4, 0]]] * 3


@given(st.integers(0, 2**31), st.integers(2, 20))
def test_a_box_is_torchvisions_crop_and_flip(seed, side):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (4, side, side, 3), generator=generator, dtype=torch.uint8)
    boxes = draw_views(geometry_of(side), 4, generator, boxes=True)
    for image, (top, left, flip, height, width), found in zip(
        images, boxes.tolist(), cut_boxes(images, boxes), strict=True
    ):
        expected = tv.crop(image.permute(2, 0, 1), top, left, height, width)
        torch.testing.assert_close(found, tv.horizontal_flip(expected) if flip else expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    "box",
    [(-1, 0, 0, 4, 4), (0, 5, 0, 4, 4), (5, 0, 0, 4, 4), (0, 0, 0, 0, 4), (0, 0, 0, 4, -2), (30000, 0, 0, 30000, 1)],
)
def test_a_box_that_is_not_inside_its_image_is_refused(box):
    with pytest.raises(IndexError, match="lies outside its image of 8 pixels"):
        cut_boxes(torch.zeros(1, 8, 8, 3, dtype=torch.uint8), torch.tensor([box], dtype=torch.int16))


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("size", [32, 96, 224])
def test_a_box_is_shown_as_pillow_crops_flips_and_resizes_it(interpolation, size):
    images = photographs(12, 128).permute(0, 2, 3, 1)
    rendering = Rendering(
        geometry=geometry_of(128), normalisation=CONSTANTS, input_size=size, interpolation=interpolation
    )
    boxes = torch.from_numpy(drawn_boxes(128, 12))
    found = view_pixels(images, boxes, rendering)
    assert (found.shape, found.dtype) == ((12, 3, size, size), torch.uint8)
    assert found.is_contiguous(memory_format=torch.channels_last)
    method = Image.Resampling[interpolation.upper()]
    for image, (top, left, flip, height, width), pixels in zip(images, boxes.tolist(), found, strict=True):
        cut = Image.fromarray(image.numpy()).crop((left, top, left + width, top + height))
        cut = cut.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else cut
        expected = torch.from_numpy(np.array(cut.resize((size, size), method))).permute(2, 0, 1)
        apart = (pixels.int() - expected.int()).abs()
        assert apart.max() <= 2
        assert (apart > 1).float().mean() < 1e-3


def test_a_box_of_the_networks_size_is_the_square_cut_there():
    images = photographs(6, 40).permute(0, 2, 3, 1)
    geometry = geometry_of(40, crop_size=24)
    squares = draw_views(geometry, 6, torch.Generator().manual_seed(1))
    boxes = torch.cat([squares, torch.full((6, 2), 24, dtype=torch.int16)], dim=1)
    rendering = Rendering(geometry=geometry, normalisation=CONSTANTS)
    torch.testing.assert_close(
        view_pixels(images, boxes, rendering), apply_views(images, squares, geometry), rtol=0, atol=0
    )
    torch.testing.assert_close(
        view_pixels(images, squares, rendering), apply_views(images, squares, geometry), rtol=0, atol=0
    )


def test_without_an_input_size_boxes_are_shown_at_that_of_the_crops():
    rendering = Rendering(geometry=geometry_of(40, crop_size=24), normalisation=CONSTANTS)
    images, boxes = photographs(3, 40).permute(0, 2, 3, 1), torch.from_numpy(drawn_boxes(40, 3))
    assert view_pixels(images, boxes, rendering).shape == (3, 3, 24, 24)
