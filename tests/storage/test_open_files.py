"""However many rows a store has, only so many of its files are open at once."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest

from storage.formats import FORMATS
from storage.schema import ArraySpec

ROWS, MOST_OPEN = 12_800, 80
SPECS = [ArraySpec("train/images", (8,), np.dtype("uint8"))]


@contextmanager
def few_files() -> Iterator[None]:
    """Only so many files more than now can be open, as after `ulimit -n`."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = {int(name) for name in os.listdir("/dev/fd")}
    free = [number for number in range(MOST_OPEN + len(taken)) if number not in taken]
    resource.setrlimit(resource.RLIMIT_NOFILE, (free[MOST_OPEN - 1] + 1, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.parametrize("array_format", FORMATS)
def test_a_store_of_many_chunks_is_made_grown_and_written_with_few_open_files(tmp_path, array_format):
    kind = FORMATS[array_format].load()
    path = tmp_path / f"data{FORMATS[array_format].suffix}"
    values = np.random.default_rng(0).integers(0, 256, (ROWS, 8), dtype=np.uint8)
    assert ROWS // SPECS[0].chunk_rows > 2 * MOST_OPEN
    with few_files():
        kind.create(path, SPECS, lambda spec: 64)
        arrays = kind(path, SPECS)
        arrays.grow(lambda spec: ROWS)
        arrays.write("train/images", 0, values)
        arrays.sync()
        np.testing.assert_array_equal(arrays.read("train/images", 0, ROWS), values)
