"""What a training step of every method costs over the student's bare forward, backward and step, and its peak memory.

    python -m benchmarks.losses [--student wrn_16_2] [--rounds 5] [--methods kd,ckd,at] [--precision fp32] [--cpu-time]

Teacher answers are random numbers in the shapes of a wrn_40_2 on 32-pixel images. Each method is measured in a process
of its own, in turns with a bare step on as many images in as many passes. Peak memory is that of the process, with
imports, loading and all steps; the first line is the bare step's.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import click
import torch

from benchmarks.measure import peak_bytes, take_turns
from benchmarks.stage_two import bare_steps, train_steps
from benchmarks.stand_ins.random_store import TEACHER, make_store
from ground.errors import InvalidInput
from models.compute import Compute
from student_train.methods import method_names, parse_method
from student_train.run_folder import RunFolder
from student_train.train_config import TrainConfig
from student_train.trainer import Trainer

BARE = "bare"


@click.command()
@click.option("--student", default="wrn_16_2", show_default=True)
@click.option("--n", default=640, show_default=True, help="Rows of the store.")
@click.option("--steps", default=3, show_default=True, help="Steps in each round.")
@click.option("--rounds", default=5, show_default=True)
@click.option("--methods", help="Names with commas between.  [default: all]")
@click.option("--precision", default="auto", show_default=True)
@click.option("--cpu-time", is_flag=True, help="Count processor time of one thread: for a machine that others use.")
@click.option("--one", hidden=True, help="Measure this method on --store and print JSON; for the benchmark itself.")
@click.option("--store", type=click.Path(path_type=Path), hidden=True)
def main(
    student: str,
    n: int,
    steps: int,
    rounds: int,
    methods: str | None,
    precision: str,
    cpu_time: bool,
    one: str | None,
    store: Path,
) -> None:
    compute = Compute.choose(precision=precision)
    if one is not None:
        if cpu_time:
            torch.set_num_threads(1)
        clock = time.process_time if cpu_time else time.perf_counter
        try:
            click.echo(json.dumps(measure(one, student, store, steps, rounds, compute, clock)))
        except InvalidInput as misfit:  # fsp and kdsvd want as many channels in both networks
            click.echo(json.dumps({"misfit": str(misfit).splitlines()[0]}))
        return
    with tempfile.TemporaryDirectory() as name:
        stores = {views: Path(name) / f"views-{views}" for views in (1, 2)}
        for views, folder in stores.items():
            make_store(folder, n, layers=None if views == 1 else (), views=views)
        click.echo(f"{student} from {TEACHER}, n={n}, batches of 64, {compute.describe()} {compute.precision}")
        click.echo(f"{'method':<16} {'of the bare step':>16} {'ms/step':>9} {'peak MB':>9}")
        for method in [BARE, *(methods.split(",") if methods else method_names())]:
            views = 1 if method == BARE or not needs_views(method) else 2
            command = [sys.executable, "-m", "benchmarks.losses", "--one", method, "--store", str(stores[views])]
            command += ["--student", student, "--steps", str(steps), "--rounds", str(rounds)]
            command += ["--precision", precision, *(["--cpu-time"] if cpu_time else [])]
            found = json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)
            if "misfit" in found:
                click.echo(f"{method:<16} {found['misfit']}")
                continue
            click.echo(
                f"{method:<16} {found['ratio']:16.3f} {found['ms']:9.1f} {found['peak_mb']:9.0f}{found['device']}"
            )


def needs_views(method: str) -> bool:
    return any(needs.views for needs in parse_method(method).needs)


def measure(
    method: str, student: str, store: Path, steps: int, rounds: int, compute: Compute, clock: Callable[[], float]
) -> dict[str, object]:
    """Step time over the bare step's, in turns with it, and what memory that took."""
    if method == BARE:
        timings = take_turns(rounds, {BARE: bare_steps(student, 1, steps, compute)}, clock)
    else:
        config = TrainConfig(student=student)
        trainer = Trainer.open(config, store, None, parse_method(method), compute, RunFolder(store / "unused"))
        trainer.prepare()
        passes = len(trainer.stepper.sampling.batch(0, labels=trainer.stepper.labels, batch_size=64, seed=0).rows) // 64
        subjects = {BARE: bare_steps(student, passes, steps, compute), method: lambda: train_steps(trainer, steps)}
        timings = take_turns(rounds, subjects, clock)
    device = ""
    if compute.device.type == "cuda":
        device = f", {torch.cuda.max_memory_allocated(compute.device) / 1e6:.0f} MB of GPU memory"
    return {
        "ratio": timings[method].over(timings[BARE]),
        "ms": timings[method].median / steps * 1e3,
        "peak_mb": peak_bytes() / 1e6,
        "device": device,
    }


if __name__ == "__main__":
    main()
