"""What a whole run costs over its bare steps and its bare validation passes.

    python -m benchmarks.whole_runs [--case wrn_16_2:kd --case resnet8:ckd] [--evals 3] [--rounds 3] [--profile]

A run is what a worker of a grid does for each of its students, from the options to `run.json`: everything is loaded,
trained, measured and written; only imports are shared. The bare steps are those of `benchmarks.stage_two`, as many on
as many images; a bare validation pass is the student's forward on inputs that are ready. Both take turns with the run
in one process, on one thread, as a worker has it, by the time of the processor. The store has the shapes of a wrn_40_2
on 100 classes, and 100 test images, which are measured once or twice in a run and in none of what is bare.
"""

from __future__ import annotations

import cProfile
import pstats
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import click
import torch

from benchmarks.measure import Timing, take_turns
from benchmarks.stage_two import bare_steps
from benchmarks.stand_ins.random_store import make_store
from models import create_model
from models.compute import Compute
from models.evaluation import count_correct
from student_train.methods import parse_method
from student_train.protocol import ProtocolConfig
from student_train.run_folder import RunFolder
from student_train.train_config import TrainConfig
from student_train.trainer import Trainer

CASES = ("wrn_16_2:kd", "resnet8:kd", "resnet8:ckd", "resnet8:ckd:pairs=all", "resnet8:fitnets+ckd")
# Of the teacher, what the methods above learn from.
LAYERS = ("layer2",)


@click.command()
@click.option("--case", "cases", multiple=True, default=CASES, show_default=True, help="STUDENT:METHOD, repeatable.")
@click.option("--n", default=1600, show_default=True)
@click.option("--evals", default=3, show_default=True, help="Evaluations of each run.")
@click.option("--rounds", default=3, show_default=True)
@click.option("--threads", default=1, show_default=True)
@click.option("--profile", is_flag=True, help="Print where one run of each case spends its time, and measure nothing.")
def main(cases: tuple[str, ...], n: int, evals: int, rounds: int, threads: int, profile: bool) -> None:
    torch.set_num_threads(threads)
    compute = Compute.choose()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_store(folder / "store", n, layers=LAYERS)
        if not profile:
            click.echo(f"n={n}, {evals} evaluations, {compute.describe()} {compute.precision}, {threads} threads")
            click.echo(f"{'run':<24} {'seconds':>8} {'steps':>8} {'passes':>8} {'of both':>8}")
        for case in cases:
            student, _, method = case.partition(":")
            run = whole_run(student, method, folder, evals, compute)
            trainer = run()
            if profile:
                print_profile(case, run)
            else:
                click.echo(measured(case, student, trainer, run, evals, rounds, compute))


def whole_run(student: str, method: str, folder: Path, evals: int, compute: Compute) -> Callable[[], Trainer]:
    """A training from the store to the end, each time anew."""

    def run() -> Trainer:
        shutil.rmtree(folder / "run", ignore_errors=True)
        config = TrainConfig(student=student, protocol=ProtocolConfig(max_evals=evals))
        recipe = parse_method(method)
        trainer = Trainer.open(config, folder / "store", None, recipe, compute, RunFolder(folder / "run"))
        trainer.run()
        return trainer

    return run


def measured(
    case: str,
    student: str,
    trainer: Trainer,
    run: Callable[[], object],
    evals: int,
    rounds: int,
    compute: Compute,
) -> str:
    stepper = trainer.stepper
    batch = stepper.sampling.batch(0, labels=stepper.labels, batch_size=64, seed=0)
    steps = bare_steps(student, len(batch.rows) // 64, trainer.state.step, compute)
    passes = bare_passes(student, list(trainer.data.val.batches(trainer.data.rendering)), evals, compute)
    timings = take_turns(rounds, {"run": run, "steps": steps, "passes": passes}, time.process_time)
    both = zip(timings["steps"].seconds, timings["passes"].seconds, strict=True)
    seconds = " ".join(f"{timing.median:8.2f}" for timing in timings.values())
    return f"{case:<24} {seconds} {timings['run'].over(Timing(tuple(map(sum, both)))):8.3f}"


def bare_passes(
    student: str, inputs: list[tuple[torch.Tensor, torch.Tensor]], count: int, compute: Compute
) -> Callable[[], object]:
    network = create_model(student, num_classes=100, seed=0)
    compute.place(network)
    return lambda: [count_correct(network, inputs, compute) for _ in range(count)]


def print_profile(case: str, run: Callable[[], object]) -> None:
    profile = cProfile.Profile()
    profile.runcall(run)
    click.echo(case)
    pstats.Stats(profile).sort_stats("cumulative").print_stats(60)


if __name__ == "__main__":
    main()
