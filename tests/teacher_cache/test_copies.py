"""Folders that hold the same store, each on a machine or in a container of its own, all under one path: none of them
gives up, settles or takes what another one has. And one folder that was moved is still itself.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from storage.ledger import Ledger
from storage.ledger_records import CallRequest, Session
from storage.locks import CellLocks, FileLock
from storage.store import Store
from teacher_cache import place
from teacher_cache.convert import convert
from teacher_cache.place import Place
from teacher_cache.prepare import prepare_build
from teacher_cache.repair import repair
from teacher_cache.settle import settle_store
from tests.running import COMMANDS, run_command
from tests.teacher_cache.damage import build_store, change, config_of, problems

N = 16
_SETTINGS = {"features": "none", "batch_size": 8, "n": N}


@pytest.fixture
def url(tmp_path) -> str:
    return f"sqlite:///{tmp_path / 'shared.sqlite'}"


@pytest.fixture
def store(tmp_path, weights, url) -> Path:
    return build_store(tmp_path / "store", weights, ledger=url, **_SETTINGS)


def copied(store: Path, to: Path) -> Path:
    subprocess.run(["cp", "-a", store, to], check=True)
    return to


@contextmanager
def elsewhere(store: Path):
    """Be where a copy is at the path of the store, and the store itself is not to be seen."""
    copy = copied(store, store.with_name("copy"))
    store.rename(store.with_name("original"))
    copy.rename(store)
    yield
    store.rename(copy)
    store.with_name("original").rename(store)


@pytest.fixture(params=["another machine", "another container"])
def where(request, tmp_path, monkeypatch) -> None:
    """Of the other machine, the kernel says that it is one."""
    if request.param == "another machine":
        (tmp_path / "boot_id").write_text("another\n")
        monkeypatch.setattr(place, "BOOT_ID", tmp_path / "boot_id")


def committed(url: str) -> int:
    with closing(Ledger(url)) as ledger:
        return ledger.summary().committed


def test_a_private_copy_that_is_damaged_gives_up_none_of_the_calls_that_the_store_holds(store, url, where):
    with elsewhere(store):
        for row in range(N):
            change(store, "train/logits", row)
        report = repair(store, ledger_url=url, act=True)
        assert (report.revoked, len(report.dropped)) == ([], N)
        (left,) = report.left
        assert f"the answers of {N} calls are not in {store}" in left
        assert "take them from there with --from DIR" in left
        again = repair(store, ledger_url=url, copy=store.with_name("original"), act=True)
        assert (again.revoked, len(again.restored), again.left) == ([], N, [])
    assert committed(url) == N
    assert problems(store, url) == []


def test_a_private_copy_from_before_gives_up_none_of_the_calls_that_were_made_since(store, url, weights, where):
    old = copied(store, store.with_name("old"))
    build_store(store, weights, ledger=url, **_SETTINGS | {"n": 2 * N})
    grown = store.rename(store.with_name("grown"))
    old.rename(store)
    change(store, "train/logits", 3)
    assert repair(store, ledger_url=url, act=True).revoked == []
    store.rename(old)
    grown.rename(store)
    assert (committed(url), problems(store, url)) == (2 * N, [])


def start_builder(store: Path, url: str) -> int:
    """A builder at work: its session has its lease, and one call in hand."""
    opened = Store.open(store)
    identity = opened.manifest.identity
    with closing(Ledger(url)) as ledger:
        session = ledger.start_session(
            Session(
                teacher=identity.teacher.fingerprint,
                teacher_name=identity.teacher.name,
                store=opened.manifest.store_id,
                location=str(store.absolute()),
                purpose="build",
                device="cpu",
                precision="fp32",
                outputs=("logits",),
                host=Place.of(store).text,
            )
        )
        assert ledger.reserve(session, [CallRequest(b"x" * 16, 1, N - 1, 0)]).ids
    return session


def settle(store: Path, url: str) -> tuple[set[int], int]:
    """What who has the build lock alone does; returns sessions with a lease, and how many calls are in hand."""
    with closing(Ledger(url)) as ledger, CellLocks(store / "cells.lock") as locks:
        settle_store(Store.open(store), ledger, locks)
        return set(ledger.leases()), ledger.summary().reserved


def test_a_living_builders_lease_is_not_taken_from_a_private_copy(store, url, where):
    session = start_builder(store, url)
    with elsewhere(store):
        report = repair(store, ledger_url=url, act=False)
        assert (report.leases, report.lost) == ([], 0)
        assert settle(store, url) == ({session}, 1)
    with closing(Ledger(url)) as ledger:
        assert ledger.holds_lease(session)


@pytest.mark.slow
def test_a_living_builders_lease_is_not_taken_from_a_container_on_the_same_machine(store, url):
    """The container has the same kernel, and a copy of the store mounted at its path."""
    copy = copied(store, store.with_name("copy"))
    script = 'mount --bind "$1" "$2" && exec "$3" repair --store "$2" --ledger "$4" --yes --json'
    container = ["unshare", "--map-root-user", "--mount", "sh", "-c"]
    if shutil.which("unshare") is None or subprocess.run([*container, "mount -t tmpfs none /mnt"]).returncode:
        pytest.skip("file systems of one's own cannot be mounted here")
    session = start_builder(store, url)
    words = [*container, script, "sh", copy, store, COMMANDS / "ckd-cache", url]
    done = subprocess.run(words, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert [json.loads(done.stdout)[name] for name in ("leases", "adopted", "lost")] == [[], 0, 0]
    with closing(Ledger(url)) as ledger:
        assert ledger.holds_lease(session)
        assert ledger.summary().reserved == 1


def test_a_plan_in_a_private_copy_counts_on_what_a_living_builder_has_in_hand(store, url, weights):
    with closing(Ledger(url)) as ledger:
        grown = config_of(store, weights, ledger=url, **_SETTINGS | {"n": N + 1})
        digest = prepare_build(grown).plan.input_of(N)
        session = start_builder(store, url)
        ledger.reserve(session, [CallRequest(digest, N, N, 0)])
        with elsewhere(store):
            assert prepare_build(grown).plan.needed_calls == 0
        assert prepare_build(grown).plan.needed_calls == 1, "here nobody has the lock, so its builder is no more"


@pytest.mark.parametrize("is_shared", [True, False])
def test_a_living_builders_lease_outlasts_its_lock_file(tmp_path, weights, url, is_shared):
    """Somebody takes the lock for a stale one and deletes it: who makes a new one is alone with that one."""
    ledger = url if is_shared else None
    store = build_store(tmp_path / "store", weights, ledger=ledger, **_SETTINGS)
    place = url if ledger else f"sqlite:///{store / 'ledger.sqlite'}"
    session = start_builder(store, place)
    (store / "build.lock").unlink()
    with FileLock(store / "build.lock") as lock:
        assert lock.try_exclusive()
        assert settle(store, place) == ({session}, 1)


@pytest.mark.parametrize("is_moved", [False, True])
def test_a_builder_that_is_no_more_is_settled_at_once_in_its_own_folder(store, url, is_moved):
    start_builder(store, url)
    folder = store.rename(store.with_name("moved")) if is_moved else store
    assert settle(folder, url) == (set(), 0)


def test_a_store_that_was_moved_gives_up_what_is_nowhere_and_pays_for_it_again(store, url, weights, forwards):
    moved = store.rename(store.with_name("moved"))
    change(moved, "train/logits", 5)
    report = repair(moved, ledger_url=url, act=True)
    assert (len(report.revoked), report.left) == (1, [])
    before = sum(forwards)
    build_store(moved, weights, ledger=url, **_SETTINGS)
    assert (sum(forwards) - before, problems(moved, url)) == (1, [])


def test_a_store_put_back_from_a_backup_gives_up_what_is_nowhere_where_the_user_says_that_it_is_the_only_copy(
    store, url, weights
):
    backup = copied(store, store.with_name("backup"))
    subprocess.run(["rm", "-r", store], check=True)
    copied(backup, store)
    subprocess.run(["rm", "-r", backup], check=True)
    change(store, "train/logits", 5)
    common = ("ckd-cache", "repair", "--store", store, "--ledger", url, "--yes")
    first = run_command(*common)
    assert first.returncode == 1
    assert "left: the answers of 1 calls are not in" in first.stdout
    assert "give them up with --only-copy" in first.stdout
    second = run_command(*common, "--only-copy")
    assert (second.returncode, "call the teacher again on what was given up" in second.stdout) == (0, True), (
        second.stdout
    )
    build_store(store, weights, ledger=url, **_SETTINGS)
    assert problems(store, url) == []


def test_calls_whose_place_an_earlier_release_did_not_record_are_given_up_only_where_the_user_says_so(
    store, url, monkeypatch, weights
):
    monkeypatch.setattr(Place, "text", property(lambda self: self.boot))
    build_store(store, weights, ledger=url, **_SETTINGS | {"n": N + 4})
    monkeypatch.undo()
    change(store, "train/logits", N)
    assert repair(store, ledger_url=url, act=False).revoked == []
    assert len(repair(store, ledger_url=url, only_copy=True, act=True).revoked) == 1


def test_a_converted_store_never_gives_up_the_calls_of_the_store_that_it_was_made_from(store, url, tmp_path):
    convert(store, "hdf5", tmp_path / "converted", url)
    change(tmp_path / "converted", "train/logits", 5)
    change(store, "train/logits", 5)
    report = repair(tmp_path / "converted", ledger_url=url, only_copy=True, act=True)
    assert (report.revoked, report.dropped) == ([], [5])
    assert committed(url) == N
