"""What a training costs beside the same one with the teacher in every step, as RepDistiller's loop has it.

    python -m benchmarks.peers [--student wrn_16_2] [--n 640] [--rounds 3] [--epochs 240]
    python -m benchmarks.peers --dataset imagefolder:tin100 --weights wrn_40_2-tin100.safetensors

Theirs is `stand_ins/plain_loop.py`, written plainly here: teacher and one image's transforms at a time in every step.
Ours is stage two from a store of the same images, with the same student, losses, batch size and number of steps. Each
side has a process of its own, on one thread: ours with the memory that `ckd-train` keeps (`ground/allocation.py`),
theirs as any Python program has it. They take turns, and seconds are those of the processor. "once" is what ours has
to do before its first step: stage one, from listing the images to the last row, and loading the store. The last column
adds it to ours at a number of epochs; where several students learn from a store, each has a part of it.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from unittest import mock

import click
import torch

from benchmarks.allocators import NEUTRAL
from benchmarks.stage_one import make_images
from benchmarks.stage_two import train_steps
from benchmarks.stand_ins.plain_loop import METHODS, ImagesOneByOne, PlainLoop
from models import create_model, load_weights, save_weights
from models.compute import Compute
from storage.store import Store
from student_train.methods import parse_method
from student_train.run_folder import RunFolder
from student_train.train_config import TrainConfig
from student_train.trainer import Trainer
from teacher_cache.build import build
from teacher_cache.config import BuildConfig
from teacher_cache.prepare import prepare_build

# Ours by the weights of theirs, and what a store needs for it.
OURS = {"kd": ("kd:weight=0.9,ce=0.1", "none"), "hint": ("fitnets:weight=100,ce=1,kd=0", "layer2")}
PRECISIONS = ("fp32", "bf16")
_BATCH = 64

Subjects = Mapping[str, Callable[[], object]]


@dataclass(frozen=True, slots=True)
class Work:
    """What both sides are given."""

    folder: Path
    dataset: str
    image_size: int | None
    teacher: str
    weights: Path
    student: str
    n: int

    def store(self, method: str, precision: str) -> Path:
        """Where ours has its store for a method in a precision."""
        return self.folder / f"{method}-{precision}"


@click.command()
@click.option("--teacher", default="wrn_40_2", show_default=True)
@click.option("--weights", type=click.Path(path_type=Path), help="Of the teacher.  [default: random]")
@click.option("--student", default="wrn_16_2", show_default=True)
@click.option("--dataset", help="As imagefolder:PATH.  [default: random PNG files of 32 pixels, made here]")
@click.option("--image-size", type=int, help="Pixels that larger images are brought to.")
@click.option("--n", default=640, show_default=True, help="Training images, an epoch of both: a multiple of 64.")
@click.option("--rounds", default=3, show_default=True)
@click.option("--epochs", default=240, show_default=True, help="That a training is taken to have, for the last column.")
@click.option("--method", "methods", multiple=True, type=click.Choice([*METHODS]), default=[*METHODS])
@click.option("--precision", "precisions", multiple=True, type=click.Choice(PRECISIONS), default=PRECISIONS)
def main(
    teacher: str,
    weights: Path | None,
    student: str,
    dataset: str | None,
    image_size: int | None,
    n: int,
    rounds: int,
    epochs: int,
    methods: tuple[str, ...],
    precisions: tuple[str, ...],
) -> None:
    if n % _BATCH:
        raise click.UsageError(f"--n {n} is no multiple of {_BATCH}, and both sides are to make the same steps")
    with tempfile.TemporaryDirectory() as name, mock.patch.dict(os.environ, CKD_WITNESS=f"{name}/witness"):
        folder = Path(name)
        if dataset is None:
            make_images(folder / "images", n, 32)
            dataset = f"imagefolder:{folder / 'images'}"
        if weights is None:
            torch.manual_seed(0)
            weights = folder / "teacher.safetensors"
            save_weights(create_model(teacher, 100, 0, 32), weights, {})
        work = Work(folder, dataset, image_size, teacher, weights, student, n)
        cases = [(method, precision) for method in methods for precision in precisions]
        found = measured(work, cases, rounds)
    click.echo(f"{student} from {teacher}, {n} images, batches of {_BATCH}, one thread, medians of {rounds} rounds")
    click.echo(f"seconds of the processor for an epoch of {n // _BATCH} steps; 'with once' is of {epochs} epochs")
    click.echo(f"{'':<26} {'theirs':>8} {'ours':>8} {'ours/theirs':>12} {'once':>8} {'with once':>10}")
    for (method, precision), times in found.items():
        print_row(f"{method}, both {precision}", times, times.theirs, epochs)
        if precision != "fp32" and (method, "fp32") in found:
            print_row(f"{method}, {precision} over fp32", times, found[method, "fp32"].theirs, epochs)


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds of an epoch of each side, and of what ours does once, round by round."""

    theirs: list[float]
    ours: list[float]
    once: list[float]


