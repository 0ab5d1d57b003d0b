"""`repair` says what it will do, touches nothing that is whole, and gives up openly what is gone."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys

import numpy as np
import pytest

from storage.errors import StoreBusy, StoreUnreadable
from storage.locks import FileLock
from storage.store import Store
from teacher_cache.build import build
from teacher_cache.convert import convert
from teacher_cache.plan import plan_build
from teacher_cache.repair import repair
from teacher_cache.settle import settle_store
from tests.teacher_cache.crash_build import config as crash_config
from tests.teacher_cache.damage import arrays_of, build_store, change, config_of, problems, totals

FORMATS = ["zarr", "hdf5"]


@pytest.fixture(params=FORMATS)
def folder(request, tmp_path, weights):
    return build_store(tmp_path / "store", weights, request.param)


def test_a_whole_store_has_nothing_to_repair(folder):
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    report = repair(folder, act=False)
    assert report.is_empty
    assert report.left == []
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.parametrize("name", ["train/valid", "train/digest"])
def test_flags_and_digests_are_put_right_without_a_call(folder, name):
    before = arrays_of(folder)
    change(folder, name, 7)
    assert len(problems(folder)) >= 1
    assert repair(folder, act=False).restored == [7]
    assert len(problems(folder)) >= 1, "looking changes nothing"
    assert repair(folder, act=True).restored == [7]
    assert problems(folder) == []
    assert totals(folder) == (70, 0, 0)
    for array, values in arrays_of(folder).items():
        np.testing.assert_array_equal(values, before[array], err_msg=array)


def test_a_damaged_answer_is_taken_from_a_copy_of_the_store(folder, tmp_path):
    before = arrays_of(folder)
    convert(folder, "hdf5" if (folder / "data.zarr").exists() else "zarr", tmp_path / "copy")
    change(folder, "train/features/layer1", 9)
    report = repair(folder, copy=tmp_path / "copy", act=True)
    assert (report.restored, report.dropped, report.revoked) == ([9], [], [])
    assert problems(folder) == []
    np.testing.assert_array_equal(arrays_of(folder)["train/features/layer1"], before["train/features/layer1"])


def test_a_copy_that_is_damaged_too_is_not_believed(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "copy")
    change(folder, "train/logits", 9)
    change(tmp_path / "copy", "train/logits", 9)
    report = repair(folder, copy=tmp_path / "copy", act=True)
    assert (report.restored, report.dropped) == ([], [9])


def test_an_answer_that_is_nowhere_is_given_up_and_paid_for_again(folder, weights, forwards):
    before = arrays_of(folder)
    change(folder, "train/logits", 9)
    change(folder, "train/logits", 33)
    array_format = Store.open(folder).manifest.array_format
    with pytest.raises(StoreUnreadable, match="does not match its digest"):
        Store.open(folder).read_outputs(["logits"], 70)
    report = repair(folder, act=True)
    assert (report.dropped, len(report.revoked)) == ([9, 33], 2)
    assert totals(folder) == (68, 0, 2)
    assert all("is not there; finish it with: ckd-cache build" in text for text in problems(folder))
    plan = plan_build(config_of(folder, weights, array_format))
    assert plan.needed_calls == 2
    assert build(plan).new_calls == 2
    assert forwards == [2]
    assert problems(folder) == []
    np.testing.assert_allclose(arrays_of(folder)["train/logits"], before["train/logits"], rtol=1e-5, atol=1e-5)


def test_chunk_files_that_were_deleted_are_made_again_and_their_rows_given_up(tmp_path, weights):
    folder = build_store(tmp_path / "store", weights)
    (folder / "data.zarr" / "train" / "logits" / "c.1.0.0").unlink()
    (folder / "data.zarr" / "train" / "valid" / "c.0.0").unlink()
    report = repair(folder, act=True)
    assert sorted(report.made_again) == ["data.zarr/train/logits/c.1.0.0", "data.zarr/train/valid/c.0.0"]
    assert (report.restored, report.dropped) == (list(range(64)), list(range(64, 70)))
    assert build(plan_build(config_of(folder, weights))).new_calls == 6
    assert problems(folder) == []


def test_what_killed_writers_left_is_deleted(folder):
    stray = [folder / ".manifest.json.1.partial", folder / "data-7.h5"]
    for path in stray:
        path.write_bytes(b"half")
    assert repair(folder, act=False).files == [path.name for path in stray]
    assert all(path.exists() for path in stray)
    repair(folder, act=True)
    assert not any(path.exists() for path in stray)
    assert problems(folder) == []


@pytest.mark.parametrize("step", ["call", "commit"])
def test_calls_of_a_killed_build_are_settled(tmp_path, weights, step):
    folder = tmp_path / "store"
    command = [sys.executable, "-m", "tests.teacher_cache.crash_build", folder, weights, "zarr", step]
    subprocess.run(command, capture_output=True, check=False)
    looked = repair(folder, act=False)
    assert len(looked.leases) == 1
    assert looked.adopted + looked.lost == totals(folder)[1] > 0
    assert looked.adopted > 0 if step == "commit" else looked.lost > 0
    done = repair(folder, act=True)
    assert (done.adopted, done.lost) == (looked.adopted, looked.lost)
    assert totals(folder)[1] == 0
    assert repair(folder, act=False).is_empty
    build(plan_build(crash_config(folder, weights, "zarr")))
    assert problems(folder) == []


def test_damaged_labels_are_left_and_said(folder):
    change(folder, "train/labels", 3)
    report = repair(folder, act=True)
    assert report.is_empty
    assert any("bring train/labels back from a copy" in text for text in report.left)


def test_without_sound_images_or_ledger_nothing_is_touched(folder):
    change(folder, "train/logits", 9)
    change(folder, "train/images", 3)
    with pytest.raises(StoreUnreadable, match="it cannot be repaired: bring train/images back"):
        repair(folder, act=True)
    change(folder, "train/images", 3)
    database = sqlite3.connect(folder / "ledger.sqlite")
    with database:
        database.execute("UPDATE calls SET row = 1 WHERE id = 5")
    database.close()
    with pytest.raises(StoreUnreadable, match="the ledger itself is damaged, and nothing was changed"):
        repair(folder, act=True)
    assert Store.open(folder).valid().all()


def test_a_store_that_is_being_built_is_not_repaired(folder):
    with FileLock(folder / "build.lock") as builder:
        assert builder.try_shared()
        with pytest.raises(StoreBusy, match="a build is writing"):
            repair(folder, act=True)


def test_cells_whose_calls_others_gave_up_are_made_again(tmp_path, weights):
    """A builder out of reach loses its lease; another settles its calls as lost, though its rows are whole."""
    from contextlib import closing

    from storage.locks import CellLocks
    from storage.store import own_ledger

    folder = tmp_path / "store"
    command = [sys.executable, "-m", "tests.teacher_cache.crash_build", folder, weights, "zarr", "commit"]
    subprocess.run(command, capture_output=True, check=False)
    store = Store.open(folder)
    with closing(own_ledger(folder)) as ledger:
        reserved = ledger.calls_of_store(store.manifest.store_id, "reserved")
        ledger.lose([call.id for call in reserved])
        for lease in ledger.leases().values():
            ledger.take_lease(lease)
        visible = int(store.valid().sum())
        with CellLocks(folder / "cells.lock") as locks:
            settle_store(store, ledger, locks, "another host")
    assert visible > int(Store.open(folder).valid().sum()), "what no committed call vouches for is not shown"
    report = build(plan_build(crash_config(folder, weights, "zarr")))
    assert report.new_calls == len(reserved)
    assert problems(folder) == []


def test_a_folder_that_cannot_be_written_to_is_a_sentence(folder, monkeypatch):
    real = os.open

    def refuse(path, flags, *rest, **options):
        if flags & (os.O_WRONLY | os.O_RDWR):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, flags, *rest, **options)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(PermissionError, match="Permission denied"):
        repair(folder, act=True)
