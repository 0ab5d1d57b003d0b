"""An answer that float16 cannot hold, where nobody asked for float16: the command itself goes on in float32."""

from __future__ import annotations

import json

import pytest

from storage.locks import FileLock
from storage.store import Store
from teacher_cache import fallback
from teacher_cache.widen import widen
from tests.conftest import run_command
from tests.running import run_program
from tests.teacher_cache.crash_fallback import WORDS
from tests.teacher_cache.damage import build_store, problems, totals


def run_build(folder, weights, *more, command="build"):
    words = WORDS if command == "build" else ["--features", "layer1", "--batch-size", 16, "--yes"]
    return run_command("ckd-cache", command, *words, "--weights", weights, "--device", "cpu", "--store", folder, *more)


def types_of(folder) -> dict[str, str]:
    return {output.name: output.dtype for output in Store.open(folder).outputs}


@pytest.mark.parametrize("array_format", ["zarr", "hdf5"])
def test_the_build_widens_the_store_says_so_and_makes_each_call_once(tmp_path, weights, forwards, loud, array_format):
    folder = tmp_path / "store"
    loud(70001.0)
    done = run_build(folder, weights, "--format", array_format)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"50 new teacher calls; {folder} holds 50 of 50 rows whole")
    said = [line for line in done.stderr.splitlines() if "float" in line]
    assert len(said) == 1
    assert "row 19, view 0) the teacher's pooled holds 70001, which float16 cannot hold; " in said[0]
    assert f"{folder} keeps its features in float32 from now on, and no call is repeated" in said[0]
    assert sum(forwards) == 50
    assert totals(folder) == (50, 0, 0)
    assert types_of(folder)["pooled"] == "float32"
    assert Store.open(folder).read("train/features/pooled")[19].reshape(-1)[0] == 70001.0
    assert problems(folder) == []
    again = run_build(folder, weights, "--format", array_format, "--json")
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout) | {"new_calls": 0, "reused_calls": 0, "adopted_calls": 0, "lost_calls": 0} == (
        json.loads(again.stdout)
    )
    assert "float" not in again.stderr
    grown = run_command("ckd-cache", "build", "--store", folder, "--weights", weights, "--n", 52, "--device", "cpu")
    assert "2 new teacher calls" in grown.stdout, grown.stderr
    assert problems(folder) == []


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_a_type_that_was_asked_for_is_never_changed(tmp_path, weights, forwards, loud, dtype):
    folder = tmp_path / "store"
    loud(70001.0)
    done = run_build(folder, weights, "--feature-dtype", dtype)
    assert types_of(folder)["pooled"] == dtype
    if dtype == "float32":
        assert done.returncode == 0, done.stderr
        return
    assert done.returncode == 2
    assert f"with: ckd-cache widen --store {folder}; then run the same command with" in done.stderr
    assert totals(folder) == (31, 1, 0)
    # Who leaves it to the command from now on needs no other one.
    assert run_build(folder, weights).returncode == 0
    assert sum(forwards) == 50
    assert totals(folder) == (50, 0, 0)


def test_while_others_work_on_the_store_it_says_what_to_do_and_goes_on_when_they_have_left(
    tmp_path, weights, forwards, loud, monkeypatch
):
    folder = tmp_path / "store"
    loud(70001.0)

    def crowded(*arguments, **options):
        """The other one came while this one was at work, and is there when it wants to be alone."""
        with FileLock(folder / "build.lock") as other:
            assert other.try_shared()
            return widen(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(fallback, "widen", crowded)
        busy = run_build(folder, weights)
    assert busy.returncode == 2
    assert f"with: ckd-cache widen --store {folder}" in busy.stderr
    assert types_of(folder)["pooled"] == "float16"
    assert totals(folder)[2] == 0
    alone = run_build(folder, weights)
    assert alone.returncode == 0, alone.stderr
    assert alone.stderr.count("keeps its features in float32 from now on") == 1
    assert sum(forwards) == 50
    assert totals(folder) == (50, 0, 0)
    assert problems(folder) == []


def test_a_dry_run_writes_nothing(tmp_path, weights, forwards, loud):
    folder = tmp_path / "store"
    loud(70001.0)
    run_build(folder, weights, "--feature-dtype", "float16")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    dry = run_build(folder, weights, "--dry-run")
    assert dry.returncode == 2
    assert "which float16 cannot hold" in dry.stderr
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_an_answer_that_is_no_number_is_no_reason_to_widen(tmp_path, weights, forwards, loud):
    folder = tmp_path / "store"
    loud(float("nan"))
    done = run_build(folder, weights)
    assert done.returncode == 2
    assert "which is no number" in done.stderr
    assert types_of(folder)["pooled"] == "float16"


def test_an_extension_widens_what_it_adds_and_the_store_grows_afterwards(tmp_path, weights, forwards, loud):
    folder = build_store(tmp_path / "store", weights, n=48, features="pooled")
    del forwards[:]
    loud(-70001.0, "layer1")
    done = run_build(folder, weights, command="extend")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("48 new teacher calls")
    assert done.stderr.count("keeps the features that are added in float32 from now on") == 1
    assert sum(forwards) == 48
    assert types_of(folder) == {"logits": "float32", "layer1": "float32", "pooled": "float16"}
    assert problems(folder) == []
    again = run_build(folder, weights, command="extend")
    assert (again.returncode, sum(forwards)) == (0, 48)
    grown = run_command("ckd-cache", "build", "--store", folder, "--weights", weights, "--n", 50, "--device", "cpu")
    assert "2 new teacher calls" in grown.stdout, grown.stderr
    assert types_of(folder) == {"logits": "float32", "layer1": "float32", "pooled": "float16"}
    assert problems(folder) == []


def test_another_store_of_the_ledger_follows_one_that_was_widened(tmp_path, weights, forwards, loud):
    url = f"sqlite:///{tmp_path / 'shared.sqlite'}"
    narrow = build_store(tmp_path / "narrow", weights, n=10, features="pooled", ledger=url)
    loud(70001.0)
    for folder in (tmp_path / "wide", narrow, tmp_path / "new"):
        done = run_build(folder, weights, "--ledger", url)
        assert done.returncode == 0, done.stderr
        assert types_of(folder)["pooled"] == "float32"
        assert problems(folder, url) == []
    assert sum(forwards) == 50


@pytest.mark.slow
@pytest.mark.parametrize("where", ["before", "within", "after"])
def test_a_build_that_is_killed_around_the_widening_is_finished_by_the_same_command(tmp_path, weights, forwards, where):
    folder = tmp_path / "store"
    killed = run_program("tests.teacher_cache.crash_fallback", folder, weights, where)
    assert killed.returncode == -9, killed.stderr
    assert types_of(folder)["pooled"] == ("float32" if where == "after" else "float16")
    counted = sum(map(int, folder.with_name("store.forwards").read_text().split()))
    assert counted == 32
    done = run_build(folder, weights)
    assert done.returncode == 0, done.stderr
    assert counted + sum(forwards) == 50
    assert totals(folder) == (50, 0, 0)
    assert types_of(folder)["pooled"] == "float32"
    assert Store.open(folder).read("train/features/pooled")[19].reshape(-1)[0] == 70001.0
    assert problems(folder) == []
