"""Builders and students on a real Ray cluster: as on one machine, whatever happens to any process of it."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest

from storage.holders import lock_holders
from storage.ledger import Ledger
from storage.manifest import FILE_NAME
from storage.store import Store
from storage.store_folder import BUILD_LOCK, LEDGER_FILE
from tests.conftest import run_command
from tests.experiments.grids import lasting, run, small, write
from tests.running import begin_command

# What batches of other sizes may change in the last bits.
CLOSE = {"train/logits": 1e-4, "train/features/layer1": 2e-3}


@pytest.fixture
def words(weights) -> tuple[object, ...]:
    """`ckd-cache build` of digits with a small teacher."""
    teacher = ("--teacher", "resnet8", "--weights", weights, "--trust-teacher", "--device", "cpu")
    return ("ckd-cache", "build", *teacher, "--dataset", "digits", "--features", "layer1")


@pytest.fixture
def build(tmp_path, words) -> Callable:
    return lambda store, *arguments: run_command(*words, "--store", tmp_path / store, *arguments)


@contextmanager
def killing(victim: Callable[[], int | None]) -> Iterator[list[int]]:
    """Kill, while the block runs, the first process that is named; whom it was."""
    killed: list[int] = []
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.01) and not killed:
            pid = None
            with suppress(Exception):  # what is looked at is being made
                pid = victim()
            if pid is not None:
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield killed
    finally:
        ended.set()
        thread.join()


def summary(store: Path):
    with closing(Ledger(store / LEDGER_FILE)) as ledger:
        return ledger.summary()


def require_same(one: Path, other: Path) -> None:
    found, expected = Store.open(one), Store.open(other)
    assert found.arrays.specs.keys() == expected.arrays.specs.keys() >= CLOSE.keys()
    for name in found.arrays.specs.keys() - {"train/digest"}:
        tolerance = CLOSE.get(name, 0.0)
        np.testing.assert_allclose(found.read(name), expected.read(name), rtol=tolerance, atol=tolerance, err_msg=name)


@pytest.mark.slow
def test_builders_of_a_cluster_make_the_store_of_one_even_when_one_is_killed(build, ray_address, tmp_path):
    n, store = 320, tmp_path / "store"

    def one_of_two_at_work() -> int | None:
        holders = lock_holders(store / BUILD_LOCK)
        return holders[0].pid if len(holders) == 2 and Store.open(store).valid().sum() >= 20 else None

    engine = ("--engine", "ray", "--workers", 2, "--ray-address", ray_address)
    with killing(one_of_two_at_work) as killed:
        built = build("store", "--n", n, "--batch-size", 4, "--lease", 2, *engine, "--json")
    assert built.returncode == 0, built.stderr
    assert killed
    assert f"process {killed[0]}: its worker process has died; another takes its place, and settles" in built.stderr
    report, totals = json.loads(built.stdout), summary(store)
    assert (report["new_calls"], report["rows_valid"]) == (n, n)
    assert (totals.committed, totals.reserved, totals.lost) == (n, 0, report["lost_calls"])
    assert totals.lost <= 2 * 4, "a batch at the teacher, and one that is being written"
    verified = run_command("ckd-cache", "verify", "--store", store)
    assert verified.returncode == 0, verified.stdout
    assert build("alone", "--n", n).returncode == 0
    require_same(store, tmp_path / "alone")
    again = build("store", "--n", n, *engine)
    assert again.stdout.startswith("0 new teacher calls"), again.stderr


@pytest.mark.slow
def test_ctrl_c_stops_all_builders_and_loses_nothing(words, tmp_path):
    """On a cluster of this machine alone, whose processes a terminal's Ctrl-C reaches too."""
    pytest.importorskip("ray")
    program, *rest = words
    n, store = 1024, tmp_path / "store"
    engine = ("--n", n, "--batch-size", 4, "--engine", "ray", "--workers", 2)
    process = begin_command(program, *rest, *engine, "--store", store)
    while not ((store / FILE_NAME).exists() and Store.open(store).valid().sum() >= 20):
        assert process.poll() is None, process.stderr
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    stdout, stderr = process.communicate(timeout=120)
    assert (process.returncode, stdout) == (130, ""), stderr
    assert "rows whole; run the same command again to go on" in stderr
    assert "Traceback" not in stderr
    totals = summary(store)
    assert (totals.reserved, totals.lost) == (0, 0)
    assert 20 <= totals.committed == Store.open(store).valid().sum() < n


@pytest.mark.slow
def test_a_grid_on_a_cluster_equals_the_local_one_even_when_a_process_is_killed(ray_address, tmp_path, weights):
    settings = {"n": [96], "store": {"trust_teacher": True}, "training": {"max_evals": 6}, "seeds": 2}
    grid = write(tmp_path / "grid.yaml", small(weights, **settings))
    out = tmp_path / "ray"

    def first_that_evaluated() -> int | None:
        for metrics in out.rglob("metrics.csv"):
            if not (metrics.parent / "run.json").exists():
                return int((metrics.parent / "train.log").read_text().partition("process ")[2].split()[0])
        return None

    engine = ("--engine", "ray", "--ray-address", ray_address, "--jobs", 2, "--cpus-per-run", 0.5)
    with killing(first_that_evaluated) as killed:
        done = run(grid, out, *engine)
    assert done.returncode == 0, done.stderr
    assert killed
    assert "the process that trained it is gone (its worker process has died); it goes on in another" in done.stderr
    assert "4 runs, 0 found finished, 4 trained, 0 failed; 96 new teacher calls" in done.stdout
    assert run(grid, tmp_path / "local").returncode == 0
    assert lasting(out) == lasting(tmp_path / "local")


def test_a_cluster_that_is_too_small_or_another_is_refused_before_any_call(build, ray_address, tmp_path, monkeypatch):
    asked = ("--n", 40, "--engine", "ray", "--ray-address", ray_address)
    crowded = build("store", *asked, "--workers", 3)
    assert (crowded.returncode, crowded.stdout) == (2, "")
    assert "the Ray cluster holds 2 builders of a CPU and 0 GPUs each, and --workers is 3; ask for fewer" in (
        crowded.stderr
    )
    with monkeypatch.context() as patched:
        patched.setattr("teacher_cache.engines.ray_build.require_nodes", lambda cluster, *, files, folders: 2)
        far = build("store", *asked, "--workers", 2)
    assert far.returncode == 2
    assert "the cluster has 2 machines, and an SQLite ledger is for one: give --ledger postgresql://..." in far.stderr
    monkeypatch.setattr("ray.__version__", "2.0")
    other = build("store", *asked, "--workers", 2)
    assert other.returncode == 2
    assert f"the cluster at {ray_address} is of Ray 2." in other.stderr
    assert "and this is Ray 2.0 on Python 3." in other.stderr
    assert not (tmp_path / "store").exists()
