"""Converting beside others: from a disk that cannot be written to, and after a conversion that was killed."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from ground.errors import InvalidInput, StoreBusy
from storage.locks import exclusive_lock
from storage.store_folder import BUILD_LOCK
from teacher_cache.convert import convert
from tests.running import COMMANDS, run_program
from tests.teacher_cache.damage import problems

MOUNTED = """
mount --bind {source} {place} && mount -o remount,bind,ro {place} || exit 77
{command} convert --store {place} --to hdf5 --out {out}
"""


def test_what_a_killed_conversion_left_is_replaced_by_the_next_to_the_same_place(tmp_path, built_store):
    out, partial = tmp_path / "out", tmp_path / ".out.convert.partial"
    killed = run_program("tests.teacher_cache.crash_convert", built_store, out)
    assert killed.returncode == -signal.SIGKILL
    assert (partial / "data.h5").is_file()
    assert not out.exists()
    (tmp_path / "theirs").mkdir()
    (partial / "link").symlink_to(tmp_path / "theirs")
    assert convert(built_store, "hdf5", out).cells == 96
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "theirs"]
    assert sorted(path.name for path in out.iterdir()) == ["build.lock", "data.h5", "ledger.sqlite", "manifest.json"]
    assert problems(out) == []


def test_of_two_conversions_to_one_place_the_second_waits_for_nobody_and_harms_nothing(tmp_path, built_store):
    partial = tmp_path / ".out.convert.partial"
    partial.mkdir()
    (partial / "half").touch()
    with (
        exclusive_lock(partial / BUILD_LOCK, ""),
        pytest.raises(StoreBusy, match="another conversion to .*out is at work: build.lock is held by"),
    ):
        convert(built_store, "hdf5", tmp_path / "out")
    assert (partial / "half").exists()


def test_a_link_in_place_of_the_folder_that_is_converted_into_is_refused(tmp_path, built_store):
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "thesis.tex").touch()
    (tmp_path / ".out.convert.partial").symlink_to(tmp_path / "theirs")
    with pytest.raises(InvalidInput, match="is no file of its own, but a link"):
        convert(built_store, "hdf5", tmp_path / "out")
    assert (tmp_path / "theirs" / "thesis.tex").exists()


@pytest.mark.parametrize("locks", [True, False])
def test_a_store_that_cannot_be_written_to_is_converted(tmp_path, built_store, monkeypatch, locks):
    source = shutil.copytree(built_store, tmp_path / "source")
    if not locks:
        (source / BUILD_LOCK).unlink()
    names, real_open, real_access = sorted(source.rglob("*")), os.open, os.access

    def refuse(path, flags, *rest, **options):
        if flags & (os.O_WRONLY | os.O_RDWR) and Path(os.fsdecode(path)).is_relative_to(source):
            raise OSError(30, "Read-only file system", str(path))
        return real_open(path, flags, *rest, **options)

    def denied(path, mode, **options):
        is_write = mode & os.W_OK and Path(path).is_relative_to(source)
        return not is_write and real_access(path, mode, **options)

    monkeypatch.setattr(os, "open", refuse)
    monkeypatch.setattr(os, "access", denied)
    assert convert(source, "hdf5", tmp_path / "out").cells == 96
    assert problems(tmp_path / "out") == []
    assert sorted(source.rglob("*")) == names


@pytest.mark.slow
def test_a_store_on_a_disk_that_is_mounted_read_only_is_converted(tmp_path, built_store):
    source, place, out = shutil.copytree(built_store, tmp_path / "source"), tmp_path / "place", tmp_path / "out"
    (source / BUILD_LOCK).unlink()
    place.mkdir()
    script = MOUNTED.format(source=source, place=place, out=out, command=COMMANDS / "ckd-cache")
    if shutil.which("unshare") is None:
        pytest.skip("there is no unshare, to mount something for one process")
    done = subprocess.run(["unshare", "-m", "sh", "-c", script], capture_output=True, text=True, check=False)
    if done.returncode == 77 or "unshare failed" in done.stderr:
        pytest.skip("who runs this may not mount anything")
    assert done.returncode == 0, done.stderr
    assert problems(out) == []
