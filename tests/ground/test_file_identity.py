"""A file stays the same under whatever is done to it, and a copy is another one, whatever made it."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ground.file_identity import identify


@pytest.fixture
def file(tmp_path) -> Path:
    path = tmp_path / "folder" / "build.lock"
    path.parent.mkdir()
    path.touch()
    return path


def test_what_is_done_to_a_file_or_its_folder_leaves_it_the_same(file, tmp_path):
    before = identify(file)
    file.chmod(0o600)
    file.write_bytes(b"longer")
    os.utime(file, (1, 1))
    file.parent.rename(tmp_path / "renamed")
    os.link(tmp_path / "renamed" / file.name, tmp_path / "second name")
    assert identify(tmp_path / "renamed" / file.name) == identify(tmp_path / "second name") == before


def test_a_copy_is_another_file(file, tmp_path):
    subprocess.run(["cp", "-a", file.parent, tmp_path / "copy"], check=True)
    found = tmp_path / "copy" / file.name
    assert found.stat().st_mtime_ns // 1000 == file.stat().st_mtime_ns // 1000
    assert (identify(found).inode, identify(found).born) != (identify(file).inode, identify(file).born)


def test_a_file_in_a_number_that_was_used_before_was_born_later(file):
    before = identify(file)
    if not before.born:
        pytest.skip("this file system does not say when a file was made")
    file.unlink()
    file.touch()
    assert int(identify(file).born) > int(before.born)


def test_copies_on_new_disks_with_the_same_numbers_are_told_apart_by_their_birth(file, tmp_path):
    """Two containers, each with an empty file system at the same path into which the same folder is put."""
    (tmp_path / "disk").mkdir()
    script = 'mount -t tmpfs none "$1" && cp -a "$2" "$1/folder" && exec "$3" -c "$4" "$1/folder/$5"'
    show = "import sys, pathlib; from ground.file_identity import identify; print(identify(pathlib.Path(sys.argv[1])))"
    words = [script, "sh", tmp_path / "disk", file.parent, sys.executable, show, file.name]
    container = ["unshare", "--map-root-user", "--mount", "sh", "-c"]
    if shutil.which("unshare") is None or subprocess.run([*container, "mount -t tmpfs none /mnt"]).returncode:
        pytest.skip("file systems of one's own cannot be made here")
    found = [subprocess.run([*container, *words], capture_output=True, text=True, check=True) for _ in range(2)]
    one, other = (re.fullmatch(r"(.* inode=\d+), (.*)\n", each.stdout) for each in found)
    assert one[1] == other[1], "the case that is meant"
    assert one[2] != other[2]


def test_where_the_system_does_not_say_when_a_file_was_made_its_number_is_known(file, monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())
    found = identify(file)
    assert (found.device, found.inode, found.born) == (file.stat().st_dev, file.stat().st_ino, "")


def test_a_link_is_not_followed(file, tmp_path):
    (tmp_path / "link").symlink_to(file)
    assert identify(tmp_path / "link") != identify(file)
    with pytest.raises(FileNotFoundError):
        identify(tmp_path / "nothing")
