"""What a grid takes: its runs by `ckd-train`, one after another, against `ckd-pipeline run` with one job and with two.

    python -m benchmarks.grid [--evals 6]

The store is there before anything is timed, and every command has one thread, so what is compared is the same training.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
import yaml

from experiments.grid import read_grid
from experiments.plan import plan_runs
from models import create_model, save_weights

_COMMANDS = Path(sys.executable).parent
_METHODS, _SIZES, _SEEDS = ("vanilla", "kd", "ckd"), (400, 800), 2


def _command(*words: object) -> float:
    started = time.perf_counter()
    arguments = [str(_COMMANDS / str(words[0])), *map(str, words[1:])]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run(arguments, check=True, capture_output=True, env=environment)
    return time.perf_counter() - started


def _write(path: Path, folder: Path, methods: tuple[str, ...], evals: int) -> Path:
    document = {
        "dataset": "digits",
        "pairs": [{"teacher": "resnet20", "student": "resnet8", "weights": str(folder / "teacher.safetensors")}],
        "methods": list(methods),
        "n": list(_SIZES),
        "seeds": _SEEDS,
        "training": {"max_evals": evals},
    }
    path.write_text(yaml.safe_dump(document))
    return path


def _out_with_store(folder: Path, name: str) -> Path:
    """A grid's folder whose store is built; vanilla asks nothing and takes no time that matters."""
    first = _write(folder / "first.yaml", folder, ("vanilla",), 1)
    _command("ckd-pipeline", "run", first, "--out", folder / name, "--device", "cpu")
    return folder / name


@click.command()
@click.option("--evals", default=6, show_default=True, help="Evaluations of each run.")
def main(evals: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_weights(create_model("resnet20", num_classes=10, seed=0), folder / "teacher.safetensors", {})
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


if __name__ == "__main__":
    main()
