"""`verify` finds what is wrong between the arrays and the ledger, in both directions."""

from __future__ import annotations

import os
from dataclasses import replace

import numpy as np
import pytest

from ground.errors import StoreUnreadable
from storage import inspection, verify
from storage.store import Store
from storage.verify import store_problems, unknown_files
from tests.storage.conftest import N, make_outputs


def problems(paid) -> list[str]:
    return [str(problem) for problem in store_problems(Store.open(paid.store.folder), paid.ledger)]


def test_a_whole_store_has_no_problems(whole_store):
    assert problems(whole_store) == []


def test_an_unfinished_store_lists_what_is_missing(empty_store):
    empty_store.pay(0, N - 2)
    found = problems(empty_store)
    assert len(found) == 4, "two rows of two views"
    assert all("is not there; finish it with: ckd-cache build" in problem for problem in found)


def test_very_many_missing_cells_are_one_problem(empty_store, monkeypatch):
    monkeypatch.setattr(verify, "MOST_LISTED", 3)
    empty_store.pay(0, N - 2)
    (found,) = problems(empty_store)
    assert found.startswith(
        f"train/valid: row {N - 2} view 0 is not there, nor are the 3 cells after it; finish it with"
    )


def test_rows_in_blocks_have_the_problems_that_they_have_at_once(whole_store, monkeypatch):
    arrays = whole_store.store.arrays
    arrays.write("train/valid", 3, np.zeros((5, 2), dtype=bool))
    for row in (2, 9):
        arrays.write("train/logits", row, arrays.read("train/logits", row, row + 1) + 1)
    arrays.sync()
    at_once = problems(whole_store)
    assert len(at_once) == 5 * 2 + 2 * 2
    monkeypatch.setattr(inspection, "MOST_ROWS", 4)
    assert problems(whole_store) == at_once


def test_a_changed_feature_names_row_and_view(whole_store):
    values = whole_store.store.arrays.read("train/features/layer1", 7, 8)
    values[0, 1, 0, 0, 0] += 1
    whole_store.store.arrays.write("train/features/layer1", 7, values)
    whole_store.store.arrays.sync()
    (found,) = problems(whole_store)
    assert found.startswith("train/features/layer1: row 7 view 1 does not match its digest; see what can be done with")


def test_a_row_the_ledger_never_charged_is_found(empty_store):
    empty_store.pay(0, N - 1)
    empty_store.write(N - 1, make_outputs(empty_store.store.manifest.identity, N - 1, 1))
    found = problems(empty_store)
    assert len(found) == 8, "two views of four outputs"
    assert all("the ledger knows no committed call for" in problem for problem in found)


def test_a_row_replaced_together_with_its_digest_is_found(whole_store):
    whole_store.write(5, make_outputs(whole_store.store.manifest.identity, 6, 1))
    assert [problem.split(";")[0] for problem in problems(whole_store)] == [
        f"train/{array}: row 5 view {view} is not what call {11 + view} of the ledger returned"
        for view in (0, 1)
        for array in ("logits", "features/layer1", "features/pooled", "features/layer2.pre")
    ]


def test_a_committed_call_without_its_row_is_found(whole_store):
    whole_store.store.arrays.write("train/valid", 9, np.zeros((1, 2), dtype=bool))
    whole_store.store.arrays.sync()
    found = problems(whole_store)
    assert any("train/valid: row 9 view 0 is not there, though call 19 is committed" in text for text in found)


def test_a_changed_image_breaks_the_tie_to_its_call(whole_store):
    image = whole_store.store.arrays.read("train/images", 3, 4)
    image[0, 4, 4] ^= 255
    whole_store.store.arrays.write("train/images", 3, image)
    whole_store.store.arrays.sync()
    found = problems(whole_store)
    assert any("array train/images" in problem and "not what the build wrote" in problem for problem in found)
    assert sum("row 3 view" in problem for problem in found) >= 1


