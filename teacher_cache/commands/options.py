"""Options that several commands share, so that they read and mean the same everywhere."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from ground.geometry import INTERPOLATIONS, MAX_INPUT_SIZE
from ground.options import NumberRange, StoreFolder, StorePlace, device_option, precision_option
from ground.places import ObjectUrl, Place
from models.names import CALL_PRECISIONS, PRECISIONS
from storage.manifest import FILE_NAME, Manifest
from storage.price import Price, parse_micros
from teacher_cache.remote.policy import AskingConfig
from teacher_cache.rest import Rest

_Command = TypeVar("_Command", bound=Callable[..., Any])

store_option = click.option("--store", type=StoreFolder(), required=True, help="Folder of the store.")
place_option = click.option(
    "--store", type=StorePlace(), required=True, help="Folder of the store, or its URL, as s3://BUCKET/PATH."
)
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
_REHASH = click.option("--rehash", is_flag=True, help="Read every image file, and trust nothing known of it.")
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
_IN_FLIGHT = click.option(
    "--in-flight", type=int, default=8, show_default=True, help="Requests at once, of a teacher behind a network."
)
_DEADLINE = click.option(
    "--deadline", "deadline_seconds", type=float, default=60.0, show_default=True, help="Seconds for each of them."
)
_MAX_RPM, _MAX_TPM = (
    click.option(f"--max-{name}", type=click.IntRange(min=1), help=f"Most {what} a minute, of this builder.")
    for name, what in (("rpm", "requests"), ("tpm", "tokens"))
)
_BUDGET_COST = click.option("--budget-cost", help="Most money ever to be spent on this teacher, as 20.00.")
_PRICE_CALL, _PRICE_INPUT, _PRICE_OUTPUT = (
    click.option(f"--price-{name}", help=f"What the teacher costs, {what}.")
    for name, what in (
        ("call", "each call"),
        ("input", "for a million tokens of input"),
        ("output", "for a million tokens of output"),
    )
)
# Of these, those that mean nothing for a teacher that runs here.
REMOTE_ONLY = ("in_flight", "deadline_seconds", "max_rpm", "max_tpm", "price_input", "price_output")
_CARD = click.option(
    "--card",
    type=click.Path(path_type=Path, dir_okay=False),
    help="JSON file that says of a teacher behind a network what its server does not.",
)
_BASE_URL = click.option("--base-url", help="Of the server of openai:MODEL, as http://127.0.0.1:8000/v1.")
_PROMPT = click.option(
    "--prompt",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Text file of what openai:MODEL is asked, with {classes} or {names}.  [default: a prompt of ours]",
)
_IMAGE_DETAIL = click.option(
    "--image-detail", help="auto, low or high, of the images of openai:MODEL.  [default: auto]"
)
_ENGINE = click.option(
    "--engine",
    type=click.Choice(("local", "ray")),
    default="local",
    show_default=True,
    help="Where builders run: here, or several on a Ray cluster.",
)
_WORKERS = click.option("--workers", type=click.IntRange(1, 10_000), help="Builders of --engine ray.")
_RAY_ADDRESS = click.option(
    "--ray-address",
    help="Of a Ray cluster, or auto for this machine's.  [default: $RAY_ADDRESS, or one of this machine alone]",
)
_GPUS_PER_WORKER = click.option(
    "--gpus-per-worker",
    type=NumberRange(min=0),
    help="For each builder, as 0.5 or 1.  [default: 1 where the cluster has any]",
)
rest_option = click.option(
    "--rest",
    callback=lambda _, __, text: None if text is None else Rest.read(text),
    help="Further images of the same pool to keep, with their labels, at no call: how many, all, or none.",
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


def ledger_url_of(store: Place, given: str | None) -> str | None:
    """The ledger to use for a store: the one given, or $CKD_LEDGER if the store is new or shares one.

    For one in object storage it is the one given, or none: nobody needs a ledger to read it.
    """
    if given is not None or isinstance(store, ObjectUrl):
        return given
    return ledger_to_build(store, given)


def ledger_to_build(store: Place, given: str | None) -> str | None:
    """The same for who builds it: one in object storage is built with the ledger of $CKD_LEDGER too."""
    if given is not None:
        return given
    is_own = not isinstance(store, ObjectUrl) and (store / FILE_NAME).exists() and Manifest.load(store).ledger is None
    return None if is_own else os.environ.get("CKD_LEDGER") or None


def dataset_options(command: _Command) -> _Command:
    """--dataset, --data-root, --image-size, --split, --split-seed, --download, --rehash."""
    for option in (_REHASH, _DOWNLOAD, _SPLIT_SEED, _SPLIT, _IMAGE_SIZE, _DATA_ROOT, _DATASET):
        command = option(command)
    return command


def origin_options(command: _Command) -> _Command:
    """--prompts and --allow-code, for teachers from elsewhere."""
    return _PROMPTS(_ALLOW_CODE(command))


def asking_options(command: _Command) -> _Command:
    """How a teacher that is elsewhere is asked, and what a teacher costs; see `asking_of`."""
    for option in (
        _PRICE_OUTPUT,
        _PRICE_INPUT,
        _PRICE_CALL,
        _BUDGET_COST,
        _MAX_TPM,
        _MAX_RPM,
        _DEADLINE,
        _IN_FLIGHT,
    ):
        command = option(command)
    return command


def engine_options(command: _Command) -> _Command:
    """--engine, --workers, --ray-address, --gpus-per-worker."""
    for option in (_GPUS_PER_WORKER, _RAY_ADDRESS, _WORKERS, _ENGINE):
        command = option(command)
    return command


def price_call_option(command: _Command) -> _Command:
    """--price-call alone, for a teacher that runs here."""
    return _PRICE_CALL(command)


def remote_options(command: _Command) -> _Command:
    """--card, --base-url, --prompt, --image-detail: the fields of `RemoteOptions`."""
    for option in (_IMAGE_DETAIL, _PROMPT, _BASE_URL, _CARD):
        command = option(command)
    return command


def asking_of(settings: dict[str, Any]) -> dict[str, Any]:
    """`asking` and `budget_micros` of a `CallConfig`, from what `asking_options` gave, which is taken out.

    Raises:
        InvalidInput: an amount is none.
    """
    budget = settings.pop("budget_cost")
    prices = {name: settings.pop(f"price_{name}") for name in ("call", "input", "output")}
    asked = {name: settings.pop(name) for name in ("in_flight", "deadline_seconds", "max_rpm", "max_tpm")}
    said = {name if name == "call" else f"{name}_tokens": text for name, text in prices.items() if text is not None}
    price = Price.parse(**said) if said else None
    micros = None if budget is None else parse_micros(budget, "--budget-cost")
    return {"asking": AskingConfig(**asked, price=price), "budget_micros": micros}


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
