"""Which ledger a store's calls are in: the same one as ever, or a sentence."""

from __future__ import annotations

import shutil
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from ground.errors import IdentityMismatch, StoreUnreadable
from storage.ledger import Ledger
from storage.rows import Rows
from storage.store import Store
from storage.store_ledger import leaving_own_ledgers, newest_head, open_ledger_of, own_ledger, recorded_as
from tests.storage.conftest import N


def test_a_ledger_that_cannot_be_opened_leaves_the_head_that_was_noted(whole_store):
    store, newest = whole_store.store, whole_store.ledger.head()
    assert newest_head(store) == newest
    whole_store.ledger.close()
    for damage in (lambda ledger: ledger.write_bytes(b"no database"), lambda ledger: ledger.unlink()):
        damage(store.folder / "ledger.sqlite")
        store.record_ledger_head("12" * 32)
        again = Store.open(store.folder)
        assert newest_head(again) == "12" * 32
        assert again.read_outputs(["logits"], Rows.first(N))["logits"].shape[0] == N


def test_without_a_noted_head_a_ledger_that_cannot_be_opened_is_an_error(whole_store):
    whole_store.ledger.close()
    (whole_store.store.folder / "ledger.sqlite").write_bytes(b"no database")
    assert whole_store.store.manifest.ledger_head is None
    with pytest.raises(StoreUnreadable, match=r"the ledger at .*ledger\.sqlite cannot be used"):
        newest_head(whole_store.store)


def test_a_ledger_is_begun_once_and_noted(empty_store):
    empty_store.ledger.close()
    (empty_store.store.folder / "ledger.sqlite").unlink()
    store = empty_store.store
    store.save(replace(store.manifest, ledger_head=None))
    with closing(open_ledger_of(store, None, create=True)) as ledger:
        assert store.manifest.ledger_head == ledger.head()
    (store.folder / "ledger.sqlite").unlink()
    with pytest.raises(StoreUnreadable):
        open_ledger_of(Store.open(store.folder), None, create=True)


def test_another_ledger_than_the_recorded_one_is_refused(empty_store, tmp_path):
    store, url = empty_store.store, f"sqlite:///{tmp_path / 'shared.sqlite'}"
    Ledger(url, create=True).close()
    with pytest.raises(IdentityMismatch, match="are recorded in its own ledger, not in sqlite.*leave --ledger out"):
        open_ledger_of(store, url)
    store.save(replace(store.manifest, ledger=recorded_as(url), ledger_head=None))
    with pytest.raises(IdentityMismatch, match="are recorded in sqlite.*, not in its own; give --ledger sqlite"):
        open_ledger_of(store, None)
    open_ledger_of(store, url).close()


def test_a_replaced_ledger_is_found_out(whole_store, tmp_path):
    store = whole_store.store
    store.record_ledger_head(whole_store.ledger.head())
    whole_store.ledger.close()
    (store.folder / "ledger.sqlite").unlink()
    Ledger(store.folder / "ledger.sqlite", create=True).close()
    with pytest.raises(StoreUnreadable, match="ledger"):
        open_ledger_of(Store.open(store.folder), None)


@pytest.fixture
def shared(tmp_path) -> Path:
    """A ledger that stores share, with two entries."""
    path = tmp_path / "shared.sqlite"
    with closing(Ledger(path, create=True)) as ledger:
        ledger.set_budget("ab" * 32, "wrn_40_2", 100)
    return path


@pytest.fixture
def sharing(empty_store, shared) -> Store:
    """A store whose calls are recorded in it."""
    store = empty_store.store
    store.save(replace(store.manifest, ledger=recorded_as(str(shared)), ledger_head=None))
    open_ledger_of(store, str(shared), create=True).close()
    return store


def test_a_store_notes_what_its_ledger_begins_with(sharing, shared):
    with closing(Ledger(shared)) as ledger:
        assert ledger.entry_number(ledger.genesis()) == 1
        assert Store.open(sharing.folder).manifest.ledger_genesis == ledger.genesis()


def test_a_store_from_before_that_was_noted_learns_it_when_it_is_next_written(sharing, shared):
    noted = sharing.manifest
    sharing.save(replace(noted, ledger_genesis=None))
    assert "ledger_genesis" not in (sharing.folder / "manifest.json").read_text()
    with closing(open_ledger_of(sharing, str(shared))) as ledger:
        assert sharing.manifest.ledger_genesis is None, "who opens it need not write"
        sharing.record_ledger_head(ledger.head(), ledger.genesis())
    assert Store.open(sharing.folder).manifest == noted


@pytest.mark.parametrize("is_noted", [True, False])
def test_a_ledger_that_was_moved_is_the_same_one_and_said_to_be_in_one_line(
    sharing, shared, tmp_path, caplog, is_noted
):
    if not is_noted:
        sharing.save(replace(sharing.manifest, ledger_genesis=None))
    before, url = sharing.manifest, f"sqlite:///{tmp_path / 'moved.sqlite'}"
    shared.rename(tmp_path / "moved.sqlite")
    with caplog.at_level("INFO"):
        for _ in range(2):
            open_ledger_of(sharing, url).close()
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 1
    assert f"was at sqlite:///{shared}, and is the same one at {url} (it begins with entry" in told[0]
    assert f"ckd-cache ledger move --store {sharing.folder} --ledger {url}" in told[0]
    assert Store.open(sharing.folder).manifest == before
    with pytest.raises(StoreUnreadable, match="there is no ledger at"):
        open_ledger_of(sharing, str(shared))


