"""An HDF5 file that another program has open, or was killed over, is not damaged, and is not said to be."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
import pytest

from ground.errors import StoreBusy, StoreUnreadable
from storage.hdf5_mark import clear_mark, is_marked
from storage.store import Store
from tests.conftest import run_command

VIEWER = """
import h5py, sys, time
path, how = sys.argv[1:]
file = h5py.File(path, "r+", locking=how != "unlocked", libver="latest")
if how == "swmr":
    file.swmr_mode = True
elif how == "notes":
    file.create_dataset("notes", data=[1, 2, 3])
    file.flush()
print("open", flush=True)
time.sleep(600)
"""


@pytest.fixture
def folder(tmp_path, stores) -> Path:
    return shutil.copytree(stores["hdf5"], tmp_path / "store")


@contextmanager
def viewer(folder: Path, how: str) -> Iterator[int]:
    """A program that has a store's arrays open for writing until the block ends, when it is killed."""
    command = [sys.executable, "-c", VIEWER, folder / "data.h5", how]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "open\n"
            yield process.pid
        finally:
            process.kill()


@pytest.mark.parametrize(("how", "word"), [("locked", "locked by"), ("swmr", "open in"), ("unlocked", "open in")])
def test_a_store_that_a_viewer_has_open_is_busy_and_kept(folder, how, word):
    before = (folder / "data.h5").read_bytes()[48:]
    with viewer(folder, how) as pid:
        commands = {
            "ckd-cache": (["info"], ["verify"], ["repair"], ["repair", "--yes"]),
            "ckd-train": (["--method", "kd", "--student", "resnet8", "--out", folder.parent / "run"],),
        }
        for command, uses in commands.items():
            for use in uses:
                result = run_command(command, *use, "--store", folder)
                assert result.returncode == 2, result.stderr
                assert f"data.h5 is {word} process {pid} (python" in result.stderr
                assert "close it there: nothing is wrong with it" in result.stderr
                assert "whole HDF5" not in result.stdout + result.stderr
    assert (folder / "data.h5").read_bytes()[48:] == before


@pytest.mark.parametrize("how", ["locked", "swmr", "notes"])
def test_a_store_that_a_viewer_was_killed_over_is_put_right_without_a_call(folder, how):
    with viewer(folder, how):
        pass
    result = run_command("ckd-cache", "info", "--store", folder)
    assert result.returncode == 2
    assert "is marked as open for writing by a program that ended without closing it" in result.stderr
    assert f"with: ckd-cache repair --store {folder}" in result.stderr
    shown = run_command("ckd-cache", "repair", "--store", folder)
    assert (shown.returncode, is_marked(folder / "data.h5")) == (1, True)
    assert "take the mark of a program that did not close them from: data.h5" in shown.stdout
    done = json.loads(run_command("ckd-cache", "repair", "--store", folder, "--yes", "--json").stdout)
    assert (done["left_open"], done["revoked"], done["left"]) == (["data.h5"], [], [])
    assert run_command("ckd-cache", "verify", "--store", folder).returncode == 0
    assert run_command("ckd-cache", "repair", "--store", folder).stdout == f"{folder}: nothing to repair\n"


def test_a_reader_holds_up_nobody_who_reads(folder):
    with h5py.File(folder / "data.h5", "r"):
        assert Store.open(folder).valid().all()
        assert not is_marked(folder / "data.h5")


def test_a_file_that_is_open_keeps_its_mark(folder):
    with viewer(folder, "unlocked"), pytest.raises(StoreBusy, match="is open in process"):
        clear_mark(folder / "data.h5")
    assert is_marked(folder / "data.h5")


def test_a_damaged_superblock_is_damage_and_no_mark(folder):
    path = folder / "data.h5"
    content = bytearray(path.read_bytes())
    content[11] = 1  # the mark, without the checksum that goes with it
    path.write_bytes(content)
    assert not is_marked(path)
    with pytest.raises(StoreUnreadable, match="is not a whole HDF5 file"):
        Store.open(folder)
