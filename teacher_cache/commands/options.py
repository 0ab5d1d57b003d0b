"""Options that several commands share, so that they read and mean the same everywhere."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from ground.geometry import INTERPOLATIONS, MAX_INPUT_SIZE
from ground.options import device_option, precision_option
from models.names import CALL_PRECISIONS, PRECISIONS
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
_PROMPTS = click.option(
    "--prompts",
    type=click.Path(path_type=Path, dir_okay=False),
    help="CSV of class,prompt, for teachers that compare images with texts.",
)
_ALLOW_CODE = click.option(
    "--allow-code", is_flag=True, help="Run a teacher that is code from outside this program; look at it first."
)
_INPUT_SIZE = click.option(
    "--input-size",
    type=click.IntRange(1, MAX_INPUT_SIZE),
    help="Pixels of the teacher's input.  [default: its library's, or those of the views]",
)
_INTERPOLATION = click.option(
    "--interpolation", help=f"{' or '.join(INTERPOLATIONS)}.  [default: its library's, or bilinear]"
)
_CROP_PCT = click.option(
    "--crop-pct",
    type=float,
    help="Share of an image's side that a plain view keeps, as 0.875; for imagefolder.  [default: its library's, or 1]",
)
_MEAN, _STD = (
    click.option(name, nargs=3, type=float, help=f"{what} of pixels, red green blue, as {example}.")
    for name, what, example in (
        ("--mean", "Mean", "0.485 0.456 0.406"),
        ("--std", "Standard deviation", "0.229 0.224 0.225"),
    )
)
FEATURES_HELP = (
    "names with commas between, of all (stem, layers and pooled), stem, layer1, ..., pooled, and what all leaves out: "
    "layer1.pre, ... (before the last ReLU), last (the map that is pooled)"
)
KEEP_HELP = (
    "How to keep answers over the classes: logits, log_probs, probabilities, top:K, top:K:RULE (of what is missing: "
    "spread, zero, renormalise), sampled:K or label.  [default: as the store does, or the teacher gives them]"
)
FEATURE_DTYPE_HELP = "float16, bfloat16 or float32.  [default: that of the store's features, or float16]"
CLASS_MAP_HELP = (
    "For a teacher of other classes than the data set's: a CSV file with the header teacher,data, or names, to match "
    "them by name."
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


def origin_options(command: _Command) -> _Command:
    """--prompts and --allow-code, for teachers from elsewhere."""
    return _PROMPTS(_ALLOW_CODE(command))


def rendering_options(command: _Command) -> _Command:
    """--input-size, --interpolation, --crop-pct, --mean, --std: the fields of `RenderingOverrides`."""
    for option in (_STD, _MEAN, _CROP_PCT, _INTERPOLATION, _INPUT_SIZE):
        command = option(command)
    return command


def compute_options(auto_precision: str, precisions: Sequence[str] = PRECISIONS) -> Callable[[_Command], _Command]:
    """--device and --precision; `auto_precision` says what auto means for the command."""
    what = f"Number format of the network's forward; auto is {auto_precision}."
    precision = precision_option(precisions, what, refused=CALL_PRECISIONS)
    return lambda command: device_option(precision(command))
