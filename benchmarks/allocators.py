"""What a training takes with each way of handing out memory: processor time, page faults and the most memory.

    python -m benchmarks.allocators [--case resnet8:kd --case wrn_16_2:kd] [--n 640] [--evals 2] [--rounds 3]

glibc as it is, glibc with the thresholds of `ground/allocation.py`, and jemalloc and tcmalloc by LD_PRELOAD where they
are installed (Debian: libjemalloc2, libtcmalloc-minimal4). Each training is a process of its own on one thread, from
the store to `run.json` without imports; they take turns. The store is random, in the shapes of a wrn_40_2.
"""

from __future__ import annotations

import ctypes.util
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TypedDict

import click
import torch

from benchmarks.measure import peak_bytes
from benchmarks.stand_ins.random_store import make_store
from benchmarks.whole_runs import whole_run
from ground.allocation import SETTINGS
from models.compute import Compute

CASES = ("resnet8:kd", "wrn_16_2:kd")
AS_IT_IS, KEPT = "glibc as it is", "glibc, memory kept"
# What glibc does anyway: that it is said leaves `ground.allocation` out.
NEUTRAL = "glibc.malloc.tcache_count=7"


class Found(TypedDict):
    """What one training took: seconds of the processor, those of them in the system, page faults, MB at most."""

    seconds: float
    system: float
    faults: int
    peak_mb: float


@click.command()
@click.option("--case", "cases", multiple=True, default=CASES, show_default=True, help="STUDENT:METHOD, repeatable.")
@click.option("--n", default=640, show_default=True)
@click.option("--evals", default=2, show_default=True)
@click.option("--rounds", default=3, show_default=True)
@click.option("--one", hidden=True, help="Train this case from --folder and print JSON; for the benchmark itself.")
@click.option("--folder", type=click.Path(path_type=Path), hidden=True)
def main(cases: tuple[str, ...], n: int, evals: int, rounds: int, one: str | None, folder: Path) -> None:
    torch.set_num_threads(1)
    if one is not None:
        click.echo(json.dumps(trained(one, folder, evals)))
        return
    with tempfile.TemporaryDirectory() as name:
        make_store(Path(name) / "store", n)
        click.echo(f"n={n}, {evals} evaluations, {Compute.choose().precision}, one thread, medians of {rounds}")
        click.echo(f"{'':<34} {'seconds':>8} {'of glibc':>9} {'system':>7} {'faults':>9} {'most MB':>8}")
        for case in cases:
            print_case(case, in_turns(case, Path(name), evals, rounds))


def environments() -> dict[str, dict[str, str]]:
    """What a process is told, by the name of what that gives it."""
    told = {AS_IT_IS: {"GLIBC_TUNABLES": NEUTRAL}, KEPT: {}}
    for label, library in (("jemalloc", "jemalloc"), ("tcmalloc", "tcmalloc_minimal")):
        found = ctypes.util.find_library(library)
        if found is None:
            click.echo(f"{label} is not installed here, and is left out", err=True)
        else:
            told[label] = {"LD_PRELOAD": found}
    return told


def in_turns(case: str, folder: Path, evals: int, rounds: int) -> dict[str, list[Found]]:
    """What each training took, by allocator, a round each."""
    command = [sys.executable, "-m", "benchmarks.allocators", "--one", case, "--folder", str(folder)]
    command += ["--evals", str(evals)]
    own = {name: value for name, value in os.environ.items() if name not in (*SETTINGS, "LD_PRELOAD")}
    told = environments()
    found: dict[str, list[Found]] = {label: [] for label in told}
    for _ in range(rounds):
        for label, said in told.items():
            ended = subprocess.run(command, env=own | said, stdout=subprocess.PIPE, text=True, check=True)
            found[label].append(json.loads(ended.stdout))
    return found


def trained(case: str, folder: Path, evals: int) -> Found:
    """Train in this process, after all that it imports."""
    student, _, method = case.partition(":")
    run = whole_run(student, method, folder, evals, Compute.choose())
    before = resource.getrusage(resource.RUSAGE_SELF)
    run()
    after = resource.getrusage(resource.RUSAGE_SELF)
    system = after.ru_stime - before.ru_stime
    return Found(
        seconds=after.ru_utime - before.ru_utime + system,
        system=system,
        faults=after.ru_minflt - before.ru_minflt,
        peak_mb=peak_bytes() / 1e6,
    )


def print_case(case: str, found: dict[str, list[Found]]) -> None:
    plain = found[AS_IT_IS]
    for label, rounds in found.items():
        ratio = statistics.median(
            mine["seconds"] / theirs["seconds"] for mine, theirs in zip(rounds, plain, strict=True)
        )
        seconds, system = (statistics.median(each[name] for each in rounds) for name in ("seconds", "system"))
        faults, peak = (statistics.median(each[name] for each in rounds) for name in ("faults", "peak_mb"))
        click.echo(f"{case:<14} {label:<19} {seconds:8.2f} {ratio:9.3f} {system:7.2f} {faults:9,.0f} {peak:8.0f}")


if __name__ == "__main__":
    main()