@pytest.mark.parametrize("name", ["teacher/head/weight", "teacher/norm/layer2/shift"])
def test_a_changed_parameter_of_the_teacher_is_found(whole_store, name):
    values = whole_store.store.arrays.read(name, 0, 1)
    values.reshape(-1)[-1] += 1
    whole_store.store.arrays.write(name, 0, values)
    whole_store.store.arrays.sync()
    (found,) = problems(whole_store)
    assert found.startswith(f"{name}: array {name} in ")
    assert "it is not what the build wrote" in found


@pytest.mark.parametrize(
    "name", ["train/labels", "val/images", "test/labels", "test/source_index", "teacher/head/bias"]
)
def test_a_lost_sample_array_is_found(whole_store, name):
    if whole_store.store.manifest.array_format != "zarr":
        pytest.skip("an HDF5 file has no part that can be deleted alone")
    for chunk in (whole_store.store.arrays.path / name).glob("c.*"):
        chunk.unlink()
    assert any(f"array {name}" in problem for problem in problems(whole_store))


def test_a_ledger_that_was_rolled_back_is_found(whole_store):
    whole_store.store.record_ledger_head("0" * 64)
    assert any("was replaced or rolled back" in problem for problem in problems(whole_store))


def test_an_unsettled_call_is_reported(empty_store):
    empty_store.pay(0, N - 1)
    empty_store.reserve(N - 1, 1)
    empty_store.ledger.end_session(empty_store.session)
    found = problems(empty_store)
    assert any(
        "is not settled: its build is at work, or was interrupted; run the build again" in text for text in found
    )


def test_a_changed_manifest_is_found(whole_store):
    folder = whole_store.store.folder
    path = folder / "manifest.json"
    path.write_text(path.read_text().replace('"digits"', '"fidgets"'))
    with pytest.raises(StoreUnreadable, match="does not match its own digest"):
        Store.open(folder)
    # By somebody who knows how the digest is made, too.
    replace(whole_store.store.manifest, num_test=8).save(folder)
    assert any("manifest.json: is not what the ledger recorded" in text for text in problems(whole_store))


def test_a_damaged_digest_array_is_told_from_damaged_outputs(whole_store):
    values = whole_store.store.arrays.read("train/digest", 7, 8)
    values[0, 1, 2, 3] ^= 4
    whole_store.store.arrays.write("train/digest", 7, values)
    whole_store.store.arrays.sync()
    (found,) = problems(whole_store)
    assert found.startswith("train/digest: row 7 view 1 is not the digest of what is there")


def test_what_belongs_to_no_store_is_named_and_is_no_problem(whole_store, tmp_path):
    store, folder = whole_store.store, whole_store.store.folder
    for name in ("build.lock", "cells.lock", "ledger.sqlite-wal", "ledger.sqlite-shm", ".run.json.7-ab.partial"):
        (folder / name).touch()
    assert unknown_files(store) == []
    (folder / "ledger.sqlite-mj0123").write_text("a super-journal")
    (folder / "data-3.zarr").mkdir()
    (folder / "notes").symlink_to(tmp_path)
    assert [path.name for path in unknown_files(store)] == ["data-3.zarr", "ledger.sqlite-mj0123", "notes"]
    assert problems(whole_store) == []


@pytest.mark.parametrize("name", ["build.lock", "cells.lock", "extension.json"])
@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_a_link_or_a_pipe_in_place_of_a_file_of_ours_is_a_problem(whole_store, tmp_path, name, kind):
    place = whole_store.store.folder / name
    place.symlink_to(tmp_path) if kind == "link" else os.mkfifo(place)
    assert f"{name}: is no file of its own, but a link, a folder or a pipe; move it away" in problems(whole_store)


@pytest.mark.parametrize("place", ["train/zarr.json", "train/notes", "elsewhere"])
def test_a_link_among_the_arrays_is_a_problem(whole_store, tmp_path, place):
    if whole_store.store.manifest.array_format != "zarr":
        pytest.skip("an HDF5 file is one file")
    link = whole_store.store.arrays.path / place
    link.unlink(missing_ok=True)
    link.symlink_to(tmp_path)
    assert problems(whole_store) == [f"data.zarr/{place}: is no file of its own, but a link or a pipe; move it away"]
