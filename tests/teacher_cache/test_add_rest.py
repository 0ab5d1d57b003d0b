"""Images that are added to a store that exists: those that it would have been built with, and no call."""

from __future__ import annotations

import json
import shutil
import signal
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from ground.errors import (
    DatasetMissing,
    DiskFull,
    IdentityMismatch,
    InvalidInput,
    RolledBack,
    StoreBusy,
    StoreUnreadable,
)
from ground.places import ObjectUrl
from storage.ledger import Ledger
from storage.locks import exclusive_lock
from storage.store import Store
from storage.store_folder import BUILD_LOCK, LEDGER_FILE
from teacher_cache import add_rest as module
from teacher_cache.add_rest import ImageOptions, add_rest
from teacher_cache.build import build
from teacher_cache.config import BuildConfig, CallConfig
from teacher_cache.datasets import ImageDataset, open_dataset
from teacher_cache.prepare import prepare_build
from teacher_cache.publish import publish
from teacher_cache.rest import Rest
from tests.conftest import run_command
from tests.photographs import CLASSES
from tests.running import run_program
from tests.teacher_cache.crash_rest import config
from tests.teacher_cache.damage import change, problems, totals
from tests.teacher_cache.test_rest import assert_same_arrays

FORMATS = ("zarr", "hdf5")


def add(store: Path, count: int | None, where: ImageOptions | None = None, *, act: bool = True):
    return add_rest(CallConfig(store=store), Rest(count), where or ImageOptions(), act=act)


@pytest.fixture(scope="module")
def bare(made_once, weights) -> dict[str, Path]:
    """A store of 40 rows and no more, in each format; treat them as read-only."""

    def fill(folder: Path) -> None:
        for array_format in FORMATS:
            build(*prepare_build(config(folder / array_format, weights, array_format, 40, 0)))

    folder = made_once("stores-without-a-rest", fill)
    return {name: folder / name for name in FORMATS}


@pytest.fixture(params=FORMATS)
def store(request, bare, tmp_path) -> Path:
    """One of them, to change."""
    return Path(shutil.copytree(bare[request.param], tmp_path / "store"))


def test_a_store_with_images_added_is_what_it_would_be_if_built_with_them(store, weights, tmp_path, forwards):
    array_format = Store.open(store).manifest.array_format
    assert (add(store, 25).added, add(store, 100).added, add(store, 60).added) == (25, 75, 0)
    assert forwards == []
    assert totals(store) == (40, 0, 0)
    build(*prepare_build(config(tmp_path / "at-once", weights, array_format, 40, 100)))
    assert_same_arrays(store, tmp_path / "at-once")
    assert problems(store) == []
    with closing(Ledger(store / LEDGER_FILE)) as ledger:
        record = ledger.store_record(Store.open(store).manifest.store_id)
    assert record is not None
    assert (record["made_by"], record["unasked"]) == ("extend", 100)


def test_looking_writes_nothing(store):
    before = {path: path.read_bytes() for path in store.rglob("*") if path.is_file()}
    report = add(store, None, act=False)
    assert (report.n, report.rest, report.added, report.new_calls) == (40, 1110, 1110, 0)
    assert {path: path.read_bytes() for path in store.rglob("*") if path.is_file()} == before


def test_images_are_added_to_a_store_that_is_not_whole(store):
    opened = Store.open(store)
    opened.retract([7])
    assert add(store, 5).rest == 5
    assert Store.open(store).missing_cells().tolist() == [7]


def test_more_than_the_pool_has_is_refused(store):
    with pytest.raises(InvalidInput, match="--rest 1111 is more than the 1110 images that are left beside --n 40"):
        add(store, 1111)
    assert Store.open(store).manifest.rest == 0


@pytest.mark.parametrize(
    "name", ["cifar100", "cifar10", "stanford_cars", "imagefolder:{photographs}", "csv:{photographs}/none.csv"]
)
def test_another_data_set_is_named_as_such_before_it_is_looked_for(store, photographs, monkeypatch, name):
    monkeypatch.setattr(module, "open_dataset", None)
    asked = name.format(photographs=photographs)
    with pytest.raises(IdentityMismatch) as refused:
        add(store, 5, ImageOptions(dataset=asked, data_root=photographs))
    assert f"is of the data set digits, and --dataset {asked} is not the one" in str(refused.value)
    assert f"dataset.name (store: digits, asked: {asked})" in str(refused.value)
    assert Store.open(store).manifest.rest == 0


