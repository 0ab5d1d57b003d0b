"""What a large rest costs a training, in time and in memory: losses of rows that the teacher was not asked about.

    python -m benchmarks.rest [--rest 50000] [--n 1600] [--student resnet8] [--method kd] [--cpu-time]

Steps take turns: without a rest; with batches of twice as many answered rows, as many images as with a rest; with each
loss of the rest from memory, and with cross-entropy from a stream. Peak memory is that of a process of its own,
with loading, steps and an evaluation; what the training without a rest takes is subtracted.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import click

from benchmarks.measure import peak_bytes, take_turns
from benchmarks.stage_two import train_steps
from benchmarks.stand_ins.random_store import make_store
from models.compute import Compute
from student_train.methods import parse_method
from student_train.rest.spec import parse_rest
from student_train.run_folder import RunFolder
from student_train.train_config import TrainConfig
from student_train.trainer import Trainer

BATCH = 64


@dataclass(frozen=True, slots=True)
class Subject:
    """One training."""

    rest: tuple[str, ...] = ()
    batch: int = BATCH
    stream: bool = False


WITHOUT = "without a rest"
SUBJECTS = {
    WITHOUT: Subject(),
    "without, batches of 128": Subject(batch=2 * BATCH),
    "ce": Subject(("ce",)),
    "ce, from a stream": Subject(("ce",), stream=True),
    "pseudo": Subject(("pseudo",)),
    "mean_teacher": Subject(("mean_teacher",)),
}


@click.command()
@click.option("--student", default="resnet8", show_default=True)
@click.option("--method", default="kd", show_default=True)
@click.option("--n", default=1600, show_default=True)
@click.option("--rest", default=50_000, show_default=True)
@click.option("--steps", default=16, show_default=True, help="Steps in each round.")
@click.option("--rounds", default=5, show_default=True)
@click.option("--cpu-time", is_flag=True, help="Count processor time: for a machine that others use.")
@click.option("--peak", nargs=2, help="Store and subject: only print the peak memory; for the benchmark itself.")
def main(
    student: str,
    method: str,
    n: int,
    rest: int,
    steps: int,
    rounds: int,
    cpu_time: bool,
    peak: tuple[str, str] | None,
) -> None:
    if peak is not None:
        click.echo(peak_memory(trainer_of(student, method, Path(peak[0]), SUBJECTS[peak[1]]), steps))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "store"
        make_store(folder, n, rest=rest)
        trainers = {name: trainer_of(student, method, folder, subject) for name, subject in SUBJECTS.items()}
        compute = trainers[WITHOUT].data.compute
        click.echo(f"{student}, {method}, {n} rows and {rest} beside, {compute.describe()} {compute.precision}")
        runs = {name: partial(train_steps, trainer, steps) for name, trainer in trainers.items()}
        clock = time.process_time if cpu_time else time.perf_counter
        timings = take_turns(rounds, runs, clock)
        for trainer in trainers.values():
            for term in trainer.rest:
                term.close()
            trainer.data.close()
        del trainers, runs
        given = ["--student", student, "--method", method, "--steps", str(steps)]
        peaks = {name: peak_of(folder, name, given) for name in SUBJECTS}
    for name, timing in timings.items():
        over, more = timing.over(timings[WITHOUT]), (peaks[name] - peaks[WITHOUT]) / 1e6
        click.echo(f"{name:<24} {timing.median / steps * 1e3:8.1f} ms/step {over:6.2f} of without   {more:+7.0f} MB")


def trainer_of(student: str, method: str, store: Path, subject: Subject) -> Trainer:
    config = TrainConfig(student=student, batch_size=subject.batch, stream=subject.stream)
    spec = replace(parse_method(method), rest=parse_rest(subject.rest))
    return Trainer.open(config, store, None, spec, Compute.choose(), RunFolder(store / "unused"))


def peak_of(store: Path, name: str, given: list[str]) -> float:
    command = [sys.executable, "-m", "benchmarks.rest", "--peak", str(store), name, *given]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def peak_memory(trainer: Trainer, steps: int) -> float:
    train_steps(trainer, steps)
    trainer.accuracy_on(trainer.data.test)
    for term in trainer.rest:
        term.close()
    trainer.data.close()
    return peak_bytes()


if __name__ == "__main__":
    main()
