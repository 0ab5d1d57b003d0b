"""Folders in which stores are made, which take nothing away that somebody paid for or that is not theirs."""

from __future__ import annotations

from pathlib import Path

import pytest

from ground.errors import InvalidInput, StoreUnreadable
from storage.store import Store
from storage.store_folder import DESKS, desks
from tests.storage.conftest import N, make_identity, make_samples


def test_creation_that_was_interrupted_is_started_afresh(tmp_path, array_format):
    folder = tmp_path / "store"
    identity = make_identity()
    Store.create(folder, identity, array_format=array_format, samples=make_samples(identity))
    (folder / "manifest.json").unlink()
    store = Store.create(folder, identity, array_format=array_format, samples=make_samples(identity, 20))
    assert store.manifest.n == 20


def test_a_folder_with_paid_calls_and_no_manifest_is_not_wiped(whole_store):
    folder = whole_store.store.folder
    (folder / "manifest.json").rename(folder.parent / "aside.json")
    with pytest.raises(StoreUnreadable, match="has a ledger and no manifest.json: its calls are paid for"):
        Store.create(folder, make_identity(), array_format="zarr", samples=make_samples(make_identity()))
    (folder.parent / "aside.json").rename(folder / "manifest.json")
    assert Store.open(folder).valid_prefix() == N


def test_a_folder_with_other_things_in_it_is_not_taken_over(tmp_path, array_format):
    (tmp_path / "thesis.tex").write_text("years of work")
    identity = make_identity()
    with pytest.raises(InvalidInput, match=r"is not empty \(it holds thesis.tex\)"):
        Store.create(tmp_path, identity, array_format=array_format, samples=make_samples(identity))


def test_what_is_built_in_object_storage_lies_where_the_user_says_or_with_the_state_of_programs(monkeypatch, tmp_path):
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    monkeypatch.delenv(DESKS, raising=False)
    assert desks() == Path.home() / ".local" / "state" / "ckd" / "desks"
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    assert desks() == tmp_path / "state" / "ckd" / "desks"
    monkeypatch.setenv(DESKS, str(tmp_path / "here"))
    assert desks() == tmp_path / "here"
