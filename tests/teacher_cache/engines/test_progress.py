"""Builders that a launcher started: each does its part, and the first shows how far the store is."""

from __future__ import annotations

import re

import pytest

from teacher_cache.config import BuildConfig
from teacher_cache.engines.progress import StoreProgress
from teacher_cache.prepare import prepare_build
from tests.conftest import COMMANDS, run_command
from tests.running import begin_command


def test_progress_is_of_the_store_and_not_of_one_builder(stores, tmp_path, weights):
    settings = {"teacher": "resnet8", "weights": weights, "dataset": "digits", "device": "cpu", "features": "all"}
    plan = prepare_build(BuildConfig(store=tmp_path / "store", n=96, **settings)).plan
    told: list[tuple[int, str]] = []
    progress = StoreProgress(plan, lambda cells, note: told.append((cells, note)))
    progress.look()
    (tmp_path / "store").symlink_to(stores["zarr"])  # others made it meanwhile
    progress.tell("2 builders at work")
    progress.look()
    assert told == [(0, ""), (96, "2 builders at work")]


@pytest.mark.slow
def test_processes_that_torchrun_starts_divide_a_store(tmp_path, weights):
    store = tmp_path / "store"
    words = ("--teacher", "resnet8", "--weights", weights, "--trust-teacher", "--dataset", "digits", "--n", 320)
    # Without the dashes torchrun reads the command's options as well, and there is more than one of its own that --n is
    # short for.
    launch = ("torchrun", "--standalone", "--nproc-per-node", 2, "--", COMMANDS / "ckd-cache", "build")
    command = [*launch, *words, "--batch-size", 4, "--store", store]
    done = begin_command(*command).completed()
    assert done.returncode == 0, done.stderr
    said = re.findall(
        rf"^builder (\d) of 2: (\d+) new teacher calls; {store} holds 320 of 320", done.stdout, re.MULTILINE
    )
    assert sorted(rank for rank, _ in said) == ["1", "2"]
    assert sum(int(calls) for _, calls in said) == 320
    assert "resnet8: teacher calls: 320 of 320" in done.stderr
    assert run_command("ckd-cache", "verify", "--store", store).returncode == 0
