"""Stores to damage, and ways to damage them."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np

from storage.ledger import Ledger
from storage.store import Store
from storage.store_folder import LEDGER_FILE
from storage.verify import store_problems
from teacher_cache.build import build
from teacher_cache.config import BuildConfig
from teacher_cache.prepare import prepare_build
from tests.running import run_program


def config_of(store: Path, weights: Path, array_format: str = "zarr", **changes) -> BuildConfig:
    settings = {"n": 70, "features": "layer1,pooled", "batch_size": 32, "dataset": "digits", "device": "cpu"}
    settings |= {"trust_teacher": True}  # it was never trained
    return BuildConfig(
        teacher="resnet8", weights=weights, array_format=array_format, store=store, **(settings | changes)
    )


def crashed_build(store: Path, weights: Path, kind: str, step: str) -> subprocess.CompletedProcess[str]:
    """A build, in a process of its own, that kills itself at a step of its second batch; see `crash_build`."""
    return run_program("tests.teacher_cache.crash_build", store, weights, kind, step)


def build_store(store: Path, weights: Path, array_format: str = "zarr", **changes) -> Path:
    build(*prepare_build(config_of(store, weights, array_format, **changes)))
    return store


def change(folder: Path, name: str, row: int) -> None:
    """Other values in one row of an array."""
    arrays = Store.open(folder).arrays
    values = arrays.read(name, row, row + 1)
    values.view(np.uint8).reshape(-1)[:] ^= 1
    arrays.write(name, row, values)
    arrays.sync()


def problems(folder: Path, url: str | None = None) -> list[str]:
    ledger = Ledger(folder / LEDGER_FILE if url is None else url)
    found = [str(problem) for problem in store_problems(Store.open(folder), ledger)]
    ledger.close()
    return found


def totals(folder: Path) -> tuple[int, int, int]:
    ledger = Ledger(folder / LEDGER_FILE)
    summary = ledger.summary()
    ledger.close()
    return summary.committed, summary.reserved, summary.lost


def arrays_of(folder: Path) -> dict[str, np.ndarray]:
    store = Store.open(folder)
    return {name: store.read(name) for name in store.arrays.specs}
