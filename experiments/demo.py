"""The whole project in one short program, on real images that need no download: `ckd-pipeline demo`.

Train a small teacher, spend its calls once, and train students from what was kept. Read `demo` from top to bottom;
every step is one call into the stage that owns it, and is what the commands `ckd-cache` and `ckd-train` do.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from ground.errors import store_command
from ground.options import device_option, json_option
from ground.terminal import note, print_json, progress, say
from models.compute import Compute
from storage.ledger import Ledger
from storage.manifest import Manifest
from storage.store_folder import LEDGER_FILE
from student_train.method_spec import MethodSpec
from student_train.methods import parse_method
from student_train.protocol import ProtocolConfig
from student_train.rest.spec import parse_rest
from student_train.run_folder import RunFolder
from student_train.train_config import TrainConfig
from student_train.trainer import Trainer
from teacher_cache.build import build
from teacher_cache.config import BuildConfig
from teacher_cache.datasets import open_dataset
from teacher_cache.prepare import prepare_build
from teacher_cache.rest import Rest
from teacher_cache.teacher_training import TrainingConfig, train_teacher

# Room in the budget for the calls that an interrupted build may lose.
_SPARE_CALLS = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoConfig:
    """Sizes of the demonstration, small enough for two cores and three minutes.

    Args:
        sizes: the values of n; the store is built for the largest, and smaller ones are its beginning.
        steps: how long each student is trained, whatever its n; every ceil(n / 64) steps it is evaluated.
    """

    dataset: str = "digits"
    teacher: str = "resnet20"
    student: str = "resnet8"
    teacher_epochs: int = 4
    sizes: tuple[int, ...] = (200, 800)
    methods: tuple[str, ...] = ("vanilla", "kd", "ckd")
    steps: int = 130
    seed: int = 0


@click.command("demo")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), default=Path("demo"), show_default=True)
@device_option
@json_option
def demo_command(out: Path, device: str, as_json: bool) -> None:
    """Run both stages on scikit-learn's handwritten digits; run it again to go on, or to see the table again."""
    started = time.monotonic()
    config, compute = DemoConfig(), Compute.choose(device)
    results = [*demo(out, config, compute), train_on_labels_alone(out, config, compute)]
    print_json(results) if as_json else _show_results(out, results)
    note(f"{time.monotonic() - started:.0f} s")


def demo(out: Path, config: DemoConfig, compute: Compute) -> list[dict[str, Any]]:
    """The two stages, one after the other; returns the content of run.json of every student."""
    # A teacher. Yours would be large, remote or billed; this one is trained here in half a minute.
    weights = out / "teacher.safetensors"
    train_demo_teacher(weights, config, compute)

    # Stage one: the only place where the teacher is called. The budget is a hard stop.
    store = out / "store"
    build_demo_store(store, weights, config, compute)

    # Stage two: any number of students, from the store alone.
    return [
        train_demo_student(out, store, method, n, config, compute) for n in config.sizes for method in config.methods
    ]


def train_demo_teacher(weights: Path, config: DemoConfig, compute: Compute) -> None:
    """Train the teacher on the labels of the whole training split, unless that was done before."""
    if weights.exists():
        return
    training = TrainingConfig(teacher=config.teacher, epochs=config.teacher_epochs, seed=config.seed)
    weights.parent.mkdir(parents=True, exist_ok=True)
    with progress(f"teacher {config.teacher}: epochs", training.epochs) as advance:
        report = train_teacher(training, open_dataset(config.dataset), weights, compute, advance)
    note(f"teacher {config.teacher}: test accuracy {report['test_accuracy']:.4f}")


def build_demo_store(folder: Path, weights: Path, config: DemoConfig, compute: Compute) -> None:
    """Call the teacher once on each image of the largest sample, and show what was spent."""
    n = max(config.sizes)
    prepared = prepare_build(
        BuildConfig(
            teacher=config.teacher,
            weights=weights,
            dataset=config.dataset,
            n=n,
            budget=n + _SPARE_CALLS,
            device=str(compute.device),
            store=folder,
            seed=config.seed,
            # The images that it is not asked about are kept with their labels.
            rest=Rest(None),
        )
    )
    with progress("store: teacher calls", prepared.plan.total_calls, prepared.plan.paid_calls) as advance:
        report = build(*prepared, advance)
    ledger = Ledger(folder / LEDGER_FILE)
    spent = ledger.summary()
    ledger.close()
    note(
        f"ledger: {report.new_calls} new calls, {spent.spent} spent of a budget of {spent.budget}, "
        f"{spent.remaining} left, head {spent.head[:12]}"
    )


def train_demo_student(
    out: Path, store: Path, method: str, n: int, config: DemoConfig, compute: Compute
) -> dict[str, Any]:
    """Train one student, or return the result of a run that was finished before."""
    return _train(out, store, parse_method(method), n, config.steps // ceil(n / 64), config, compute)


def train_on_labels_alone(out: Path, config: DemoConfig, compute: Compute) -> dict[str, Any]:
    """The student to compare all others with: every labelled image, and no call; after `demo`."""
    store = out / "store"
    recipe = replace(parse_method("vanilla"), rest=parse_rest(["ce"]))
    evaluations = max(1, config.steps // ceil(Manifest.load(store).num_images / 64))
    return _train(out, store, recipe, 0, evaluations, config, compute)


def _train(
    out: Path, store: Path, recipe: MethodSpec, n: int, evaluations: int, config: DemoConfig, compute: Compute
) -> dict[str, Any]:
    protocol = ProtocolConfig(max_evals=evaluations)
    training = TrainConfig(student=config.student, seed=config.seed, protocol=protocol)
    trainer = Trainer.open(training, store, n, recipe, compute, RunFolder(out / "runs" / f"{recipe.name}-n{n}"))
    with progress(f"{recipe.name} n={n}: evaluations", evaluations) as advance:
        return trainer.run(resume=True, on_eval=lambda row: advance(1, f"validation {row['val_accuracy']:.3f}"))


def _show_results(out: Path, results: list[dict[str, Any]]) -> None:
    table = Table("method", "n", "teacher calls", "test accuracy", title="Students")
    for result in results:
        accuracy = f"{result['test_accuracy']:.4f}"
        method = result["method"] if result["n"] else f"{result['method']}, all labels"
        table.add_row(method, str(result["n"]), str(result["teacher_calls"]), accuracy)
    Console().print(table)
    for name, path in {
        "teacher": out / "teacher.safetensors",
        "store": out / "store",
        "ledger": out / "store" / LEDGER_FILE,
        "runs": out / "runs",
    }.items():
        say(f"{name:<8} {path}")
    say(f"check it with: {store_command('verify', out / 'store')}")
