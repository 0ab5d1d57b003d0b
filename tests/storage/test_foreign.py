"""What is no store, or no part of one, is said to be what it is."""

from __future__ import annotations

import os
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import h5py
import numpy as np
import pytest
import zarr

from storage.foreign import some, what_it_is
from tests.conftest import run_command


def hdf5_of_another_program(path: Path) -> None:
    with h5py.File(path, "x") as file:
        file["spectra/raw"] = [1, 2]


def sqlite_of_another_program(path: Path) -> None:
    with closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE bookmarks (url)")


def zarr_of_another_program(path: Path) -> None:
    zarr.save_array(path / "temperature", np.zeros(3))
    zarr.open_group(path, mode="a")


def images(path: Path) -> None:
    (path / "cat").mkdir(parents=True)
    (path / "cat" / "1.PNG").write_bytes(b"x")


def run_folder(path: Path) -> None:
    path.mkdir()
    (path / "run.json").write_text("{}")


PLACES = {
    "hdf5": (hdf5_of_another_program, "(no manifest.json): it is an HDF5 file; give the folder of a store"),
    "sqlite": (sqlite_of_another_program, "it is an SQLite database; give the folder of a store"),
    "zarr": (zarr_of_another_program, "it is a Zarr folder; give the folder of a store"),
    "images": (images, "it is a folder of images; give the folder of a store"),
    "run": (run_folder, "it is the folder of a training run; give the folder of a store"),
    "text": (lambda path: path.write_text("hello"), "it is a file of another kind; give the folder of a store"),
    "pipe": (os.mkfifo, "it is a pipe, a socket or a device; give the folder of a store"),
    "nothing": (lambda path: None, "(no manifest.json); build one with: ckd-cache build"),
    "empty": (lambda path: path.mkdir(), "(no manifest.json); build one with: ckd-cache build"),
}


@pytest.mark.parametrize("kind", PLACES)
def test_what_a_store_option_points_to_is_named(tmp_path, kind):
    make, said = PLACES[kind]
    make(tmp_path / "place")
    for command in ("info", "verify", "repair"):
        result = run_command("ckd-cache", command, "--store", tmp_path / "place")
        assert result.returncode == 2, result.stderr
        assert said in result.stderr
    result = run_command("ckd-train", "--store", tmp_path / "place", "--method", "kd", "--out", tmp_path / "run")
    assert (result.returncode, said in result.stderr) == (2, True), result.stderr


def test_a_part_of_a_store_and_a_folder_of_stores_lead_to_the_store(stores):
    folder = stores["zarr"]
    for part in ("data.zarr", "ledger.sqlite"):
        result = run_command("ckd-cache", "info", "--store", folder / part)
        assert f"it is a part of the store at {folder}; give that folder" in result.stderr
    result = run_command("ckd-cache", "info", "--store", folder.parent)
    assert "but in folders below it (hdf5, zarr); give one of those" in result.stderr


ARRAYS = {
    "hdf5 of another program": (
        "hdf5",
        hdf5_of_another_program,
        "is of another program: it holds spectra, and none of",
    ),
    "zarr of another program": (
        "zarr",
        zarr_of_another_program,
        "is of another program: it holds temperature, and none of",
    ),
    "sqlite as hdf5": ("hdf5", sqlite_of_another_program, "is no HDF5 file, but an SQLite database; bring the store's"),
    "empty hdf5": ("hdf5", lambda path: path.touch(), "is no HDF5 file, but an empty file; bring the store's own back"),
    "hdf5 as zarr": ("zarr", hdf5_of_another_program, "is not a Zarr folder, but an HDF5 file; bring it back"),
    "images as zarr": ("zarr", images, "is not a Zarr folder, but a folder of images; bring it back"),
}


@pytest.mark.parametrize("kind", ARRAYS)
def test_what_stands_in_the_place_of_a_stores_arrays_is_named(tmp_path, stores, kind):
    array_format, make, said = ARRAYS[kind]
    folder = shutil.copytree(stores[array_format], tmp_path / "store")
    (arrays,) = folder.glob("data.*")
    shutil.rmtree(arrays) if arrays.is_dir() else arrays.unlink()
    make(arrays)
    for command, code in {"info": 2, "verify": 1, "repair": 2}.items():
        result = run_command("ckd-cache", command, "--store", folder)
        assert result.returncode == code, result.stderr
        assert f"{arrays} {said}" in result.stdout + result.stderr
    result = run_command("ckd-train", "--store", folder, "--method", "kd", "--out", tmp_path / "run")
    assert (result.returncode, f"{arrays} {said}" in result.stderr) == (2, True), result.stderr


def test_names_of_others_are_shown_as_text_and_not_all(tmp_path):
    assert some(["a", "b\x1b[2J"]) == "a, 'b\\x1b[2J'"
    assert some("abcd") == "a, b, c, ..."
    (tmp_path / "link").symlink_to(tmp_path)
    assert what_it_is(tmp_path / "link") == "a link"
    assert what_it_is(tmp_path) == "a folder that holds link"