def print_row(label: str, times: Times, theirs: list[float], epochs: int) -> None:
    ratio = statistics.median(mine / other for mine, other in zip(times.ours, theirs, strict=True))
    once = statistics.median(times.once)
    whole = statistics.median(
        mine / other + first / (epochs * other)
        for mine, first, other in zip(times.ours, times.once, theirs, strict=True)
    )
    click.echo(
        f"{label:<26} {statistics.median(theirs):8.2f} {statistics.median(times.ours):8.2f} {ratio:12.3f} "
        f"{once:8.2f} {whole:10.3f}"
    )


def measured(work: Work, cases: list[tuple[str, str]], rounds: int) -> dict[tuple[str, str], Times]:
    """Both sides of every case in turns, after a round that does not count."""
    found = {case: Times([], [], []) for case in cases}
    # Ours makes the store that theirs takes its images from.
    with side(ours, work, cases) as mine, side(theirs, work, cases, GLIBC_TUNABLES=NEUTRAL) as other:
        for round_ in range(rounds + 1):
            for case, times in found.items():
                label = "-".join(case)
                seconds = other(label), mine(label), mine(f"{label} once")
                if round_:
                    for kept, value in zip((times.theirs, times.ours, times.once), seconds, strict=True):
                        kept.append(value)
    return found


def theirs(work: Work, cases: list[tuple[str, str]]) -> Subjects:
    """An epoch of the plain loop for each case."""
    store = Store.open(work.store(*cases[0]))
    identity = store.manifest.identity
    images, labels = (store.read_sample(f"train/{name}") for name in ("images", "labels"))
    classes = len(identity.dataset.classes)
    shown = ImagesOneByOne(images, labels, identity.teacher.normalisation, identity.geometry.padding)
    teacher = create_model(work.teacher, classes, image_size=images.shape[1])
    load_weights(teacher, work.weights)
    subjects: dict[str, Callable[[], object]] = {}
    for method, precision in cases:
        student = create_model(work.student, classes, seed=0, image_size=images.shape[1])
        autocast = Compute(torch.device("cpu"), precision).autocast
        loop = PlainLoop(METHODS[method], student, teacher, shown, autocast, _BATCH)
        subjects[f"{method}-{precision}"] = loop.epoch
    return subjects


def ours(work: Work, cases: list[tuple[str, str]]) -> Subjects:
    """For each case an epoch of stage two, and all that comes before it."""
    subjects: dict[str, Callable[[], object]] = {}
    for method, precision in cases:

        def once(method: str = method, precision: str = precision) -> Trainer:
            return begun(work, method, precision)

        trainer = once()
        subjects[f"{method}-{precision}"] = lambda trainer=trainer: train_steps(trainer, work.n // _BATCH)
        subjects[f"{method}-{precision} once"] = once
    return subjects


def begun(work: Work, method: str, precision: str) -> Trainer:
    """Stage one, and stage two as far as its first step."""
    spec, features = OURS[method]
    store = work.store(method, precision)
    shutil.rmtree(store, ignore_errors=True)
    config = BuildConfig(
        teacher=work.teacher,
        n=work.n,
        store=store,
        dataset=work.dataset,
        image_size=work.image_size,
        weights=work.weights,
        features=features,
        device="cpu",
        precision=precision,
        batch_size=_BATCH,
        trust_teacher=True,
    )
    build(*prepare_build(config))
    compute = Compute.choose("cpu", precision)
    training = TrainConfig(student=work.student, batch_size=_BATCH)
    trainer = Trainer.open(training, store, None, parse_method(spec), compute, RunFolder(work.folder / "run"))
    trainer.prepare()
    return trainer


@contextmanager
def side(
    make: Callable[[Work, list[tuple[str, str]]], Subjects], work: Work, cases: list[tuple[str, str]], **told: str
) -> Iterator[Callable[[str], float]]:
    """A process with subjects that it made; runs one by its name, and returns the seconds of its processor.

    Args:
        told: of its environment.
    """
    context = multiprocessing.get_context("spawn")
    own, other = context.Pipe()
    process = context.Process(target=_serve, args=(other, make, work, cases), daemon=True)
    with mock.patch.dict(os.environ, told):
        process.start()
    other.close()

    def run(name: str) -> float:
        own.send(name)
        seconds: float = own.recv()
        return seconds

    try:
        own.recv()
        yield run
    finally:
        own.close()
        process.join()


def _serve(connection: Connection, make: Callable[..., Subjects], work: Work, cases: list[tuple[str, str]]) -> None:
    torch.set_num_threads(1)
    subjects = make(work, cases)
    connection.send("ready")
    while True:
        try:
            name = connection.recv()
        except EOFError:
            return
        started = time.process_time()
        subjects[name]()
        connection.send(time.process_time() - started)


if __name__ == "__main__":
    main()