def test_images_that_were_changed_are_refused_by_their_digest(store, monkeypatch):
    digits = open_dataset("digits")
    changed = replace(digits, train=digits.test)
    monkeypatch.setattr(module, "open_dataset", lambda *_, **__: changed)
    said = rf"dataset\.digest \(store: {digits.digest[:12]}, found: {changed.digest[:12]}\)"
    with pytest.raises(IdentityMismatch, match=said):
        add(store, 5)


@pytest.fixture
def of_photographs(photographs, timm_weights, tmp_path) -> Path:
    """A store of four photographs of a folder."""
    settings = {"weights": timm_weights, "dataset": f"imagefolder:{photographs}", "device": "cpu"}
    config = BuildConfig(teacher="timm:mobilenetv3_small_050", store=tmp_path / "store", image_size=72, n=4, **settings)
    build(*prepare_build(config))
    return tmp_path / "store"


def test_a_folder_of_other_images_is_refused_by_what_differs_first(of_photographs, photographs, tmp_path, monkeypatch):
    own = f"is of the data set imagefolder:{photographs.name}"
    with pytest.raises(IdentityMismatch, match=rf"{own}.*dataset\.name \(store: .*, asked: cifar100\)"):
        add(of_photographs, 5, ImageOptions(dataset="cifar100"))
    nowhere = f"imagefolder:{tmp_path / 'nowhere'}"
    with pytest.raises(IdentityMismatch, match=rf"{own}.*dataset\.name.*where nothing is.*is not a folder"):
        add(of_photographs, 5, ImageOptions(dataset=nowhere))
    # Where it is called as the store has it, no more is known than that it is not there.
    with pytest.raises(DatasetMissing):
        add(of_photographs, 5, ImageOptions(dataset=f"{nowhere}/{photographs.name}"))
    # Its classes are known before a file is read.
    shutil.copytree(photographs, tmp_path / "other")
    for split in ("train", "test"):
        (tmp_path / "other" / split / CLASSES[0]).rename(tmp_path / "other" / split / "aa")
    monkeypatch.setattr(ImageDataset, "digest", property(lambda _: pytest.fail("files were read")))
    with pytest.raises(
        IdentityMismatch, match=rf"{own}.*dataset\.classes \(store: 3, {CLASSES[0]} first, found: 3, aa"
    ):
        add(of_photographs, 5, ImageOptions(dataset=f"imagefolder:{tmp_path / 'other'}"))


def test_a_folder_that_was_renamed_is_taken(of_photographs, photographs, tmp_path):
    shutil.copytree(photographs, tmp_path / "renamed")
    where = ImageOptions(dataset=f"imagefolder:{tmp_path / 'renamed'}")
    assert add(of_photographs, 2, where).added == 2


def test_a_store_in_use_is_left_alone(store):
    with exclusive_lock(store / BUILD_LOCK, "busy"), pytest.raises(StoreBusy):
        add(store, 5)


def test_a_disk_without_room_is_found_before_anything_is_written(store, monkeypatch):
    before = {path: path.read_bytes() for path in store.rglob("*") if path.is_file()}
    monkeypatch.setattr(module, "free_bytes", lambda place: 1000)
    with pytest.raises(DiskFull, match="100 more images need .* MB"):
        add(store, 100)
    assert {path: path.read_bytes() for path in store.rglob("*") if path.is_file()} == before


def test_indices_that_were_changed_are_not_built_upon(store):
    change(store, "train/source_index", 3)
    with pytest.raises(StoreUnreadable, match="train/source_index"):
        add(store, 5)


def test_a_published_store_is_refused(store, tmp_path):
    if Store.open(store).manifest.array_format == "hdf5":
        pytest.skip("an HDF5 file stays on a local disk")
    url = ObjectUrl("file", "", str(tmp_path / "published").lstrip("/"))
    publish(store, url)
    with pytest.raises(InvalidInput, match="object storage"):
        add_rest(CallConfig(store=url), Rest(5), ImageOptions())


