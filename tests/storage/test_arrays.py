"""Arrays of both formats against plain NumPy arrays, in pieces that cross chunks' borders."""

from __future__ import annotations

import os

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ground.errors import CKDError, InvalidInput, StoreUnreadable
from storage.arrays import ArrayFile
from storage.formats import FORMATS
from storage.schema import ArraySpec

ROWS, VIEWS = 150, 2
SPEC = ArraySpec("train/logits", (VIEWS, 3), np.dtype(np.float32))


@pytest.fixture
def arrays(tmp_path, array_format) -> ArrayFile:
    kind = FORMATS[array_format]
    path = tmp_path / f"data{kind.suffix}"
    kind.load().create(path, [SPEC], lambda spec: ROWS)
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
    arrays.grow(lambda spec: ROWS + 70)
    assert arrays.num_rows(SPEC.name) == ROWS + 70
    assert np.array_equal(arrays.read(SPEC.name, 0, ROWS), values)
    assert not arrays.read(SPEC.name, ROWS, ROWS + 70).any()


def test_rows_that_are_not_there_are_a_sentence_and_nothing_is_read(arrays):
    with pytest.raises(StoreUnreadable, match=f"it has {ROWS} rows, {ROWS + 1} are needed"):
        arrays.read(SPEC.name, ROWS - 1, ROWS + 1)
    assert arrays.read(SPEC.name, 5, 5).shape == (0, VIEWS, 3)


@pytest.mark.parametrize("kind", ["file", "folder", "nothing", "pipe"])
def test_arrays_are_not_made_through_a_link_or_in_place_of_a_pipe(tmp_path, array_format, kind):
    arrays = FORMATS[array_format]
    path, outside = tmp_path / f"data-1{arrays.suffix}", tmp_path / "outside"
    if kind == "file":
        outside.write_bytes(b"years of work")
    elif kind == "folder":
        outside.mkdir()
    path.symlink_to(outside) if kind != "pipe" else os.mkfifo(path)
    with pytest.raises(InvalidInput, match=r"data-1\..* is no file of its own, but a link, a folder or a pipe"):
        arrays.load().create(path, [SPEC], lambda spec: ROWS)
    assert {item.name for item in tmp_path.iterdir()} <= {path.name, "outside"}
    if kind == "file":
        assert outside.read_bytes() == b"years of work"
    elif kind == "folder":
        assert list(outside.iterdir()) == []


def test_arrays_take_the_place_of_a_second_name_of_a_file_and_leave_the_file(tmp_path, array_format):
    arrays = FORMATS[array_format]
    path, outside = tmp_path / f"data{arrays.suffix}", tmp_path / "outside"
    outside.write_bytes(b"years of work")
    os.link(outside, path)
    arrays.load().create(path, [SPEC], lambda spec: ROWS)
    assert arrays.load()(path, [SPEC]).num_rows(SPEC.name) == ROWS
    assert outside.read_bytes() == b"years of work"


def test_growing_and_adding_write_to_no_file_whose_name_can_be_foreseen(arrays, tmp_path):
    outside = tmp_path / "outside"
    outside.write_bytes(b"years of work")
    for name in (f".{arrays.path.name}.{os.getpid()}.partial", f".{arrays.path.name}.partial"):
        (arrays.path.parent / name).symlink_to(outside)
    arrays.grow(lambda spec: ROWS + 70)
    arrays.add([ArraySpec("teacher/head/bias", (3,), np.dtype(np.float32))], lambda spec: 1)
    assert outside.read_bytes() == b"years of work"


@pytest.mark.parametrize("part", ["teacher", "teacher/head", "teacher/head/bias", "teacher/zarr.json"])
@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_an_array_is_not_added_through_a_link_or_a_pipe(arrays, array_format, tmp_path, part, kind):
    if array_format != "zarr":
        pytest.skip("an HDF5 file is one file")
    outside, place = tmp_path / "outside", arrays.path / part
    outside.mkdir()
    place.parent.mkdir(parents=True, exist_ok=True)
    place.symlink_to(outside) if kind == "link" else os.mkfifo(place)
    with pytest.raises((CKDError, OSError)) as refused:
        arrays.add([ArraySpec("teacher/head/bias", (3,), np.dtype(np.float32))], lambda spec: 1)
    assert part.partition("/")[0] in str(refused.value)
    assert list(outside.iterdir()) == []


def test_a_chunk_that_became_a_link_is_not_written_to(arrays, array_format, tmp_path):
    if array_format != "zarr":
        pytest.skip("an HDF5 file is one file")
    outside, chunk = tmp_path / "outside", arrays.path / SPEC.name / "c.0.0.0"
    chunk.rename(outside)
    chunk.symlink_to(outside)
    with pytest.raises(InvalidInput, match=r"c\.0\.0\.0 is no file of its own"):
        arrays.write(SPEC.name, 0, np.ones((1, VIEWS, 3), np.float32))
    assert not any(outside.read_bytes())


def test_files_that_belong_to_no_array_are_found(arrays, array_format, tmp_path):
    assert arrays.unknown_files() == []
    if array_format != "zarr":
        return
    strange = [
        "notes.txt",
        "train/.zgroup",
        "train/link",
        "train/logits/c.0.1.0",
        "train/logits/c.0.0.0.0",
        "train/logits/folder",
        "val",
    ]
    for name in strange:
        place = arrays.path / name
        if name.endswith("link"):
            place.symlink_to(tmp_path)
        elif name.endswith(("folder", "val")):
            place.mkdir()
        else:
            place.write_text("?")
    # Of a growth that was interrupted, and of a writer that was killed.
    (arrays.path / "train/logits/c.9.0.0").write_text("")
    (arrays.path / "train/logits/.zarr.json.7-ab.partial").write_text("")
    assert [str(file.relative_to(arrays.path)) for file in arrays.unknown_files()] == sorted(strange)
