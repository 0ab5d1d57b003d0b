"""Numbers in every type that outputs are kept in, against torch's own casts, and read by NumPy alone."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from storage.digest import output_digests, vouches
from storage.float_types import FLOAT_TYPES, as_float32, converted, exactly, stored_type, type_of
from storage.schema import OutputSpec

EVERY = np.arange(1 << 16, dtype=np.uint16)


def by_torch(numbers: np.ndarray) -> np.ndarray:
    """bfloat16 bit patterns of float32 numbers."""
    return torch.from_numpy(numbers).to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)


def test_every_bfloat16_is_the_float32_that_torch_makes_of_it_and_comes_back():
    numbers = as_float32(EVERY)
    expected = torch.from_numpy(EVERY.view(np.int16)).view(torch.bfloat16).float().numpy()
    np.testing.assert_array_equal(numbers.view(np.uint32), expected.view(np.uint32))
    are_numbers = ~np.isnan(numbers)
    assert are_numbers.sum() == (1 << 16) - 254
    np.testing.assert_array_equal(converted(numbers, "bfloat16")[are_numbers], EVERY[are_numbers])
    assert np.isnan(as_float32(converted(numbers, "bfloat16"))[~are_numbers]).all()


@given(first=st.integers(0, (1 << 32) - (1 << 16)))
def test_float32_is_rounded_to_bfloat16_as_torch_does(first):
    """65,536 neighbours at once: every pattern of the half that goes, and carries into the half that stays."""
    numbers = (np.uint32(first) + np.arange(1 << 16, dtype=np.uint32)).view(np.float32)
    numbers = numbers[~np.isnan(numbers)]
    np.testing.assert_array_equal(converted(numbers, "bfloat16"), by_torch(numbers))


@given(bits=st.lists(st.integers(0, (1 << 16) - 1), min_size=1, max_size=64))
def test_bfloat16_survives_a_way_through_float32_bit_for_bit(bits):
    kept = np.array([bits], dtype=np.uint16)
    kept = kept[~np.isnan(as_float32(kept))]
    wide = converted(kept, "float32")
    assert wide.dtype == np.float32
    np.testing.assert_array_equal(exactly(wide, "bfloat16"), kept)


def test_a_type_says_how_it_lies_in_arrays_and_arrays_of_which_type_they_are():
    for name in FLOAT_TYPES:
        assert type_of(np.zeros(1, stored_type(name))) == name
    assert [stored_type(name).itemsize for name in FLOAT_TYPES] == [2, 2, 4]


def test_a_widened_output_is_vouched_for_by_the_digest_of_its_narrower_type_and_by_no_other():
    narrow, wide = OutputSpec("layer1", (3,), "bfloat16"), OutputSpec("layer1", (3,), "float32")
    kept = by_torch(np.array([[0.1, 3.0e38, -2.5]], dtype=np.float32))
    recorded = output_digests((narrow,), {"layer1": kept})[0, 0].tobytes()
    assert recorded == hashlib.sha256(b"('layer1', (3,), 'bfloat16')" + kept.tobytes()).digest()[:16]
    numbers = as_float32(kept)
    here = output_digests((wide,), {"layer1": numbers})[0, 0].tobytes()
    assert vouches(recorded, wide, numbers, here)
    changed = numbers * np.float32(1 + 2**-20)
    assert not vouches(recorded, wide, changed, output_digests((wide,), {"layer1": changed})[0, 0].tobytes())


@pytest.mark.parametrize("value", [1e-45, 3.4e38, 65504.0, 65536.0, 1 + 2**-9])
def test_what_a_narrower_type_does_not_hold_is_said_not_rounded(value):
    numbers = np.array([[value]], dtype=np.float32)
    for name in ("float16", "bfloat16"):
        held = torch.from_numpy(numbers).to(getattr(torch, name)).float().numpy()
        found = exactly(numbers, name)
        assert (found is not None) == bool((held == numbers).all())
