"""Arrays of both formats against plain NumPy arrays, in pieces that cross chunks' borders."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ground.errors import StoreUnreadable
from storage.arrays import ArrayFile
from storage.formats import FORMATS
from storage.schema import ArraySpec

ROWS, VIEWS = 150, 2
SPEC = ArraySpec("train/logits", (VIEWS, 3), np.dtype(np.float32))


@pytest.fixture
def arrays(tmp_path, array_format) -> ArrayFile:
    kind = FORMATS[array_format]
    path = tmp_path / f"data{kind.suffix}"
    kind.load().create(path, [SPEC], {"train": ROWS})
    return kind.load()(path, [SPEC])


def test_arrays_are_zero_until_they_are_written(arrays):
    assert arrays.num_rows(SPEC.name) == ROWS
    assert not arrays.read(SPEC.name, 0, ROWS).any()


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pieces=st.lists(st.tuples(st.booleans(), st.integers(0, 149), st.integers(1, 150)), min_size=1, max_size=6))
def test_rows_and_cells_are_those_of_a_plain_array(arrays, pieces):
    rng = np.random.default_rng(len(pieces))
    plain = arrays.read(SPEC.name, 0, ROWS)
    for by_cell, first, count in pieces:
        if by_cell:
            values = rng.normal(size=(min(count, ROWS * VIEWS - first), 3)).astype(np.float32)
            plain.reshape(-1, 3)[first : first + len(values)] = values
            arrays.write_cells(SPEC.name, first, values)
            assert np.array_equal(arrays.read_cells(SPEC.name, first, first + len(values)), values)
        else:
            values = rng.normal(size=(min(count, ROWS - first), VIEWS, 3)).astype(np.float32)
            plain[first : first + len(values)] = values
            arrays.write(SPEC.name, first, values)
            assert np.array_equal(arrays.read(SPEC.name, first, first + len(values)), values)
    arrays.sync()
    assert np.array_equal(arrays.read(SPEC.name, 0, ROWS), plain)


def test_grown_arrays_keep_their_rows(arrays):
    values = np.random.default_rng(0).normal(size=(ROWS, VIEWS, 3)).astype(np.float32)
    arrays.write(SPEC.name, 0, values)
    arrays.sync()
    arrays.grow({"train": ROWS + 70})
    assert arrays.num_rows(SPEC.name) == ROWS + 70
    assert np.array_equal(arrays.read(SPEC.name, 0, ROWS), values)
    assert not arrays.read(SPEC.name, ROWS, ROWS + 70).any()


def test_rows_that_are_not_there_are_a_sentence_and_nothing_is_read(arrays):
    with pytest.raises(StoreUnreadable, match=f"it has {ROWS} rows, {ROWS + 1} are needed"):
        arrays.read(SPEC.name, ROWS - 1, ROWS + 1)
    assert arrays.read(SPEC.name, 5, 5).shape == (0, VIEWS, 3)
