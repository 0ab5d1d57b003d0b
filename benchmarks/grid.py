"""What a grid takes: its runs by `ckd-train`, one after another, against `ckd-pipeline run` with one job and with two;
or, with `--bare`, its processor time over the bare steps and bare evaluations of its runs.

    python -m benchmarks.grid [--evals 6]
    python -m benchmarks.grid --bare [--evals 10] [--steps 50]

The store is there before anything is timed, and every command has one thread, so what is compared is the same training.
The bare steps are those of `benchmarks.stage_two`, the bare evaluations those of `benchmarks.whole_runs`, before the
grid and after it; of the grid's own processes, all time counts, imports included.
"""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import click
import torch
import yaml

from benchmarks.stage_two import bare_steps
from benchmarks.whole_runs import bare_passes
from experiments.grid_file import read_grid
from experiments.plan import PlannedRun, plan_runs
from models import create_model, save_weights
from models.compute import Compute
from storage.rows import num_validation
from teacher_cache.datasets import open_dataset

_COMMANDS = Path(sys.executable).parent
_STUDENT, _METHODS, _SIZES, _SEEDS = "resnet8", ("vanilla", "kd", "ckd"), (400, 800), 2


def _command(*words: object) -> float:
    """Seconds by the clock."""
    return _timed(time.perf_counter, *words)


def _processor_seconds(*words: object) -> float:
    """Of the command and of all processes that it waited for."""

    def spent() -> float:
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        return children.ru_utime + children.ru_stime

    return _timed(spent, *words)


def _timed(clock: Callable[[], float], *words: object) -> float:
    started = clock()
    arguments = [str(_COMMANDS / str(words[0])), *map(str, words[1:])]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run(arguments, check=True, capture_output=True, env=environment)
    return clock() - started


def _write(path: Path, folder: Path, methods: tuple[str, ...], evals: int, steps: int | None = None) -> Path:
    document = {
        "dataset": "digits",
        "pairs": [{"teacher": "resnet20", "student": _STUDENT, "weights": str(folder / "teacher.safetensors")}],
        "methods": list(methods),
        "n": list(_SIZES),
        "seeds": _SEEDS,
        "training": {"max_evals": evals, **({} if steps is None else {"steps_per_eval": steps})},
        # It was never trained.
        "store": {"trust_teacher": True},
    }
    path.write_text(yaml.safe_dump(document))
    return path


def _out_with_store(folder: Path, name: str) -> Path:
    """A grid's folder whose store is built; vanilla asks nothing and takes no time that matters."""
    first = _write(folder / "first.yaml", folder, ("vanilla",), 1)
    _command("ckd-pipeline", "run", first, "--out", folder / name, "--device", "cpu")
    return folder / name


def _print_clock(folder: Path, evals: int) -> None:
    grid = _write(folder / "grid.yaml", folder, _METHODS, evals)
    runs = plan_runs(read_grid(grid), "fp32")
    store = _out_with_store(folder, "alone") / runs[0].store
    alone = sum(
        _command(
            "ckd-train", "--store", store, "--student", run.student, "--method", run.text, "--n", run.n,
            "--seed", run.config.seed, "--max-evals", evals, "--device", "cpu", "--out", folder / str(place),
        )
        for place, run in enumerate(runs)
    )  # fmt: skip
    print(f"{len(runs)} runs, {evals} evaluations each, cpu")
    print(f"{'ckd-train, one after another':<32}{alone:8.1f} s   1.000")
    for jobs in sorted({1, 2, os.cpu_count() or 1}):
        out = _out_with_store(folder, f"jobs{jobs}")
        seconds = _command("ckd-pipeline", "run", grid, "--out", out, "--device", "cpu", "--jobs", jobs)
        print(f"{f'ckd-pipeline run --jobs {jobs}':<32}{seconds:8.1f} s   {seconds / alone:.3f}")


def _print_processor(folder: Path, evals: int, steps: int) -> None:
    torch.set_num_threads(1)
    compute = Compute.choose("cpu", "auto")
    grid = _write(folder / "grid.yaml", folder, _METHODS, evals, steps)
    runs = plan_runs(read_grid(grid), compute.precision)
    command = ("ckd-pipeline", "run", grid, "--out", _out_with_store(folder, "out"), "--device", "cpu", "--jobs", 1)
    before = _bare_seconds(runs, evals, steps, compute)
    seconds = _processor_seconds(*command)
    bare = statistics.mean((before, _bare_seconds(runs, evals, steps, compute)))
    idle = _processor_seconds(*command)
    print(f"{len(runs)} runs, {evals} evaluations of {steps} steps each, cpu {compute.precision}, processor seconds")
    print(f"{'bare steps and evaluations':<32}{bare:8.1f} s   1.000")
    print(f"{'ckd-pipeline run --jobs 1':<32}{seconds:8.1f} s   {seconds / bare:.3f}")
    print(f"{'the same, all finished':<32}{idle:8.1f} s   {idle / bare:.3f}")


def _bare_seconds(runs: Sequence[PlannedRun], evals: int, steps: int, compute: Compute) -> float:
    """Of all steps and evaluations of these runs, from fifty steps of each kind and one pass of each split."""
    sampled = 50
    step = {
        passes: _spent(bare_steps(_STUDENT, passes, sampled, compute)) / sampled
        for passes in {run.images_per_step // run.config.batch_size for run in runs}
    }
    digits = open_dataset("digits")
    batch = torch.zeros(256, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    image = _spent(bare_passes(_STUDENT, [(batch, torch.zeros(256, dtype=torch.int64))], 4, compute)) / 1024
    return sum(
        evals * steps * step[run.images_per_step // run.config.batch_size]
        + (evals * num_validation(run.n) + len(digits.test)) * image
        for run in runs
    )


def _spent(work: Callable[[], object]) -> float:
    """Seconds of this process's processor, of work that was done once before."""
    work()
    started = time.process_time()
    work()
    return time.process_time() - started


@click.command()
@click.option("--evals", default=6, show_default=True, help="Evaluations of each run.")
@click.option("--bare", is_flag=True, help="Hold its processor time against bare steps and evaluations.")
@click.option("--steps", default=50, show_default=True, help="Steps between evaluations, with --bare.")
def main(evals: int, bare: bool, steps: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_weights(create_model("resnet20", num_classes=10, seed=0), folder / "teacher.safetensors", {})
        if bare:
            _print_processor(folder, evals, steps)
        else:
            _print_clock(folder, evals)


if __name__ == "__main__":
    main()