@pytest.mark.parametrize("is_noted", [True, False])
def test_another_ledger_is_refused_wherever_it_is(sharing, shared, tmp_path, is_noted):
    if not is_noted:
        sharing.save(replace(sharing.manifest, ledger_genesis=None))
    differs = "it begins with entry [0-9a-f]{12}, not [0-9a-f]{12}" if is_noted else "it lacks entry [0-9a-f]{12}"
    shared.rename(tmp_path / "moved.sqlite")
    with pytest.raises(IdentityMismatch, match="give --ledger .*, or its new place"):
        open_ledger_of(sharing, str(tmp_path / "nothing.sqlite"))
    Ledger(tmp_path / "other.sqlite", create=True).close()
    with pytest.raises(IdentityMismatch, match=f"other.sqlite is another ledger: {differs}; give the right --ledger"):
        open_ledger_of(sharing, str(tmp_path / "other.sqlite"))
    (tmp_path / "other.sqlite").rename(shared)
    with pytest.raises(
        StoreUnreadable, match=f"is not the one that .* was built with: {differs}; bring back the right"
    ):
        open_ledger_of(sharing, str(shared))


def test_a_ledger_that_was_moved_and_rolled_back_is_refused(sharing, shared, tmp_path):
    older = shutil.copy(shared, tmp_path / "older.sqlite")
    with closing(Ledger(shared)) as ledger:
        ledger.set_budget("ab" * 32, "wrn_40_2", 101)
        sharing.record_ledger_head(ledger.head(), ledger.genesis())
    shared.unlink()
    with pytest.raises(StoreUnreadable, match="lacks entry .* it was replaced or rolled back"):
        open_ledger_of(sharing, str(older))


def test_a_copy_of_a_ledger_that_is_still_in_its_place_is_refused_unless_the_user_says_that_it_moved(
    sharing, shared, tmp_path
):
    copy = shutil.copy(shared, tmp_path / "copy.sqlite")
    with pytest.raises(
        IdentityMismatch, match=r"which is still there, and .*copy.sqlite is another file: if one is a c"
    ):
        open_ledger_of(sharing, str(copy))
    open_ledger_of(sharing, str(copy), has_moved=True).close()


def test_a_ledger_that_has_two_paths_is_one_ledger(sharing, shared, tmp_path):
    (tmp_path / "mount").symlink_to(tmp_path)
    open_ledger_of(sharing, str(tmp_path / "mount" / shared.name)).close()


def test_a_store_whose_ledger_was_never_begun_is_held_to_the_place_that_it_names(sharing, shared, tmp_path):
    sharing.save(replace(sharing.manifest, ledger_head=None, ledger_genesis=None))
    other = shutil.copy(shared, tmp_path / "other.sqlite")
    shared.unlink()
    with pytest.raises(IdentityMismatch, match="are recorded in sqlite.*shared.sqlite, not in sqlite.*other.sqlite"):
        open_ledger_of(sharing, str(other), create=True)


def test_a_server_is_known_by_any_name_and_with_its_password_anywhere(empty_store, postgres, monkeypatch):
    url, store = postgres.new_database(), empty_store.store
    store.save(replace(store.manifest, ledger=recorded_as(url), ledger_head=None))
    open_ledger_of(store, url, create=True).close()
    monkeypatch.setenv("PGPASSWORD", postgres.password)
    for other in (
        url.replace("127.0.0.1", "localhost"),
        url.replace(f":{postgres.password}", ""),
        f"{url}?connect_timeout=5",
    ):
        assert recorded_as(other) != store.manifest.ledger
        open_ledger_of(store, other).close()
    another = postgres.new_database()
    Ledger(another, create=True).close()
    with pytest.raises(IdentityMismatch, match=r"is another ledger: it begins with entry"):
        open_ledger_of(store, another)


@pytest.mark.parametrize("place", ["postgresql://", "sqlite:////nowhere/at/all", "no url", "nonsense://x", "sqlite://"])
def test_a_place_that_a_stranger_made_up_hinders_nothing(sharing, shared, place):
    sharing.save(replace(sharing.manifest, ledger=place))
    open_ledger_of(sharing, str(shared)).close()


def test_a_link_is_no_ledger(tmp_path):
    Ledger(tmp_path / "elsewhere.sqlite", create=True).close()
    (tmp_path / "ledger.sqlite").symlink_to(tmp_path / "elsewhere.sqlite")
    with pytest.raises(StoreUnreadable, match="is a link to another place"):
        own_ledger(tmp_path)


def test_on_another_machine_a_stores_own_ledger_is_left_alone(whole_store):
    store, ledger = whole_store.store, whole_store.ledger
    store.record_ledger_head(ledger.head(), ledger.genesis())
    with leaving_own_ledgers("it is written elsewhere"):
        with pytest.raises(StoreUnreadable, match=r"ledger\.sqlite is left alone here: it is written elsewhere; run"):
            own_ledger(store.folder)
        # What was noted when the last build ended will do for a training.
        assert newest_head(store) == ledger.head()
    own_ledger(store.folder).close()
