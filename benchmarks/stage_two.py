"""What a training step from the store costs over the student's bare forward, backward and step.

    python -m benchmarks.stage_two [--student wrn_16_2] [--rounds 5]

The bare step sees one fixed batch in the precision and memory layout that training uses. A `ckd` step with sampled
pairs sends twice the images through the student, so it is held against a bare step on as many images, in as many
passes. Evaluations are not part of a step. Peak memory is that of a process of its own for each method, with imports,
loading and three steps in it.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import click
import torch
import torch.nn.functional as F

from benchmarks.measure import Timing, peak_bytes, take_turns
from benchmarks.stand_ins.random_store import make_store
from models import create_model
from models.compute import Compute
from student_train.methods import parse_method
from student_train.run_folder import RunFolder
from student_train.train_config import TrainConfig
from student_train.trainer import Trainer

METHODS = {"vanilla": 1, "kd": 1, "ckd": 2, "ckd:pairs=all": 1}


@click.command()
@click.option("--student", default="wrn_16_2", show_default=True)
@click.option("--n", default=2400, show_default=True)
@click.option("--steps", default=8, show_default=True, help="Steps in each round.")
@click.option("--rounds", default=5, show_default=True)
@click.option("--peak", help="Only print the peak memory of this method on --store; for the benchmark itself.")
@click.option("--store", type=click.Path(path_type=Path))
def main(student: str, n: int, steps: int, rounds: int, peak: str | None, store: Path | None) -> None:
    if peak is not None and store is not None:
        print_peak_memory(student, store, n, peak)
        return
    compute = Compute.choose()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_store(folder / "store", n)
        subjects: dict[str, Callable[[], object]] = {}
        for passes in sorted(set(METHODS.values())):
            subjects[f"bare, {passes} x 64 images"] = bare_steps(student, passes, steps, compute)
        for method in METHODS:
            recipe = parse_method(method)
            config = TrainConfig(student=student)
            trainer = Trainer.open(config, folder / "store", n, recipe, compute, RunFolder(folder / "run"))
            subjects[method] = lambda trainer=trainer: train_steps(trainer, steps)
        timings = take_turns(rounds, subjects)
        print_timings(student, steps, compute, timings)
        for method in METHODS:
            command = [sys.executable, "-m", "benchmarks.stage_two", "--student", student, "--n", str(n)]
            command += ["--peak", method, "--store", str(folder / "store")]
            click.echo(subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip())


def print_timings(student: str, steps: int, compute: Compute, timings: dict[str, Timing]) -> None:
    click.echo(f"{student}, batches of 64, {compute.describe()} {compute.precision}")
    for label, timing in timings.items():
        line = f"{label:<22} {timing.median / steps * 1e3:8.1f} ms/step"
        if label in METHODS:
            line += f"   {timing.over(timings[f'bare, {METHODS[label]} x 64 images']):6.3f} of the bare step"
        click.echo(line)


def print_peak_memory(student: str, store: Path, n: int, method: str) -> None:
    compute = Compute.choose()
    config = TrainConfig(student=student)
    trainer = Trainer.open(config, store, n, parse_method(method), compute, RunFolder(store / "unused"))
    train_steps(trainer, 3)
    device = ""
    if compute.device.type == "cuda":
        device = f", {torch.cuda.max_memory_allocated(compute.device) / 1e6:.0f} MB of GPU memory"
    click.echo(f"{method:<22} peak memory {peak_bytes() / 1e6:6.0f} MB{device}")


def bare_steps(student: str, passes: int, steps: int, compute: Compute) -> Callable[[], object]:
    """Forward, cross-entropy, backward and SGD step on fixed batches; nothing is drawn, cut or fetched."""
    network = create_model(student, num_classes=100, seed=0)
    compute.place(network)
    network.train()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    images = torch.randn(passes, 64, 3, 32, 32, device=compute.device)
    batches = [batch.contiguous(memory_format=torch.channels_last) for batch in images]
    labels = torch.randint(0, 100, (64 * passes,), device=compute.device)

    def run() -> None:
        for _ in range(steps):
            with compute.autocast():
                logits = torch.cat([network(batch) for batch in batches])
            optimizer.zero_grad(set_to_none=True)
            F.cross_entropy(logits.float(), labels).backward()
            optimizer.step()
        compute.synchronise()

    return run


def train_steps(trainer: Trainer, steps: int) -> None:
    trainer.state.student.train()
    for _ in range(steps):
        trainer.train_step()
    trainer.data.compute.synchronise()


if __name__ == "__main__":
    main()
