"""What all rooms' tests share: one core a worker, the installed commands, a small teacher and its store."""

from __future__ import annotations

import fcntl
import gc
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING
from unittest import mock
from uuid import uuid4

import numpy as np
import pytest
import torch
from hypothesis import settings

from tests.photographs import CLASSES, write_photographs
from tests.running import COMMANDS, run_command

if TYPE_CHECKING:
    from teacher_cache.datasets.base import ImageDataset

__all__ = ["COMMANDS", "run_command"]

# Test workers run side by side; several threads in each would only get in each other's way.
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)

# Ray reads it once in a process, and for good: who has the token is let into the tests' clusters, and nobody else.
os.environ |= {"RAY_AUTH_TOKEN": uuid4().hex * 2, "RAY_AUTH_MODE": "token"}

# How long a case takes says nothing on a shared machine.
settings.register_profile("shared machine", deadline=None, max_examples=50)
settings.load_profile("shared machine")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Have the garbage collector pass over what collecting makes: a million objects, which stay."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the demonstration, which takes longest: as the last one it would leave the other workers idle."""
    items.sort(key=lambda item: item.path.name != "test_pipeline.py")


@pytest.fixture(scope="session", autouse=True)
def witness_outside_home(tmp_path_factory) -> Iterator[None]:
    """What tests make of ledgers is witnessed in a folder of theirs, by the processes that they start as well."""
    with mock.patch.dict(os.environ, CKD_WITNESS=str(tmp_path_factory.mktemp("witness"))):
        yield


@pytest.fixture(scope="session", autouse=True)
def cache_outside_home(tmp_path_factory) -> Iterator[None]:
    """What is kept of images, likewise."""
    with mock.patch.dict(os.environ, CKD_CACHE=str(tmp_path_factory.mktemp("cache"))):
        yield


@pytest.fixture(autouse=True)
def witness_of_this_test(witness_outside_home, tmp_path_factory) -> Iterator[Path]:
    """Tests copy what others have built, and grow the copies: each has a witness of its own, or all were forks."""
    folder = tmp_path_factory.getbasetemp() / f"witness-{uuid4().hex}"
    with mock.patch.dict(os.environ, CKD_WITNESS=str(folder)):
        yield folder


