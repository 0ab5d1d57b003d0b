"""Objects in a folder: files of their own, and nothing that leads elsewhere."""

from __future__ import annotations

import os

import pytest

from ground.documents import Malformed
from storage.object_folder import files_below, require_file


@pytest.fixture
def folder(tmp_path):
    """Two files below `root`, and one beside it."""
    for name in ("root/a/b", "root/c", "elsewhere/d"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    return tmp_path / "root"


def test_files_are_listed_by_name_and_size(folder):
    assert list(files_below(folder)) == [("a/b", 8), ("c", 6)]
    assert list(files_below(folder, "a")) == [("a/b", 8)]
    assert list(files_below(folder, "none")) == []
    assert list(files_below(folder, "c")) == []


def test_what_is_being_written_is_no_object_yet(folder):
    (folder / "a/b#1").touch()
    assert list(files_below(folder, "a")) == [("a/b", 8)]


def test_nothing_is_listed_through_a_link(folder):
    (folder / "a/loop").symlink_to("..")
    (folder / "a/gone").symlink_to("nowhere")
    (folder / "a/file").symlink_to("b")
    (folder / "out").symlink_to(folder.parent / "elsewhere")
    os.mkfifo(folder / "pipe")
    assert list(files_below(folder)) == [("a/b", 8), ("c", 6)]
    assert list(files_below(folder, "out")) == []


def test_a_link_a_pipe_and_what_is_below_a_link_are_no_files(folder):
    (folder / "file").symlink_to("c")
    (folder / "out").symlink_to(folder.parent / "elsewhere")
    os.mkfifo(folder / "pipe")
    for name in ("file", "out/d", "pipe", "pipe/x"):
        with pytest.raises(Malformed, match="no file of its own, but a link or a pipe"):
            require_file(folder, name)
    for name in ("a/b", "c", "none", "none/x", "c/x"):
        require_file(folder, name)
