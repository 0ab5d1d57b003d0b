"""An answer that float16 cannot hold: the others are kept, it is paid for once, and the remedy that is named works."""

from __future__ import annotations

import errno
import os
import re
import shlex
import shutil
from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest

from ground.errors import DiskFull, InvalidInput
from storage import inspection
from storage.ledger import Ledger
from storage.locks import FileLock
from storage.store import Store
from teacher_cache.build import build
from teacher_cache.config import ExtensionConfig
from teacher_cache.convert import convert
from teacher_cache.extend import extend, prepare_extension
from teacher_cache.prepare import prepare_build
from teacher_cache.repair import repair
from teacher_cache.widen import widen
from tests.conftest import run_command
from tests.teacher_cache.damage import build_store, change, config_of, problems, totals

# The fourth answer of the second batch of 16.
LOUD_ROW = 19


@pytest.mark.parametrize("array_format", ["zarr", "hdf5"])
def test_one_answer_that_overflows_loses_nothing_and_is_committed_once_the_store_is_widened(
    tmp_path, weights, forwards, loud, array_format
):
    folder, settings = tmp_path / "store", {"n": 50, "features": "pooled", "batch_size": 16}
    plain = config_of(tmp_path / "plain", weights, array_format, **settings, feature_dtype="float32")
    asked = config_of(folder, weights, array_format, **settings)
    build(*prepare_build(plain))
    del forwards[:]
    loud(70001.0)
    with pytest.raises(InvalidInput, match="the teacher's pooled holds 70001, which float16 cannot hold") as refused:
        build(*prepare_build(asked))
    with pytest.raises(InvalidInput, match="an answer that is paid for cannot be kept"):
        convert(folder, "hdf5", tmp_path / "copy")
    assert totals(folder) == (31, 1, 0), "what fits of the two batches is committed, and nothing is lost"
    for _ in range(2):
        with pytest.raises(InvalidInput, match="an answer that is paid for cannot be kept"):
            prepare_build(asked)
    assert sum(forwards) == 32, "it is not asked for again"
    remedy = re.search(r"(ckd-cache widen .*?);", str(refused.value))
    widened = run_command(*shlex.split(remedy[1]))
    assert widened.returncode == 0, widened.stderr
    assert "answers that were paid for and are committed now: 1\n" in widened.stdout
    assert totals(folder) == (32, 0, 0)
    report = build(*prepare_build(replace(asked, feature_dtype="float32")))
    assert (report.new_calls, report.lost_calls, report.rows_valid) == (18, 0, 50)
    assert totals(folder) == (50, 0, 0)
    assert sum(forwards) == 50
    assert problems(folder) == []
    wide, exact = (Store.open(place).read("train/features/pooled") for place in (folder, plain.store))
    assert wide[LOUD_ROW].reshape(-1)[0] == 70001.0
    wide[LOUD_ROW].reshape(-1)[0] = exact[LOUD_ROW].reshape(-1)[0]
    np.testing.assert_allclose(wide, exact, rtol=2e-3, atol=2e-3)
    np.testing.assert_array_equal(wide[[LOUD_ROW, *range(32, 50)]], exact[[LOUD_ROW, *range(32, 50)]])
    assert {item.name for item in folder.iterdir()} == {
        "build.lock",
        "cells.lock",
        "ledger.sqlite",
        "manifest.json",
        Store.open(folder).manifest.arrays,
    }


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_answer_that_is_no_number_loses_no_other_and_is_not_asked_for_again(
    tmp_path, weights, forwards, loud, value
):
    folder = tmp_path / "store"
    asked = config_of(folder, weights, n=50, features="pooled", batch_size=16)
    loud(value, "logits")
    with pytest.raises(
        InvalidInput, match=f"the teacher's logits holds {value}, which is no number; check the teacher"
    ):
        build(*prepare_build(asked))
    with pytest.raises(InvalidInput, match=f"or go without it: --n {LOUD_ROW} or fewer"):
        prepare_build(asked)
    assert totals(folder) == (31, 1, 0)
    assert sum(forwards) == 32
    report = build(*prepare_build(replace(asked, n=LOUD_ROW)))
    assert (report.new_calls, report.lost_calls, report.rows_valid) == (0, 0, LOUD_ROW)
    assert widen(folder).committed == 0
    with pytest.raises(InvalidInput, match="which is no number"):
        prepare_build(replace(asked, feature_dtype="float32"))
    assert totals(folder) == (31, 1, 0)


