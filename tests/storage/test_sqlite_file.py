"""Opening an SQLite file acts on nothing that lies beside it."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from benchmarks.stand_ins.planted_journal import plant_journal
from ground.errors import StoreUnreadable
from storage.ledger import Ledger, ledger_exists
from storage.sqlite_file import connect, make, require_own
from storage.store_ledger import newest_head


@pytest.fixture
def database(tmp_path) -> Path:
    path = tmp_path / "ledger.sqlite"
    Ledger(path, create=True).close()
    return path


@pytest.fixture
def victim(tmp_path) -> Path:
    path = tmp_path / "elsewhere" / "thesis.tex"
    path.parent.mkdir()
    path.write_text("years of work")
    return path


def test_the_planted_journal_is_a_real_one(database, victim):
    plant_journal(database, victim)
    with closing(sqlite3.connect(database)) as plain:
        plain.execute("SELECT count(*) FROM entries").fetchall()
    assert not victim.exists(), "SQLite by itself deletes it: what the other tests show depends on that"


@pytest.mark.parametrize("create", [False, True])
def test_a_journal_that_names_a_file_is_refused_and_the_file_is_left(database, victim, create):
    journal = plant_journal(database, victim)
    with pytest.raises(StoreUnreadable, match=r"ledger\.sqlite-journal is a rollback journal, which can name any file"):
        Ledger(database, create=create)
    with pytest.raises(StoreUnreadable, match="is a rollback journal"):
        ledger_exists(database)
    assert victim.read_text() == "years of work"
    assert journal.exists()


def test_a_journal_is_refused_where_nothing_can_be_written_too(database, victim, monkeypatch):
    plant_journal(database, victim)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(StoreUnreadable, match="is a rollback journal"):
        Ledger(database)
    assert victim.exists()


def test_a_journal_that_appears_after_the_first_look_is_refused(database, victim):
    with closing(Ledger(database)) as ledger:
        ledger.close()  # the next question opens the file again
        plant_journal(database, victim)
        with pytest.raises(StoreUnreadable, match="is a rollback journal"):
            ledger.head()
    assert victim.exists()


def test_training_on_a_store_with_a_planted_journal_is_refused(whole_store, victim):
    store = whole_store.store
    store.record_ledger_head(whole_store.ledger.head())
    whole_store.ledger.close()
    plant_journal(store.folder / "ledger.sqlite", victim)
    with pytest.raises(StoreUnreadable, match="is a rollback journal"):
        newest_head(store)
    assert victim.exists()


@pytest.mark.parametrize("suffix", ["", "-wal", "-shm", "-journal"])
@pytest.mark.parametrize("plant", [lambda path, victim: path.symlink_to(victim), lambda path, _: os.mkfifo(path)])
def test_a_link_or_a_pipe_among_the_files_is_refused(database, victim, suffix, plant):
    file = database.with_name(database.name + suffix)
    file.unlink(missing_ok=True)
    plant(file, victim)
    with pytest.raises(StoreUnreadable, match="is no file of its own, but a link, a folder or a pipe; move it away"):
        require_own(database)
    assert victim.read_text() == "years of work"


def test_a_database_is_made_without_a_journal_and_keeps_none(tmp_path):
    path = tmp_path / "ledger.sqlite"
    make(path)
    assert path.read_bytes()[18:20] == b"\2\2", "WAL, for writers and readers"
    with closing(connect(path, "mode=rw")) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        connection.execute("CREATE TABLE t (a)")
        assert not (tmp_path / "ledger.sqlite-journal").exists()
    assert [file.name for file in tmp_path.iterdir()] == ["ledger.sqlite"]


def test_a_database_that_is_there_is_not_made_again(database):
    before = database.read_bytes()
    make(database)
    assert database.read_bytes() == before


def test_a_database_is_not_made_through_a_link(tmp_path):
    path = tmp_path / "ledger.sqlite"
    path.symlink_to(tmp_path / "elsewhere.sqlite")
    with pytest.raises(StoreUnreadable, match="is no file of its own"):
        Ledger(path, create=True)
    assert not (tmp_path / "elsewhere.sqlite").exists()


def test_no_other_file_is_opened_through_a_connection(database, tmp_path):
    with closing(connect(database, "mode=rw")) as connection, pytest.raises(sqlite3.OperationalError, match="attached"):
        connection.execute("ATTACH ? AS other", (str(tmp_path / "other.sqlite"),))
    assert not (tmp_path / "other.sqlite").exists()


def test_a_missing_file_is_not_made_by_opening_it(tmp_path):
    with pytest.raises(sqlite3.OperationalError, match="unable to open"):
        connect(tmp_path / "ledger.sqlite", "mode=rw")
    assert list(tmp_path.iterdir()) == []


def test_a_copy_in_another_mode_gets_no_journal_when_it_is_written_to(whole_store, tmp_path):
    head, copy = whole_store.ledger.head(), tmp_path / "copy.sqlite"
    whole_store.ledger.close()
    with closing(sqlite3.connect(whole_store.store.folder / "ledger.sqlite")) as plain:
        plain.execute("VACUUM INTO ?", (str(copy),))
    assert copy.read_bytes()[18:20] == b"\1\1"
    with closing(Ledger(copy)) as ledger:
        assert ledger.head() == head
        ledger.record_store("ab" * 16, {"manifest": "cd" * 32})
    assert copy.read_bytes()[18:20] == b"\2\2"
