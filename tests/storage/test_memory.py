"""Stores whose manifest says more than their files hold: memory goes by what is asked for, not by what is claimed."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import tracemalloc
from contextlib import closing
from pathlib import Path

import h5py
import numpy as np
import pytest

from ground.errors import StoreUnreadable
from storage import zarr_arrays
from storage.blocks import BlockHasher
from storage.rows import Rows
from storage.store import Store
from storage.store_ledger import own_ledger
from storage.verify import store_problems

ROWS = 6000
IMAGES_BYTES = ROWS * 32 * 32 * 3


@pytest.fixture
def sparse(built_store, tmp_path, monkeypatch) -> Store:
    """A store of 96 rows whose manifest and arrays say 6000, the rest holes in its files."""

    def promise(path: Path, size: int) -> None:
        path.touch()
        os.truncate(path, size)

    shutil.copytree(built_store, tmp_path / "store")
    store = Store.open(tmp_path / "store")
    monkeypatch.setattr(zarr_arrays, "allocate", promise)
    grown = store.manifest.grown(ROWS, ROWS, store.manifest.num_val)
    store.arrays.grow(grown.rows_of)
    spec = store.arrays.specs["train/images"]
    of_holes = BlockHasher(spec.block_rows * spec.row_bytes)
    of_holes.update(store.arrays.read("train/images", 0, ROWS))
    store.save(dataclasses.replace(grown, samples={**grown.samples, "train/images": of_holes.hexdigests()}))
    return Store.open(store.folder)


def test_a_sample_is_checked_in_pieces_and_only_what_is_asked_for_is_kept(sparse):
    tracemalloc.start()
    try:
        sparse.require_sample("train/images")
        kept = sparse.read_sample("train/images", Rows.first(96))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert kept.tobytes() == sparse.arrays.read("train/images", 0, 96).tobytes()
    assert peak < 0.7 * IMAGES_BYTES


def test_a_change_in_any_block_of_a_sample_is_found_by_who_reads_it(sparse):
    sparse.arrays.write("train/images", ROWS - 1, sparse.arrays.read("train/images", 0, 1))
    sparse.arrays.sync()
    assert len(sparse.read_sample("train/images", Rows.first(8))) == 8
    changed = "train/images .*not what the build wrote, in rows 5952 to 5999"
    with pytest.raises(StoreUnreadable, match=changed):
        sparse.read_sample("train/images", Rows.between(5952, 5953))
    with pytest.raises(StoreUnreadable, match=changed):
        sparse.require_sample("train/images")


def test_every_block_of_images_that_is_damaged_is_listed_though_cells_cannot_be_compared_beyond_the_first(sparse):
    sparse.arrays.write("train/images", 100, sparse.arrays.read("train/images", 0, 1))
    sparse.arrays.write("train/images", ROWS - 1, sparse.arrays.read("train/images", 0, 1))
    sparse.arrays.sync()
    (sparse.arrays.path / "train/images/c.20.0.0.0").unlink()
    with closing(own_ledger(sparse.folder)) as ledger:
        found = [problem.what for problem in store_problems(sparse, ledger) if problem.array == "train/images"]
    assert [re.search(r"in rows \d+|c\.\d+", text)[0] for text in found] == ["in rows 64", "c.20", "in rows 5952"]


def test_chunks_of_an_hdf5_file_that_share_bytes_are_refused(stores, tmp_path):
    shutil.copytree(stores["hdf5"], tmp_path / "store")
    path, store = tmp_path / "store" / "data.h5", Store.open(tmp_path / "store")
    path.unlink()
    # The older layout has no checksum over where chunks are: anybody can say the same place twice.
    with h5py.File(path, "w", libver="earliest") as file:
        for name, spec in store.arrays.specs.items():
            rows = store.manifest.rows_of(spec)
            chunks = (spec.chunk_rows, *spec.row_shape)
            shape = (rows, *spec.row_shape)
            ones = np.ones(shape, spec.dtype)
            file.create_dataset(name, data=ones, chunks=chunks, maxshape=(None, *spec.row_shape))
        places: list[int] = []
        file["train/images"].id.chunk_iter(lambda chunk: places.append(chunk.byte_offset))
    assert Store.open(store.folder).manifest.n == 96, "as long as each has a place of its own"
    first, second = (place.to_bytes(8, "little") for place in places)
    content = path.read_bytes()
    assert content.count(second) == 1
    path.write_bytes(content.replace(second, first))
    with pytest.raises(StoreUnreadable, match="train/images .*not apart from others"):
        Store.open(store.folder)
