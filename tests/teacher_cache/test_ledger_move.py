"""A ledger that stores share can be moved: its stores go on with it, and can be told where it is."""

from __future__ import annotations

import json
import shutil
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa

from ground.errors import IdentityMismatch, StoreBusy, StoreUnreadable
from storage.ledger import Ledger
from storage.ledger_tables import entries
from storage.locks import FileLock
from storage.manifest import EXTENSION, Manifest
from storage.store import Store
from storage.store_ledger import recorded_as
from teacher_cache.config import ExtensionConfig
from teacher_cache.extend import extend, prepare_extension
from teacher_cache.ledger_move import move_ledger
from tests.manifests import sealed
from tests.running import run_command
from tests.teacher_cache.damage import build_store, problems

_SETTINGS = {"features": "none", "batch_size": 8}


@pytest.fixture(autouse=True)
def no_shared_ledger(monkeypatch):
    monkeypatch.delenv("CKD_LEDGER", raising=False)


@pytest.fixture
def place(tmp_path) -> Path:
    """Where the ledger is at first."""
    return tmp_path / "all.sqlite"


@pytest.fixture
def store(tmp_path, weights, place) -> Path:
    return build_store(tmp_path / "store", weights, ledger=str(place), n=8, **_SETTINGS)


@pytest.fixture
def moved(store, place, tmp_path) -> Path:
    """Where it is now."""
    (tmp_path / "elsewhere").mkdir()
    return place.rename(tmp_path / "elsewhere" / "ledger.sqlite")


def unwrapped(text: str) -> str:
    return "".join(text.split())


def moves(ledger: Path) -> list[dict]:
    """Entries about a store whose ledger was moved."""
    query = sa.select(entries.c.payload).where(entries.c.kind == "store").order_by(entries.c.seq)
    with closing(Ledger(ledger)) as opened, opened.reading() as connection:
        found = [json.loads(payload) for payload in connection.execute(query).scalars()]
    return [content for content in found if content["made_by"] == "move"]


def test_a_store_goes_on_with_a_ledger_that_was_moved_and_pays_for_nothing_twice(forwards, store, moved, weights):
    build_store(store, weights, ledger=str(moved), n=12, **_SETTINGS)
    assert sum(forwards) == 8 + 4
    assert problems(store, str(moved)) == []
    assert Manifest.load(store).ledger != recorded_as(str(moved)), "a place is recorded by who is asked to"
    for command in (("verify", "--store", store), ("ledger", "verify", "--store", store)):
        assert run_command("ckd-cache", *command, "--ledger", moved).returncode == 0


def test_a_build_says_in_one_line_that_the_ledger_was_moved_and_what_to_do(store, moved, weights, place):
    settings = ("--teacher", "resnet8", "--weights", weights, "--dataset", "digits", "--features", "none", "--n", 9)
    build = ("ckd-cache", "build", *settings, "--device", "cpu", "--store", store, "--ledger", moved)
    remedy = f"ckd-cache ledger move --store {store} --ledger sqlite:///{moved}"
    told = run_command(*build)
    assert told.returncode == 0, told.stderr
    # Log lines are as wide as the terminal.
    assert unwrapped(told.stderr).count(unwrapped(remedy)) == 1
    assert unwrapped(f"was at sqlite:///{place}, and is the same one at sqlite:///{moved}") in unwrapped(told.stderr)
    assert run_command(*remedy.split()).returncode == 0
    assert unwrapped("ledger move") not in unwrapped(run_command(*build).stderr)


def test_the_new_place_is_recorded_in_store_and_ledger(store, moved, place):
    before = Manifest.load(store)
    done = run_command("ckd-cache", "ledger", "move", "--store", store, "--ledger", moved, "--json")
    after = Manifest.load(store)
    assert (done.returncode, after.ledger) == (0, f"sqlite:///{moved}")
    assert json.loads(done.stdout) == {
        "store": str(store),
        "before": f"sqlite:///{place}",
        "after": f"sqlite:///{moved}",
        "genesis": after.ledger_genesis,
    }
    assert replace(after, ledger=before.ledger, ledger_head=before.ledger_head) == before
    assert moves(moved) == [
        {"store": after.store_id, "manifest": after.digest, "made_by": "move", "replaces": before.digest}
    ]
    assert problems(store, str(moved)) == []
    again = run_command("ckd-cache", "ledger", "move", "--store", store, "--ledger", moved)
    assert (again.returncode, "nothing to do" in again.stdout, len(moves(moved))) == (0, True, 1)


def test_the_environment_may_say_where_it_is(store, moved):
    done = run_command("ckd-cache", "ledger", "move", "--store", store, env={"CKD_LEDGER": f"sqlite:///{moved}"})
    assert (done.returncode, Manifest.load(store).ledger) == (0, f"sqlite:///{moved}")