def test_an_overflow_in_an_extension_is_widened_there_and_the_store_stays_as_it_is(tmp_path, weights, forwards, loud):
    folder = build_store(tmp_path / "store", weights, n=48, features="pooled")
    wanted = ExtensionConfig(store=folder, features="layer1,pooled", weights=weights, batch_size=16, device="cpu")
    del forwards[:]
    loud(-70001.0, "layer1")
    with pytest.raises(InvalidInput, match="layer1 holds 70001"):
        extend(*prepare_extension(wanted))
    report = widen(folder)
    assert (report.manifest, report.outputs, report.committed) == ("extension.json", ["layer1"], 1)
    extended = extend(*prepare_extension(replace(wanted, feature_dtype="float32")))
    assert (extended.new_calls, extended.lost_calls) == (16, 0)
    assert sum(forwards) == 48
    assert [output.dtype for output in Store.open(folder).outputs] == ["float32", "float32", "float16"]
    assert problems(folder) == []


def test_a_builder_that_waits_for_one_that_overflowed_says_so(tmp_path, weights, forwards, loud, monkeypatch):
    """It finds at its end that an answer of the other one does not fit, and neither waits for ever nor calls again."""
    folder = tmp_path / "store"
    asked = config_of(folder, weights, n=50, features="pooled", batch_size=16)
    prepared = prepare_build(asked)
    loud(70001.0)
    with pytest.raises(InvalidInput, match="70001"):
        build(*prepared)
    # As one that had begun before the other one ended.
    with FileLock(folder / "build.lock") as other:
        assert other.try_shared()
        with pytest.raises(InvalidInput, match="70001"):
            build(*prepared)
    assert totals(folder) == (49, 1, 0)
    assert sum(forwards) == 50


def test_a_builder_of_another_store_does_not_wait_for_an_answer_that_overflowed(tmp_path, weights, forwards, loud):
    shared = {"n": 50, "features": "pooled", "batch_size": 16, "ledger": f"sqlite:///{tmp_path / 'shared.sqlite'}"}
    one = config_of(tmp_path / "one", weights, **shared)
    loud(70001.0)
    with pytest.raises(InvalidInput, match="70001"):
        build(*prepare_build(one))
    with pytest.raises(InvalidInput, match=f"in {one.store}: .* widen --store {one.store} --ledger {one.ledger};"):
        build(*prepare_build(config_of(tmp_path / "two", weights, **shared)))
    assert sum(forwards) == 50, "it made the calls that nobody had made"


def test_a_widened_store_is_trained_traced_repaired_grown_and_copied_from(tmp_path, weights, forwards):
    url = f"sqlite:///{tmp_path / 'shared.sqlite'}"
    folder = build_store(tmp_path / "store", weights, n=40, features="pooled", ledger=url)
    before = Store.open(folder)
    rounded = before.read("train/features/pooled")
    assert widen(folder, ledger_url=url).cells == 40
    assert widen(folder, ledger_url=url).outputs == []
    store = Store.open(folder)
    np.testing.assert_array_equal(store.read("train/features/pooled"), rounded)
    assert store.manifest.store_id == before.manifest.store_id
    assert store.manifest.history[-1] == {"store_id": store.manifest.store_id, "made_by": "widen"}
    words = ["--store", folder, "--out", tmp_path / "run", "--method", "kd", "--student", "resnet8"]
    trained = run_command("ckd-train", *words, "--max-evals", 1, "--device", "cpu")
    assert trained.returncode == 0, trained.stderr
    traced = run_command("ckd-cache", "ledger", "trace", tmp_path / "run", "--ledger", url)
    assert traced.returncode == 0, traced.stdout + traced.stderr
    wide = {"features": "pooled", "feature_dtype": "float32", "ledger": url}
    build(*prepare_build(config_of(tmp_path / "other", weights, n=40, **wide)))
    build(*prepare_build(config_of(folder, weights, n=44, **wide)))
    assert sum(forwards) == 44, "answers that were paid for in float16 are copied, and count as paid"
    for place in (folder, tmp_path / "other"):
        assert problems(place, url) == []
    change(folder, "train/features/pooled", 3)
    assert len(problems(folder, url)) == 1
    repair(folder, ledger_url=url, act=True)
    assert problems(folder, url) == []
    assert sum(forwards) == 44


