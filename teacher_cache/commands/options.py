"""Options that several commands share, so that they read and mean the same everywhere."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from ground.options import device_option, precision_option
from models.names import PRECISIONS
from storage.manifest import FILE_NAME, Manifest

_Command = TypeVar("_Command", bound=Callable[..., Any])

store_option = click.option("--store", type=click.Path(path_type=Path), required=True, help="Folder of the store.")
ledger_option = click.option(
    "--ledger",
    "url",
    help="URL of the shared ledger the store was built with.  [default: $CKD_LEDGER, or the store's own]",
)
accept_rollback_option = click.option(
    "--accept-rollback",
    is_flag=True,
    help="Go on with a ledger that is older than its witness, or a fork of it; the ledger records that.",
)
_DATASET = click.option(
    "--dataset",
    default="cifar100",
    show_default=True,
    help="cifar10, cifar100, stanford_cars, digits, imagefolder:PATH, csv:FILE, parquet:FOLDER or tar:FOLDER.",
)
_DATA_ROOT = click.option(
    "--data-root",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where named data sets lie.  [default: $CKD_DATA or ./data]",
)
_IMAGE_SIZE = click.option(
    "--image-size", type=click.IntRange(8, 1024), help="Pixels; for your own images.  [default: 32]"
)
_SPLIT = click.option("--split", help="Shares of training and test images without splits, as 0.8/0.2, in each class.")
_SPLIT_SEED = click.option(
    "--split-seed", type=click.IntRange(0, 2**40), default=0, show_default=True, help="Which images those are."
)
_DOWNLOAD = click.option("--download", is_flag=True, help="Fetch CIFAR if it is not there.")
FEATURES_HELP = (
    "names with commas between, of all (stem, layers and pooled), stem, layer1, ..., pooled, and what all leaves out: "
    "layer1.pre, ... (before the last ReLU), last (the map that is pooled)"
)


def ledger_url_of(store: Path, given: str | None) -> str | None:
    """The ledger to use for a store: the one given, or $CKD_LEDGER if the store is new or shares one."""
    if given is not None:
        return given
    is_own = (store / FILE_NAME).exists() and Manifest.load(store).ledger is None
    return None if is_own else os.environ.get("CKD_LEDGER") or None


def dataset_options(command: _Command) -> _Command:
    """--dataset, --data-root, --image-size, --split, --split-seed, --download."""
    for option in (_DOWNLOAD, _SPLIT_SEED, _SPLIT, _IMAGE_SIZE, _DATA_ROOT, _DATASET):
        command = option(command)
    return command


def compute_options(auto_precision: str) -> Callable[[_Command], _Command]:
    """--device and --precision; `auto_precision` says what auto means for the command."""
    precision = precision_option(PRECISIONS, f"Number format of the network's forward; auto is {auto_precision}.")
    return lambda command: device_option(precision(command))