@pytest.fixture(scope="session")
def made_once(tmp_path_factory) -> Callable[[str, Callable[[Path], None]], Path]:
    """A folder by its name, that the first test worker to ask for it fills; treat it as read-only."""
    own = tmp_path_factory.getbasetemp()
    shared = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own

    def folder_of(name: str, fill: Callable[[Path], None]) -> Path:
        folder, filled = shared / name, shared / f"{name}.filled"
        with (shared / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not filled.exists():
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                fill(folder)
                filled.touch()
        return folder

    return folder_of


@pytest.fixture(scope="session")
def weights(made_once) -> Path:
    """A teacher for the digits that was never trained: what it says does not matter here."""
    from models import create_model, save_weights
    from models.trained_on import TrainedOn
    from teacher_cache.datasets import open_dataset

    def fill(folder: Path) -> None:
        digits = open_dataset("digits")
        said = TrainedOn.of(
            "resnet8",
            dataset=digits.name,
            dataset_digest=digits.digest,
            classes=digits.classes,
            rendering=digits.rendering,
        )
        network = create_model("resnet8", num_classes=10, seed=0)
        save_weights(network, folder / "resnet8.safetensors", said.metadata())

    return made_once("teacher", fill) / "resnet8.safetensors"


@pytest.fixture(scope="session")
def stores(made_once, weights) -> dict[str, Path]:
    """A whole store of 96 rows with all features in each format; treat them as read-only."""
    return stores_in(made_once("stores", lambda folder: build_stores(folder, weights)))


@pytest.fixture(scope="session")
def few_tested() -> ImageDataset:
    """The digits with 60 of their 360 test images, for stores that students are trained from again and again: each is
    measured on all test images of its store, which takes as long as a short training.
    """
    from teacher_cache.datasets import open_dataset
    from teacher_cache.datasets.base import ArraySplit

    digits = open_dataset("digits")
    return replace(digits, test=ArraySplit(digits.test.read(np.arange(60)), digits.test.labels[:60]))


def build_stores(folder: Path, weights: Path, dataset: ImageDataset | None = None) -> None:
    """Make what `stores` says; of other images than all digits, where they are given."""
    from teacher_cache.build import build
    from teacher_cache.config import BuildConfig
    from teacher_cache.prepare import prepare_build

    for array_format, store in stores_in(folder).items():
        config = BuildConfig(
            teacher="resnet8",
            weights=weights,
            array_format=array_format,
            store=store,
            device="cpu",
            dataset="digits",
            n=96,
            features="all",
            trust_teacher=True,
        )
        build(*prepare_build(config, dataset))


def stores_in(folder: Path) -> dict[str, Path]:
    return {array_format: folder / array_format for array_format in ("zarr", "hdf5")}


@pytest.fixture(scope="session")
def built_store(stores) -> Path:
    return stores["zarr"]


@pytest.fixture(scope="session")
def second_store(made_once) -> Path:
    """The first 40 rows of `built_store`, answered by another teacher, logits alone; treat it as read-only."""
    from models import create_model, save_weights
    from teacher_cache.build import build
    from teacher_cache.config import BuildConfig
    from teacher_cache.prepare import prepare_build

    def fill(folder: Path) -> None:
        save_weights(create_model("resnet8", num_classes=10, seed=1), folder / "weights.safetensors", {})
        config = BuildConfig(
            teacher="resnet8",
            weights=folder / "weights.safetensors",
            store=folder / "store",
            device="cpu",
            dataset="digits",
            n=40,
            trust_teacher=True,
        )
        build(*prepare_build(config))

    return made_once("second-teacher", fill) / "store"


@pytest.fixture(scope="session", params=("zarr", "hdf5"))
def store_of_each_format(request, stores) -> Path:
    return stores[request.param]


@pytest.fixture(scope="session")
def photographs(made_once) -> Path:
    """An image folder; see `tests.photographs`."""
    return made_once("photographs", write_photographs)


@pytest.fixture(scope="session")
def timm_weights(made_once) -> Path:
    """Of an untrained timm:mobilenetv3_small_050 for the photographs' classes."""
    from models import create_model, save_weights

    def fill(folder: Path) -> None:
        network = create_model("timm:mobilenetv3_small_050", len(CLASSES), seed=0, image_size=64)
        save_weights(network, folder / "weights.safetensors", {})

    return made_once("timm-teacher", fill) / "weights.safetensors"


@pytest.fixture(scope="session")
def postgres():
    """A PostgreSQL server; without its binaries the test is skipped, or fails where `CKD_REQUIRE_POSTGRES` is 1."""
    from benchmarks.stand_ins.postgres import PostgresServer, postgres_binaries

    binaries = postgres_binaries()
    if binaries is None:
        if os.environ.get("CKD_REQUIRE_POSTGRES") == "1":
            pytest.fail("CKD_REQUIRE_POSTGRES is 1, and there is no PostgreSQL server on this machine")
        pytest.skip("there is no PostgreSQL server on this machine")
    server = PostgresServer(binaries)
    try:
        server.start()
        yield server
    finally:
        server.close()


@pytest.fixture(scope="session")
def moto_port() -> Iterator[int]:
    """Of moto's S3 server; where it cannot be installed the test is skipped, or fails where `CKD_REQUIRE_MOTO` is 1."""
    from benchmarks.stand_ins.moto import moto_program, moto_server

    try:
        program = moto_program()
    except (subprocess.SubprocessError, OSError) as error:
        if os.environ.get("CKD_REQUIRE_MOTO") == "1":
            raise
        pytest.skip(f"moto's server cannot be installed here ({type(error).__name__})")
    with moto_server(program) as port:
        yield port


@pytest.fixture(scope="module")
def ray_address() -> Iterator[str]:
    """A Ray cluster on this machine, which is never idle and so ends with its module's tests; without Ray the test is
    skipped, or fails where `CKD_REQUIRE_RAY` is 1.
    """
    from tests.ray_cluster import started

    if find_spec("ray") is None:
        if os.environ.get("CKD_REQUIRE_RAY") == "1":
            pytest.fail("CKD_REQUIRE_RAY is 1, and Ray is not installed")
        pytest.skip("Ray is not installed")
    with started(cpus=2) as address:
        yield address


@pytest.fixture(params=("sqlite", "postgresql"))
def ledger_url(request, tmp_path) -> str:
    """Where a ledger can be made, in a database of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'shared.sqlite'}"
    return request.getfixturevalue("postgres").new_database()
