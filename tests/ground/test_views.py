"""Views against torchvision's own crop, pad and flip."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as tv
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ground.geometry import INTERPOLATIONS, Normalisation, Rendering, ViewGeometry
from ground.seeding import generator_for
from ground.views import apply_views, cut_by_lines, cut_by_pixels, draw_views, evaluation_batches, render, resize


@given(st.integers(0, 2**31), st.integers(8, 20), st.integers(0, 5), st.data())
def test_a_view_is_torchvisions_pad_crop_and_flip(seed, size, padding, data):
    crop = data.draw(st.integers(1, size + 2 * padding))
    geometry = ViewGeometry(image_size=size, crop_size=crop, padding=padding)
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (4, size, size, 3), generator=generator, dtype=torch.uint8)
    views = draw_views(geometry, 4, generator)
    found = apply_views(images, views, geometry)
    for image, (top, left, flip), view in zip(images, views.tolist(), found, strict=True):
        expected = tv.crop(tv.pad(image.permute(2, 0, 1), [padding]), top, left, crop, crop)
        expected = tv.horizontal_flip(expected) if flip else expected
        torch.testing.assert_close(view, expected, rtol=0, atol=0)


@given(
    st.integers(1, 20),
    st.integers(0, 5),
    st.lists(st.tuples(st.integers(-40, 40), st.integers(-40, 40), st.integers(-1, 2)), min_size=1, max_size=4),
    st.data(),
)
def test_squares_are_the_same_cut_one_by_one_and_all_at_once(size, padding, views, data):
    crop = data.draw(st.integers(1, size + 2 * padding))
    geometry = ViewGeometry(image_size=size, crop_size=crop, padding=padding)
    images = torch.randint(1, 256, (len(views), size, size, 3), dtype=torch.uint8)
    found = [cut(images, torch.tensor(views, dtype=torch.int16), geometry) for cut in (cut_by_lines, cut_by_pixels)]
    assert torch.equal(*found)


def test_squares_that_are_mirrored_in_several_parts_are_the_same_too():
    geometry = ViewGeometry(image_size=230, crop_size=225, padding=3)
    images = torch.randint(1, 256, (3, 230, 230, 3), dtype=torch.uint8)
    views = torch.tensor([(0, 9, 1), (11, 0, 0), (4, 5, 1)], dtype=torch.int16)
    assert torch.equal(cut_by_lines(images, views, geometry), cut_by_pixels(images, views, geometry))


def test_drawn_views_are_uniform():
    geometry = ViewGeometry(image_size=32, crop_size=32, padding=1)
    views = draw_views(geometry, 18_000, torch.Generator().manual_seed(0))
    counts = torch.unique(views, dim=0, return_counts=True)[1]
    assert len(counts) == 3 * 3 * 2
    # 1,000 expected each; chi-squared with 17 degrees of freedom stays below 40 with probability 0.998.
    assert ((counts - 1000.0) ** 2 / 1000).sum() < 40


def test_without_flips_no_view_is_mirrored():
    geometry = ViewGeometry(image_size=32, crop_size=32, padding=2, flips=False)
    assert draw_views(geometry, 500, torch.Generator().manual_seed(0))[:, 2].max() == 0


def test_normalisation_is_the_textbook_formula():
    normalisation = Normalisation(mean=(0.5, 0.4, 0.3), std=(0.1, 0.2, 0.3))
    images = torch.randint(0, 256, (2, 3, 5, 5), dtype=torch.uint8)
    expected = (images.double().numpy() / 255 - np.array([0.5, 0.4, 0.3])[:, None, None]) / np.array([0.1, 0.2, 0.3])[
        :, None, None
    ]
    np.testing.assert_allclose(normalisation.apply(images).numpy(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("count", [0, 1, 3])
@pytest.mark.parametrize("layout", ["channels last", "channels first", "every other column"])
def test_the_layout_of_pixels_changes_no_bit_and_is_kept(layout, count):
    normalisation = Normalisation(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    images = torch.randint(0, 256, (count, 7, 10, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    pixels = images.permute(0, 3, 1, 2)
    pixels = {"channels last": pixels, "channels first": pixels.contiguous(), "every other column": pixels[..., ::2]}[
        layout
    ]
    before = pixels.clone()
    found = normalisation.apply(pixels)
    # numpy divides as IEEE says, one number at a time.
    mean, std = (np.float32(values)[:, None, None] for values in (normalisation.mean, normalisation.std))
    expected = (pixels.numpy().astype(np.float32) / np.float32(255) - mean) / std
    np.testing.assert_array_equal(found.numpy(), expected)
    assert found.stride() == pixels.float().stride()
    assert torch.equal(pixels, before)


def test_evaluation_sees_the_centre_unflipped():
    geometry = ViewGeometry(image_size=64, crop_size=56, padding=0)
    images = torch.randint(0, 256, (5, 64, 64, 3), dtype=torch.uint8)
    rendering = Rendering(geometry=geometry, normalisation=Normalisation(mean=(0, 0, 0), std=(1, 1, 1)))
    (inputs, labels), (rest, _) = evaluation_batches(images, torch.arange(5), rendering, batch_size=3)
    torch.testing.assert_close(inputs, images[:3, 4:60, 4:60].permute(0, 3, 1, 2) / 255)
    assert labels.tolist() == [0, 1, 2]
    assert len(rest) == 2


@pytest.mark.parametrize("sizes", [(0, 1, 0), (8, 17, 4), (8, 8, -1)])
def test_impossible_geometry_is_refused(sizes):
    with pytest.raises(ValueError, match=r"sizes must be|does not fit"):
        ViewGeometry(image_size=sizes[0], crop_size=sizes[1], padding=sizes[2])


def test_generators_depend_on_purpose_and_position_alone():
    def draw(*position):
        return torch.randint(0, 1 << 30, (4,), generator=generator_for(*position)).tolist()

    assert draw(0, "epoch", 3) == draw(0, "epoch", 3)
    assert len({tuple(draw(*p)) for p in [(0, "epoch", 3), (0, "epoch", 4), (1, "epoch", 3), (0, "views", 3)]}) == 4


def photographs(count: int, side: int) -> torch.Tensor:
    """Smooth pixels with some noise, as photographs have: (count, 3, side, side) uint8."""
    generator = torch.Generator().manual_seed(count)
    coarse = torch.rand(count, 3, 5, 5, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=(side, side), mode="bicubic").clamp(0, 1)
    noise = 0.1 * torch.rand(count, 3, side, side, generator=generator)
    return ((smooth + noise).clamp(0, 1) * 255).to(torch.uint8)


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize(("side", "size"), [(224, 96), (256, 224), (64, 32), (32, 96)])
def test_a_view_is_resized_as_pillow_resizes_it(interpolation, side, size):
    views = photographs(2, side)
    found = resize(views, size, interpolation)
    assert found.dtype == torch.uint8
    method = Image.Resampling[interpolation.upper()]
    for view, resized in zip(views, found, strict=True):
        image = Image.fromarray(view.permute(1, 2, 0).numpy())
        expected = torch.from_numpy(np.array(image.resize((size, size), method))).permute(2, 0, 1)
        # Each pass is rounded to bytes, with weights of fewer bits than Pillow's.
        apart = (resized.int() - expected.int()).abs()
        assert apart.max() <= 2
        assert (apart > 1).float().mean() < 1e-3


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_a_device_without_a_filter_for_bytes_resizes_to_nearly_the_same_pixels(interpolation):
    views = photographs(2, 64)
    floats = torch.nn.functional.interpolate(
        views.float(), size=(24, 24), mode=interpolation, align_corners=False, antialias=True
    )
    apart = (floats.round().clamp(0, 255) - resize(views, 24, interpolation).float()).abs()
    assert apart.max() <= 2
    assert (apart > 1).float().mean() < 1e-3


def test_a_view_of_the_networks_size_is_left_as_it_is():
    views = photographs(2, 32)
    assert resize(views, 32, "bicubic") is views


def test_a_rendering_resizes_and_then_normalises():
    geometry = ViewGeometry(image_size=32, crop_size=32, padding=4)
    constants = Normalisation(mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
    views = photographs(2, 32)
    own = Rendering(geometry=geometry, normalisation=constants)
    larger = Rendering(geometry=geometry, normalisation=constants, input_size=48)
    assert (own.size, larger.size) == (32, 48)
    torch.testing.assert_close(render(views, own), constants.apply(views), rtol=0, atol=0)
    torch.testing.assert_close(render(views, larger), constants.apply(resize(views, 48, "bilinear")), rtol=0, atol=0)


@pytest.mark.parametrize("wrong", [{"input_size": 0}, {"input_size": 5000}, {"interpolation": "nearest"}])
def test_a_rendering_that_no_network_has_is_refused(wrong):
    geometry = ViewGeometry(image_size=32, crop_size=32, padding=4)
    constants = Normalisation(mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
    with pytest.raises(ValueError, match=r"pixels|interpolation"):
        Rendering(geometry=geometry, normalisation=constants, **wrong)