def test_verify_and_repair_say_what_keeps_an_answer_out(tmp_path, weights, forwards, loud):
    folder = tmp_path / "store"
    loud(70001.0)
    with pytest.raises(InvalidInput, match="70001"):
        build(*prepare_build(config_of(folder, weights, n=40, features="pooled", batch_size=16)))
    assert len([problem for problem in problems(folder) if "its answer is kept in answers-1-" in problem]) == 1
    report = repair(folder, act=True)
    assert len(report.left) == 1
    assert f"with: ckd-cache widen --store {folder}" in report.left[0]
    widen(folder)
    wide = {"features": "pooled", "feature_dtype": "float32", "batch_size": 16}
    build(*prepare_build(config_of(folder, weights, n=40, **wide)))
    assert problems(folder) == []
    assert sum(forwards) == 40


def test_a_store_that_stayed_narrow_is_told_to_follow_one_that_was_widened(tmp_path, weights, forwards):
    shared = {"features": "pooled", "ledger": f"sqlite:///{tmp_path / 'shared.sqlite'}"}
    narrow = build_store(tmp_path / "narrow", weights, n=10, **shared)
    wide = build_store(tmp_path / "wide", weights, n=30, **shared)
    widen(wide, ledger_url=shared["ledger"])
    with pytest.raises(InvalidInput, match="pooled in float32 and not in float16; .*: ckd-cache widen --store"):
        build(*prepare_build(config_of(narrow, weights, n=30, **shared)))
    widen(narrow, ledger_url=shared["ledger"])
    build(*prepare_build(config_of(narrow, weights, n=30, feature_dtype="float32", **shared)))
    assert problems(narrow, shared["ledger"]) == []
    assert sum(forwards) == 30


@pytest.mark.parametrize("array_format", ["zarr", "hdf5"])
@pytest.mark.parametrize(
    ("owner", "step"),
    [(Store, "lay_out"), (Store, "publish"), (Ledger, "record_store"), (Store, "save"), (shutil, "rmtree")],
)
def test_a_widening_that_stops_anywhere_is_done_by_the_next_one(
    tmp_path, weights, monkeypatch, array_format, owner, step
):
    folder = build_store(tmp_path / "store", weights, array_format, n=40, features="pooled")
    with monkeypatch.context() as patch, suppress(KeyboardInterrupt):
        patch.setattr(owner, step, lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        widen(folder)
    assert problems(folder) == []
    widen(folder)
    assert problems(folder) == []
    assert {output.dtype for output in Store.open(folder).outputs} == {"float32"}


def test_a_widening_without_room_leaves_the_store_as_it_was(tmp_path, weights, monkeypatch):
    folder = build_store(tmp_path / "store", weights, n=40, features="pooled")
    usage = shutil.disk_usage(folder)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
        with pytest.raises(DiskFull, match="the wider arrays need .* beside the old ones"):
            widen(folder)
    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
        with pytest.raises(DiskFull, match="no room left"):
            widen(folder)
    assert not (folder / "data-1.zarr").exists()
    assert problems(folder) == []


def test_a_widened_store_is_whole_however_many_rows_are_looked_at_together(tmp_path, weights, monkeypatch):
    config = config_of(tmp_path / "store", weights, "zarr", n=20, features="pooled", batch_size=16)
    build(*prepare_build(config))
    widen(config.store)
    monkeypatch.setattr(inspection, "MOST_ROWS", 8)
    assert problems(config.store) == []
