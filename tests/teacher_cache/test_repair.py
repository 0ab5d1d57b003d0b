"""`repair` says what it will do, touches nothing that is whole, and gives up openly what is gone."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from ground.errors import InvalidInput, StoreBusy, StoreUnreadable
from storage.ledger import Ledger
from storage.ledger_records import CallRequest, Session
from storage.locks import CellLocks, FileLock
from storage.rows import Rows
from storage.store import Store
from storage.store_ledger import own_ledger
from teacher_cache.build import build
from teacher_cache.convert import convert
from teacher_cache.prepare import prepare_build
from teacher_cache.repair import repair
from teacher_cache.settle import settle_store
from tests.teacher_cache.crash_build import config as crash_config
from tests.teacher_cache.damage import arrays_of, build_store, change, config_of, crashed_build, problems, totals

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
        Store.open(folder).read_outputs(["logits"], Rows.first(70))
    report = repair(folder, act=True)
    assert (report.dropped, len(report.revoked)) == ([9, 33], 2)
    assert totals(folder) == (68, 0, 2)
    assert all("is not there; finish it with: ckd-cache build" in text for text in problems(folder))
    prepared = prepare_build(config_of(folder, weights, array_format))
    assert prepared.plan.needed_calls == 2
    assert build(*prepared).new_calls == 2
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
    assert build(*prepare_build(config_of(folder, weights))).new_calls == 6
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
@pytest.mark.slow
def test_calls_of_a_killed_build_are_settled(tmp_path, weights, step):
    folder = tmp_path / "store"
    crashed_build(folder, weights, "zarr", step)
    looked = repair(folder, act=False)
    assert len(looked.leases) == 1
    assert looked.adopted + looked.lost == totals(folder)[1] > 0
    assert looked.adopted > 0 if step == "commit" else looked.lost > 0
    done = repair(folder, act=True)
    assert (done.adopted, done.lost) == (looked.adopted, looked.lost)
    assert totals(folder)[1] == 0
    assert repair(folder, act=False).is_empty
    build(*prepare_build(crash_config(folder, weights, "zarr")))
    assert problems(folder) == []


def test_damaged_labels_are_left_and_said(folder):
    change(folder, "train/labels", 3)
    report = repair(folder, act=True)
    assert report.is_empty
    assert any("bring train/labels back from a copy" in text for text in report.left)


def test_damaged_parameters_of_the_teacher_are_left_and_said(folder):
    change(folder, "teacher/head/weight", 0)
    report = repair(folder, act=True)
    assert report.is_empty
    assert any("bring teacher/head/weight back from a copy" in text for text in report.left)


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


@pytest.mark.slow
def test_cells_whose_calls_others_gave_up_are_made_again(tmp_path, weights):
    """A builder out of reach loses its lease; another settles its calls as lost, though its rows are whole."""
    folder = tmp_path / "store"
    crashed_build(folder, weights, "zarr", "commit")
    store = Store.open(folder)
    with closing(own_ledger(folder)) as ledger:
        reserved = ledger.calls_of_store(store.manifest.store_id, "reserved")
        committed = ledger.summary().committed
        ledger.lose([call.id for call in reserved])
        for lease in ledger.leases().values():
            ledger.take_lease(lease)
        visible = int(store.valid().sum())
        with CellLocks(folder / "cells.lock") as locks:
            settle_store(store, ledger, locks)
    assert visible > int(Store.open(folder).valid().sum()), "what no committed call vouches for is not shown"
    report = build(*prepare_build(crash_config(folder, weights, "zarr")))
    assert report.new_calls == 96 - committed
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


def test_an_answer_that_another_store_holds_is_taken_from_there_and_not_paid_for_again(tmp_path, weights, forwards):
    url = f"sqlite:///{tmp_path / 'shared.sqlite'}"
    one = build_store(tmp_path / "one", weights, n=20, ledger=url)
    two = build_store(tmp_path / "two", weights, "hdf5", n=30, ledger=url)
    change(one, "train/logits", 5)
    report = repair(one, ledger_url=url, act=True)
    assert (report.restored, report.revoked) == ([5], [])
    assert problems(one, url) == problems(two, url) == []
    assert sum(forwards) == 30


def test_a_copy_of_a_store_cannot_give_up_the_originals_calls(tmp_path, weights):
    url = f"sqlite:///{tmp_path / 'shared.sqlite'}"
    one = build_store(tmp_path / "one", weights, n=20, ledger=url)
    copy = tmp_path / "copy"
    shutil.copytree(one, copy)
    change(copy, "train/logits", 5)
    for attempt in (
        lambda: repair(copy, ledger_url=url, act=True),
        lambda: build(*prepare_build(config_of(copy, weights, n=20, ledger=url))),
    ):
        with pytest.raises(InvalidInput, match="is a copy of the store at .*one, and both are in the same ledger"):
            attempt()
    report = repair(copy, ledger_url=url, copy=one, act=True)
    assert (report.restored, report.revoked) == ([5], [])
    assert problems(one, url) == []


@pytest.mark.slow
def test_what_was_given_up_is_never_adopted(tmp_path, weights):
    """Another row's answer, with its digest, in place of a row's own: given up, charged again, and then a crash."""
    folder = build_store(tmp_path / "store", weights, n=96, features="layer1", batch_size=32)
    store = Store.open(folder)
    values, _ = store.read_cell(7, store.outputs)
    store.write_outputs([70], values)
    store.arrays.sync()
    assert repair(folder, act=True).dropped == [70]
    child = crashed_build(folder, weights, "zarr", "first call")
    assert child.returncode == -signal.SIGKILL, child.stderr
    report = build(*prepare_build(crash_config(folder, weights, "zarr")))
    assert (report.adopted_calls, report.lost_calls, report.new_calls) == (0, 1, 1)
    assert problems(folder) == []


def test_adopted_answers_are_made_durable_by_who_adopts_them(tmp_path, weights, monkeypatch):
    """Whoever wrote them died before it could say that they are on the disk."""
    folder = tmp_path / "store"
    crashed_build(folder, weights, "zarr", "publish")
    synced, real = set(), os.fsync

    def fsync(descriptor):
        synced.add(os.readlink(f"/proc/self/fd/{descriptor}"))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    report = repair(folder, act=True)
    assert report.adopted > 0
    names = {Path(path).parent.name for path in synced}
    assert {"logits", "layer1", "digest", "valid"} <= names


def test_calls_are_committed_only_when_everything_written_is_on_the_disk(tmp_path, weights, monkeypatch):
    unsynced: set[str] = set()
    pwrite, fsync, commit = os.pwrite, os.fsync, Ledger.commit

    def name_of(descriptor: int) -> str:
        return os.readlink(f"/proc/self/fd/{descriptor}")

    def watched_write(descriptor, *rest):
        unsynced.add(name_of(descriptor))
        return pwrite(descriptor, *rest)

    def watched_sync(descriptor):
        unsynced.discard(name_of(descriptor))
        fsync(descriptor)

    commits = []

    def watched_commit(self, *rest):
        commits.append(len(unsynced))
        commit(self, *rest)

    monkeypatch.setattr(os, "pwrite", watched_write)
    monkeypatch.setattr(os, "fsync", watched_sync)
    monkeypatch.setattr(Ledger, "commit", watched_commit)
    for array_format in FORMATS:
        build_store(tmp_path / array_format, weights, array_format, n=96)
    assert len(commits) >= 6
    assert set(commits) == {0}


def test_a_copy_that_is_repaired_leaves_the_originals_calls_in_hand_alone(tmp_path, weights):
    url = f"sqlite:///{tmp_path / 'shared.sqlite'}"
    one = build_store(tmp_path / "one", weights, n=20, ledger=url)
    copy = tmp_path / "copy"
    shutil.copytree(one, copy)
    change(copy, "train/logits", 5)
    store = Store.open(one)
    with closing(Ledger(url)) as ledger:
        session = ledger.start_session(
            Session(
                teacher=store.manifest.identity.teacher.fingerprint,
                teacher_name="resnet8",
                store=store.manifest.store_id,
                location=str(one),
                purpose="build",
                device="cpu",
                precision="fp32",
                outputs=tuple(output.name for output in store.outputs),
                host="another machine",
            )
        )
        ledger.reserve(session, [CallRequest(b"x" * 16, 1, 19, 0)])
        ledger.end_session(session)
        repair(copy, ledger_url=url, copy=one, act=True)
        assert len(ledger.unsettled_calls(session)) == 1
