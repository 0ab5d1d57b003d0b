"""Rows that are being answered for a store in object storage, on the local disk."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ground.errors import DiskFull
from storage.schema import CHUNK_ROWS, ArraySpec, OutputSpec, output_arrays
from storage.stage import Stage, rows_of

VIEWS = 2
SPECS = {spec.name: spec for spec in output_arrays((OutputSpec("logits", (10,), "float32"),), VIEWS)}
WIDE = output_arrays((OutputSpec("wide", (1 << 19,), "float32"),), VIEWS)


@pytest.fixture
def stage(tmp_path) -> Stage:
    return Stage.make(tmp_path, 3, 7, VIEWS, SPECS)


def test_a_stage_takes_its_room_and_is_found_by_number_and_session(stage, tmp_path):
    assert Stage.find(tmp_path, VIEWS) == [stage]
    assert (stage.number, stage.session) == (3, 7)
    files = [file.stat().st_size for file in stage.folder.iterdir()]
    assert sum(files) == Stage.room_bytes(SPECS, VIEWS)
    stage.remove()
    assert Stage.find(tmp_path, VIEWS) == []


def test_the_chunks_of_a_stage_are_those_of_its_rows_and_flags_come_last(stage):
    chunks = list(stage.chunks(SPECS))
    assert [name for name, _, _ in chunks] == ["train/logits/c.3.0.0", "train/digest/c.3.0.0.0", "train/valid/c.3.0"]
    for _, path, spec in chunks:
        assert path.stat().st_size == CHUNK_ROWS * spec.row_bytes
        assert [stage.holds(spec, chunk) for chunk in (2, 3, 4)] == [False, True, False]


def test_arrays_of_large_rows_have_several_chunks_in_a_stage(tmp_path):
    specs = {spec.name: spec for spec in (aligned(spec) for spec in WIDE)}
    wide = specs["train/features/wide"]
    assert wide.chunk_rows == 2
    stage = Stage(tmp_path, 1, 7, VIEWS)
    assert [chunk for chunk in range(100) if stage.holds(wide, chunk)] == list(range(32, 64))
    assert sum(name.startswith(wide.name) for name, _, _ in stage.chunks(specs)) == 32


def aligned(spec: ArraySpec) -> ArraySpec:
    return replace(spec, aligned=True)


def test_what_was_asked_for_is_remembered(stage, tmp_path):
    assert stage.asked() == set()
    first = 3 * CHUNK_ROWS * VIEWS
    stage.note_asked([first, first + 5])
    stage.note_asked([first + 6])
    assert Stage.find(tmp_path, VIEWS)[0].asked() == {first, first + 5, first + 6}


def test_where_that_cannot_be_read_all_may_have_been_asked_for(stage):
    (stage.folder / "asked").unlink()
    assert stage.asked() == set(range(3 * CHUNK_ROWS * VIEWS, 4 * CHUNK_ROWS * VIEWS))


def test_a_stage_without_room_is_not_left(tmp_path, monkeypatch):
    def full(path: Path, size: int) -> None:
        raise DiskFull("no room")

    monkeypatch.setattr("storage.stage.allocate", full)
    with pytest.raises(DiskFull):
        Stage.make(tmp_path, 0, 1, VIEWS, SPECS)
    assert list(tmp_path.iterdir()) == []


def test_rows_of_a_number_end_with_the_store():
    assert rows_of(1, 1000).index.tolist() == list(range(64, 128))
    assert rows_of(1, 100).index.tolist() == list(range(64, 100))
    np.testing.assert_array_equal(rows_of(2, 100).index, [])
