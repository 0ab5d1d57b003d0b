"""Files are replaced whole, are the folder's own, and are written by one process each."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from ground.durable import (
    allocate,
    create,
    open_own,
    partial_of,
    remove_own,
    remove_partials,
    replacing,
    write_bytes,
)
from ground.errors import InvalidInput


@pytest.fixture
def victim(tmp_path) -> Path:
    path = tmp_path / "victim"
    path.write_bytes(b"years of work")
    return path


@pytest.fixture
def folder(tmp_path) -> Path:
    path = tmp_path / "folder"
    path.mkdir()
    return path


def test_a_file_is_replaced_whole_or_not_at_all(folder):
    path = folder / "run.json"
    write_bytes(path, b"one")
    with pytest.raises(ZeroDivisionError), replacing(path) as file:
        file.write(b"two" * (1 // 0))
    assert path.read_bytes() == b"one"
    assert [item.name for item in folder.iterdir()] == ["run.json"]


def test_a_link_is_replaced_and_what_it_points_to_is_left(folder, victim):
    (folder / "metrics.csv").symlink_to(victim)
    write_bytes(folder / "metrics.csv", b"step\n")
    assert not (folder / "metrics.csv").is_symlink()
    assert victim.read_bytes() == b"years of work"


def test_two_processes_of_one_number_write_to_different_files(folder):
    # As in two containers: here it is one process.
    with replacing(folder / "run.json") as one, replacing(folder / "run.json") as other:
        assert len({item.name for item in folder.iterdir()}) == 2
        one.write(b"one")
        other.write(b"other")
    assert (folder / "run.json").read_bytes() == b"one", "the outer block ends last"


def test_what_killed_writers_left_is_found_and_deleted_and_nothing_else(folder, victim):
    (folder / "below").mkdir()
    left = [partial_of(folder / "run.json"), partial_of(folder / "below" / "zarr.json"), folder / ".old.77.partial"]
    for path in left:
        path.write_bytes(b"half")
    (folder / ".link.partial").symlink_to(victim)
    (folder / "notes.partial").write_bytes(b"mine")
    remove_partials(folder)
    assert not any(path.exists() for path in left)
    assert (folder / "notes.partial").exists()
    assert victim.exists()


def test_an_error_names_the_file_that_was_to_be_written(folder):
    (folder / "run.json").mkdir()
    with pytest.raises(OSError, match=re.escape(str(folder / "run.json"))):
        write_bytes(folder / "run.json", b"one")
    with pytest.raises(FileNotFoundError, match=re.escape(str(folder / "missing"))):
        write_bytes(folder / "missing" / "run.json", b"one")


def test_a_file_is_made_once(folder, victim):
    create(folder / "ledger.sqlite", b"one")
    create(folder / "ledger.sqlite", b"two")
    assert (folder / "ledger.sqlite").read_bytes() == b"one"
    (folder / "link").symlink_to(victim)
    create(folder / "link", b"two")
    assert victim.read_bytes() == b"years of work"
    assert {item.name for item in folder.iterdir()} == {"ledger.sqlite", "link"}


def test_a_file_is_made_once_where_files_have_one_name_only(folder, victim, monkeypatch):
    def refuse(*_, **options):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    create(folder / "ledger.sqlite", b"one")
    create(folder / "ledger.sqlite", b"two")
    assert (folder / "ledger.sqlite").read_bytes() == b"one"
    (folder / "link").symlink_to(victim)
    create(folder / "link", b"two")
    assert victim.read_bytes() == b"years of work"
    assert {item.name for item in folder.iterdir()} == {"ledger.sqlite", "link"}


@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_WRONLY | os.O_CREAT, os.O_RDWR | os.O_CREAT])
@pytest.mark.parametrize("kind", ["link", "dangling", "pipe", "folder"])
def test_only_a_file_of_its_own_is_opened(folder, victim, flags, kind):
    path = folder / "build.lock"
    {
        "link": lambda: path.symlink_to(victim),
        "dangling": lambda: path.symlink_to(folder / "nowhere"),
        "pipe": lambda: os.mkfifo(path),
        "folder": path.mkdir,
    }[kind]()
    with pytest.raises(
        InvalidInput, match=r"build\.lock is no file of its own, but a link, a folder or a pipe; move it"
    ):
        open_own(path, flags)
    assert not (folder / "nowhere").exists()


def test_room_is_not_taken_through_a_link(folder, victim):
    (folder / "c.0").symlink_to(victim)
    with pytest.raises(InvalidInput, match="is no file of its own"):
        allocate(folder / "c.0", 1 << 16)
    assert victim.read_bytes() == b"years of work"


def test_only_a_file_or_a_folder_of_its_own_is_deleted(folder, victim):
    tree = folder / "data.zarr"
    tree.mkdir()
    (tree / "link").symlink_to(victim.parent)
    remove_own(tree)
    remove_own(tree)
    assert not tree.exists()
    tree.symlink_to(victim.parent)
    with pytest.raises(InvalidInput, match="is no file of its own"):
        remove_own(tree)
    assert victim.read_bytes() == b"years of work"
