"""One store's own ledger is not another's."""

from __future__ import annotations

import shutil
from contextlib import closing
from dataclasses import replace

import pytest

from ground.errors import InvalidInput
from storage.ledger import Ledger
from storage.shared_ledger import require_shared
from storage.store_folder import LEDGER_FILE
from storage.store_ledger import recorded_as


def require(url: str) -> None:
    with closing(Ledger(url)) as ledger:
        require_shared(ledger, url)


def test_a_stores_own_ledger_and_its_copies_are_refused_for_another(empty_store, tmp_path):
    store = empty_store.store
    own = store.folder / LEDGER_FILE
    empty_store.ledger.copy_to(tmp_path / "copy.sqlite")
    for path in (own, tmp_path / "copy.sqlite"):
        for url in (str(path), f"sqlite:///{path}"):
            with pytest.raises(InvalidInput, match=f"is the own ledger of the store at {store.folder}.*leave --ledger"):
                require(url)


def test_an_own_ledger_is_known_by_the_manifest_beside_it_before_anything_is_charged(empty_store, tmp_path):
    moved = tmp_path / "moved"
    empty_store.ledger.close()
    shutil.copytree(empty_store.store.folder, moved)
    (moved / LEDGER_FILE).unlink()
    Ledger(moved / LEDGER_FILE, create=True).close()
    with pytest.raises(InvalidInput, match=f"is the own ledger of the store at {moved}"):
        require(str(moved / LEDGER_FILE))


def test_a_ledger_that_stores_share_may_lie_anywhere(empty_store, tmp_path):
    store = empty_store.store
    url = f"sqlite:///{tmp_path / 'shared.sqlite'}"
    empty_store.ledger.copy_to(tmp_path / "shared.sqlite")
    store.save(replace(store.manifest, ledger=recorded_as(url)))
    require(url)
    Ledger(store.folder / "all.sqlite", create=True).close()
    require(str(store.folder / "all.sqlite"))
