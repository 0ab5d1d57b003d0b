"""A store's folder is known from wherever it is seen, and a copy under the same path is another one."""

from __future__ import annotations

import subprocess

import pytest

from storage.locks import FileLock
from storage.store_folder import BUILD_LOCK
from teacher_cache import place
from teacher_cache.place import Place


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "store").mkdir()
    with FileLock(tmp_path / "store" / BUILD_LOCK):
        pass
    return tmp_path / "store"


@pytest.fixture
def another_machine(tmp_path, monkeypatch):
    """Makes this one another machine."""

    def become(name: str) -> None:
        (tmp_path / "boot_id").write_text(f"{name}\n")
        monkeypatch.setattr(place, "BOOT_ID", tmp_path / "boot_id")

    return become


def test_a_folder_that_was_moved_is_the_same_place(folder, tmp_path):
    before = Place.of(folder)
    folder.rename(tmp_path / "moved")
    (tmp_path / "link").symlink_to(tmp_path / "moved")
    for path in (tmp_path / "moved", tmp_path / "link"):
        assert Place.of(path) == before
        assert before.shares_locks(Place.of(path))
        assert before.is_same_folder(Place.of(path))


def test_a_copy_under_the_same_path_is_another_place(folder, tmp_path):
    before = Place.of(folder)
    subprocess.run(["cp", "-a", folder, tmp_path / "copy"], check=True)
    folder.rename(tmp_path / "original")
    (tmp_path / "copy").rename(folder)
    assert not Place.of(folder).is_same_folder(before)
    assert not Place.of(folder).shares_locks(before)


def test_a_folder_that_two_machines_share_is_one_folder_and_two_places(folder, another_machine):
    another_machine("first")
    before = Place.of(folder)
    another_machine("second")
    assert Place.of(folder).is_same_folder(before)
    assert not Place.of(folder).shares_locks(before), "its locks may be known to one of them alone"


def test_a_file_system_of_its_own_in_which_files_have_the_same_numbers_is_another_place(folder):
    """As in two containers on one machine, each with an empty disk into which the same files were put."""
    here = Place.of(folder)
    assert not here.shares_locks(Place(here.boot, f"{here.device}1", here.lock))


def test_a_place_is_read_from_its_text(folder):
    assert Place.parse(Place.of(folder).text) == Place.of(folder)


@pytest.mark.parametrize("text", ["", "1f0c7f64-0b5c-4f3c-8f0e-5d1d0f0a8f11", "a-host", "boot  ", "one two three four"])
def test_texts_of_other_releases_and_of_nobody_are_no_place_that_is_here(folder, text):
    there = Place.parse(text)
    assert not Place.of(folder).shares_locks(there)
    assert not Place.of(folder).is_same_folder(there)
    assert not there.shares_locks(there) or text.startswith("one")


def test_a_folder_where_nobody_ever_built_is_no_place(tmp_path):
    nowhere = Place.of(tmp_path)
    assert not nowhere.shares_locks(nowhere)
    assert not nowhere.is_same_folder(nowhere)
