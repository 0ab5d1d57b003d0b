"""Which ledger a store's calls are in: the same one as ever, or a sentence."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace

import pytest

from ground.errors import IdentityMismatch, StoreUnreadable
from storage.ledger import Ledger
from storage.rows import Rows
from storage.store import Store
from storage.store_ledger import newest_head, open_ledger_of, own_ledger, recorded_as
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


def test_a_link_is_no_ledger(tmp_path):
    Ledger(tmp_path / "elsewhere.sqlite", create=True).close()
    (tmp_path / "ledger.sqlite").symlink_to(tmp_path / "elsewhere.sqlite")
    with pytest.raises(StoreUnreadable, match="is a link to another place"):
        own_ledger(tmp_path)