def test_a_move_that_is_stopped_before_the_manifest_is_written_is_finished_by_the_next(
    store, moved, weights, monkeypatch
):
    before = Manifest.load(store)
    with monkeypatch.context() as patch:
        patch.setattr(Manifest, "save", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            move_ledger(store, str(moved))
    assert (Manifest.load(store), len(moves(moved))) == (before, 1)
    assert problems(store, str(moved)) == [], "the entry holds for the manifest before as well"
    move_ledger(store, str(moved))
    assert (Manifest.load(store).ledger, len(moves(moved))) == (f"sqlite:///{moved}", 1)
    assert problems(store, str(moved)) == []


def test_every_store_of_a_ledger_is_told_by_itself(forwards, store, tmp_path, weights, place):
    other = build_store(tmp_path / "other", weights, ledger=str(place), n=10, **_SETTINGS)
    moved = place.rename(tmp_path / "moved.sqlite")
    move_ledger(other, str(moved))
    build_store(store, weights, ledger=str(moved), n=10, **_SETTINGS)
    assert sum(forwards) == 10, "what another store paid for is copied"
    assert problems(store, str(moved)) == problems(other, str(moved)) == []


def test_an_extension_that_was_not_finished_is_told_too(store, moved, weights, monkeypatch):
    config = ExtensionConfig(store=store, weights=weights, features="pooled", device="cpu", ledger=str(moved))
    with monkeypatch.context() as patch:
        patch.setattr("teacher_cache.builder.Builder.run", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            extend(*prepare_extension(config))
    move_ledger(store, str(moved))
    places = {Manifest.load(store, name).ledger for name in (EXTENSION, "manifest.json")}
    assert (places, len(moves(moved))) == ({f"sqlite:///{moved}"}, 2)
    extend(*prepare_extension(config))
    assert (Manifest.load(store).ledger, problems(store, str(moved))) == (f"sqlite:///{moved}", [])


def test_what_is_not_the_same_ledger_is_refused(store, tmp_path, place, moved):
    Ledger(tmp_path / "new.sqlite", create=True).close()
    before = Manifest.load(store)
    for url, says in (
        (tmp_path / "new.sqlite", "is another ledger: it begins with entry"),
        (tmp_path / "nothing.sqlite", ", or its new place, or another --store"),
    ):
        refused = run_command("ckd-cache", "ledger", "move", "--store", store, "--ledger", url)
        assert (refused.returncode, says in refused.stderr, len(refused.stderr.splitlines())) == (2, True, 1)
    (tmp_path / "new.sqlite").rename(place)
    with pytest.raises(StoreUnreadable, match="it begins with entry .*; bring back the right one, or if it was moved"):
        move_ledger(store, str(place))
    assert Manifest.load(store) == before


def test_a_copy_is_gone_on_with_only_where_the_user_says_so(store, tmp_path, place, weights):
    copy = shutil.copy(place, tmp_path / "copy.sqlite")
    with pytest.raises(IdentityMismatch, match="which is still there, and"):
        build_store(store, weights, ledger=str(copy), n=12, **_SETTINGS)
    move_ledger(store, str(copy))
    build_store(store, weights, ledger=str(copy), n=12, **_SETTINGS)
    with pytest.raises(StoreUnreadable, match="lacks entry"):
        move_ledger(store, str(place))


def test_a_stores_own_ledger_is_not_moved_out_of_it_nor_a_shared_one_into_it(tmp_path, weights, store, place):
    own = build_store(tmp_path / "own", weights, n=8, **_SETTINGS)
    outside = shutil.copy(own / "ledger.sqlite", tmp_path / "outside.sqlite")
    for arguments, says in (
        (("--store", own, "--ledger", outside), "are recorded in its own ledger, not in"),
        (("--store", own), "a store's own ledger is not moved out of it"),
    ):
        refused = run_command("ckd-cache", "ledger", "move", *arguments)
        assert (refused.returncode, says in refused.stderr) == (2, True), refused.stderr
    place.rename(store / "ledger.sqlite")
    with pytest.raises(IdentityMismatch, match="are recorded in sqlite.*, not in its own"):
        build_store(store, weights, n=8, **_SETTINGS)


def test_a_store_that_is_being_built_is_not_changed(store, moved):
    with FileLock(store / "build.lock") as lock:
        assert lock.try_shared()
        with pytest.raises(StoreBusy, match="a build is writing to"):
            move_ledger(store, str(moved))


def test_a_manifest_that_the_ledger_does_not_know_is_not_made_known_by_a_move(store, moved):
    document = json.loads((store / "manifest.json").read_text())
    document["versions"]["numpy"] = "0.1"
    (store / "manifest.json").write_text(json.dumps(sealed(document)))
    with pytest.raises(StoreUnreadable, match="is not what its ledger recorded"):
        move_ledger(store, str(moved))
    assert moves(moved) == []


def test_a_server_is_told_by_another_name(tmp_path, weights, postgres, monkeypatch):
    url = postgres.new_database()
    store = build_store(tmp_path / "store", weights, ledger=url, n=8, **_SETTINGS)
    monkeypatch.setenv("PGPASSWORD", postgres.password)
    other = url.replace(f":{postgres.password}@127.0.0.1", "@localhost")
    build_store(store, weights, ledger=other, n=10, **_SETTINGS)
    move_ledger(store, other)
    assert Store.open(store).manifest.ledger == recorded_as(other)
    assert problems(store, other) == []
