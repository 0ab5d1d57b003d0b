"""Digests against SHA-256 of bytes that are put together here, as docs/store-format.md describes them."""

from __future__ import annotations

import hashlib

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ground.geometry import ViewGeometry
from storage.digest import input_digests, output_digests
from storage.schema import OutputSpec


def pixels_of(image: np.ndarray, view: np.ndarray, geometry: ViewGeometry) -> np.ndarray:
    """A view by NumPy alone: pad with black, cut, mirror."""
    top, left, flip = view
    size, padding = geometry.crop_size, geometry.padding
    padded = np.pad(image, ((padding, padding), (padding, padding), (0, 0)))
    cut = padded[top : top + size, left : left + size]
    return cut[:, ::-1] if flip else cut


@given(seed=st.integers(0, 1000), rows=st.integers(1, 4), size=st.integers(2, 6), padding=st.integers(0, 2))
def test_an_inputs_digest_is_that_of_its_shape_and_pixels(seed, rows, size, padding):
    geometry, rng = ViewGeometry(image_size=size, crop_size=size, padding=padding), np.random.default_rng(seed)
    images = rng.integers(0, 256, (rows, size, size, 3), dtype=np.uint8)
    views = np.concatenate([rng.integers(0, 2 * padding + 1, (rows, 2, 2)), rng.integers(0, 2, (rows, 2, 1))], axis=2)
    found = input_digests(images, views.astype(np.int16), geometry)
    header = f"({size}, {size}, 3)".encode()
    for row in range(rows):
        for view in range(2):
            content = header + pixels_of(images[row], views[row, view], geometry).tobytes()
            assert found[row][view] == hashlib.sha256(content).digest()[:16]


@st.composite
def boxes_in(draw: st.DrawFn, side: int) -> tuple[int, int, int, int, int]:
    top, left = (draw(st.integers(0, side - 1)) for _ in range(2))
    return top, left, draw(st.integers(0, 1)), draw(st.integers(1, side - top)), draw(st.integers(1, side - left))


@given(seed=st.integers(0, 1000), box=boxes_in(8), other=boxes_in(8))
def test_the_digest_of_a_box_is_that_of_its_own_shape_and_pixels(seed, box, other):
    geometry, rng = ViewGeometry(image_size=8, crop_size=4, padding=2), np.random.default_rng(seed)
    images, views = rng.integers(0, 256, (1, 8, 8, 3), dtype=np.uint8), np.array([[box, other]], dtype=np.int16)
    ((found, beside),) = input_digests(images, views, geometry)
    top, left, flip, height, width = box
    cut = images[0, top : top + height, left : left + width]
    content = f"({height}, {width}, 3)".encode() + (cut[:, ::-1] if flip else cut).tobytes()
    assert found == hashlib.sha256(content).digest()[:16]
    # Of one column, a box and its mirror image are the same pixels.
    differ = box[:2] != other[:2] or box[3:] != other[3:] or (flip != other[2] and width > 1)
    assert (found != beside) == differ


def test_boxes_of_equal_bytes_and_another_shape_are_other_inputs():
    geometry, images = ViewGeometry(image_size=8, crop_size=4, padding=2), np.zeros((1, 8, 8, 3), dtype=np.uint8)
    views = np.array([[(0, 0, 0, 2, 8), (0, 0, 0, 4, 4), (0, 0, 0, 8, 2), (3, 3, 1, 4, 4)]], dtype=np.int16)
    ((wide, square, high, elsewhere),) = input_digests(images, views, geometry)
    assert len({wide, square, high}) == 3
    assert elsewhere == square
    # The very input that a crop of these pixels is: nobody pays for it twice.
    assert input_digests(images, views[:, 1:2, :3] + 2, geometry) == [[square]]


def test_inputs_are_digested_alike_in_blocks_of_any_number():
    geometry, rng = ViewGeometry(image_size=2, crop_size=2, padding=0), np.random.default_rng(0)
    images, views = rng.integers(0, 256, (300, 2, 2, 3), dtype=np.uint8), np.zeros((300, 1, 3), dtype=np.int16)
    whole = input_digests(images, views, geometry)
    assert whole == [digest for row in range(300) for digest in input_digests(images[[row]], views[[row]], geometry)]


def test_an_outputs_digest_is_that_of_its_name_shape_type_and_values():
    outputs = (OutputSpec("logits", (3,), "float32"), OutputSpec("layer1", (2, 2), "float16"))
    rng = np.random.default_rng(0)
    values = {output.name: rng.normal(size=(4, *output.shape)).astype(output.dtype) for output in outputs}
    found = output_digests(outputs, values)
    assert (found.shape, found.dtype) == ((4, 2, 16), np.uint8)
    headers = (b"('logits', (3,), 'float32')", b"('layer1', (2, 2), 'float16')")
    for call in range(4):
        for place, (output, header) in enumerate(zip(outputs, headers, strict=True)):
            content = header + values[output.name][call].tobytes()
            assert found[call, place].tobytes() == hashlib.sha256(content).digest()[:16]
