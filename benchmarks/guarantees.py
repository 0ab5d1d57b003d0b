"""What the guarantees cost: a build as it is, over the same build without a ledger and without fsync.

    python -m benchmarks.guarantees [--n 2400] [--rounds 3] [--features none]

Both run the teacher, write and digest the same rows; the second keeps no record and leaves it to the system when the
disk is written. Prints the ratio, round by round, for both array formats.
"""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from unittest import mock

import click
import torch

from benchmarks.measure import take_turns
from benchmarks.stage_one import make_images
from models import create_model, save_weights
from storage.ledger_records import CallRequest, Reservation, Summary
from teacher_cache import build as build_module
from teacher_cache.build import build
from teacher_cache.config import BuildConfig
from teacher_cache.prepare import prepare_build


class NoLedger:
    """Answers a builder as a ledger does that knows nothing, and keeps nothing."""

    def __init__(self) -> None:
        self._ids = itertools.count(1)

    def reserve(self, session: int, requests: Sequence[CallRequest], *_: object, **__: object) -> Reservation:
        return Reservation({request.input_digest: next(self._ids) for request in requests}, {})

    def head(self) -> str:
        return "0" * 64

    def genesis(self) -> None:
        return None

    def start_session(self, session: object) -> int:
        return 1

    def beat(self, session: int) -> bool:
        return True

    def holds_lease(self, session: int) -> bool:
        return True

    def leases(self) -> dict[int, object]:
        return {}

    def summary(self, *_: object) -> Summary:
        return Summary(0, 0, 0, 0, None, None, self.head())

    def known_calls(self, *_: object) -> dict[bytes, object]:
        return {}

    def calls_of_store(self, *_: object) -> list[object]:
        return []

    def _nothing(self, *_: object) -> None:
        pass

    shown_url = "none"
    record_store = commit = end_session = close = _nothing


@contextmanager
def without_guarantees() -> Iterator[None]:
    with (
        mock.patch.object(build_module, "_open_ledger", return_value=NoLedger()),
        mock.patch.object(os, "fsync", return_value=None),
        mock.patch.dict(os.environ, CKD_WITNESS="off"),
    ):
        yield


@click.command()
@click.option("--teacher", default="wrn_40_2", show_default=True)
@click.option("--n", default=2400, show_default=True, help="Teacher calls in each round.")
@click.option("--rounds", default=3, show_default=True)
@click.option("--features", default="none", show_default=True)
@click.option("--batch-size", default=64, show_default=True)
def main(teacher: str, n: int, rounds: int, features: str, batch_size: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_images(folder / "images", n, 32)
        torch.manual_seed(0)
        save_weights(create_model(teacher, num_classes=100, seed=0), folder / "teacher.safetensors", {})
        base = BuildConfig(
            teacher=teacher,
            n=n,
            store=folder / "store",
            dataset=f"imagefolder:{folder / 'images'}",
            weights=folder / "teacher.safetensors",
            features=features,
            batch_size=batch_size,
            trust_teacher=True,
        )
        for array_format in ("zarr", "hdf5"):
            asked = replace(base, array_format=array_format, store=folder / array_format)
            subjects = {"with": builder(asked), "without": bare_builder(asked)}
            timings = take_turns(rounds, subjects)
            ratios = [
                mine / theirs for mine, theirs in zip(timings["with"].seconds, timings["without"].seconds, strict=True)
            ]
            click.echo(
                f"{array_format}, {teacher}, {n} calls, features {features}: {timings['with'].median:.2f} s with, "
                f"{timings['without'].median:.2f} s without; {timings['with'].over(timings['without']):.3f} "
                f"({', '.join(f'{ratio:.3f}' for ratio in ratios)})"
            )


def builder(asked: BuildConfig) -> Callable[[], object]:
    """A whole build in a fresh folder."""
    prepared = prepare_build(asked)

    def run() -> None:
        shutil.rmtree(asked.store, ignore_errors=True)
        build(*prepared)

    return run


def bare_builder(asked: BuildConfig) -> Callable[[], object]:
    run = builder(asked)

    def run_bare() -> None:
        with without_guarantees():
            run()

    return run_bare


if __name__ == "__main__":
    main()