def test_images_of_the_users_own_are_found_where_he_says(photographs, weights, tmp_path):
    options = ("--weights", weights, "--device", "cpu", "--trust-teacher", "--features-only", "--features", "pooled")
    where = ("--dataset", f"imagefolder:{photographs}", "--image-size", 32)
    made = run_command(
        "ckd-cache", "build", "--teacher", "resnet8", *where, "--n", 6, "--store", tmp_path / "store", *options
    )
    assert made.returncode == 0, made.stderr
    extend = ("ckd-cache", "extend", "--store", tmp_path / "store", "--rest")
    refused = run_command(*extend, 5)
    assert refused.returncode == 2
    assert "only you can say where that lies: say it, with --dataset imagefolder:PATH" in refused.stderr
    added = json.loads(run_command(*extend, 5, "--dataset", f"imagefolder:{photographs}", "--json").stdout)
    assert (added["n"], added["rest"], added["added"], added["new_calls"]) == (6, 5, 5, 0)
    again = run_command(
        "ckd-cache", "build", "--teacher", "resnet8", *where, "--n", 6, "--rest", 5, "--store", tmp_path / "at-once",
        *options,
    )  # fmt: skip
    assert again.returncode == 0, again.stderr
    assert_same_arrays(tmp_path / "store", tmp_path / "at-once")


@pytest.fixture(scope="module")
def at_once(made_once, weights) -> dict[str, Path]:
    """A store that was built with 40 rows and 50 images besides, in each format; treat them as read-only."""

    def fill(folder: Path) -> None:
        for array_format in FORMATS:
            build(*prepare_build(config(folder / array_format, weights, array_format, 40, 50)))

    folder = made_once("stores-with-added-images", fill)
    return {name: folder / name for name in FORMATS}


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("step", ["grow", "write", "sync", "save", "record"])
def test_images_whose_adding_was_killed_are_added_by_the_same_command(weights, at_once, tmp_path, kind, step):
    folder = tmp_path / "store"
    build(*prepare_build(config(folder, weights, kind, 40, 30)))
    killed = run_program("tests.teacher_cache.crash_rest", folder, weights, f"{kind} extend", step)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert Store.open(folder).manifest.rest == (50 if step == "record" else 30)
    assert add(folder, 50).rest == 50
    assert_same_arrays(folder, at_once[kind])
    assert problems(folder) == []
    assert totals(folder) == (40, 0, 0)


def test_options_of_a_division_are_those_of_the_users_own_images(store):
    with pytest.raises(InvalidInput, match="digits has its own splits; leave out --split"):
        add(store, 5, ImageOptions(split="0.8/0.2"))


def test_a_copy_is_not_added_to(store, tmp_path):
    shutil.copytree(store, tmp_path / "copy")
    add(store, 5)
    with pytest.raises(RolledBack):
        add(tmp_path / "copy", 5)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ((), "Give either '--features', which calls the teacher, or '--rest', which does not."),
        (("--rest", 5, "--features", "pooled"), "Give either '--features'"),
        (("--rest", 5, "--weights", "w"), "--weights is for --features, and --rest is asked for; leave it out"),
        (("--features", "pooled", "--dataset", "digits"), "--dataset is for --rest, and --features is asked for"),
        (("--rest", "-1"), "--rest is '-1'"),
    ],
)
def test_options_that_mean_nothing_together_are_refused(stores, options, sentence):
    refused = run_command("ckd-cache", "extend", "--store", stores["zarr"], *options)
    assert refused.returncode == 2
    assert sentence in refused.stderr


def test_the_command_says_what_it_added(store):
    looked = run_command("ckd-cache", "extend", "--store", store, "--rest", 7, "--dry-run").stdout
    assert looked.endswith(
        "would keep 7 images beside the 40 rows that are asked about, 7 of them new; no teacher call; nothing was "
        "written\n"
    )
    said = run_command("ckd-cache", "extend", "--store", store, "--rest", 7).stdout
    assert said.endswith("keeps 7 images beside the 40 rows that are asked about, 7 of them new; no teacher call\n")
