"""Options that several commands share, so that they read and mean the same everywhere."""

from __future__ import annotations

from typing import Any

import click

from ground.options import NumberRange, device_option, precision_option, setting_option
from models.names import CALL_PRECISIONS, PRECISIONS
from student_train.protocol import ProtocolConfig


def engine_options(command: Any) -> Any:
    """--engine, --ray-address, --cpus-per-run, --gpus-per-run."""
    options = (
        click.option(
            "--engine",
            type=click.Choice(("local", "ray")),
            default="local",
            show_default=True,
            help="Where students are trained: here, or on a Ray cluster.",
        ),
        click.option(
            "--ray-address",
            help="Of a Ray cluster, or auto for this machine's.  [default: $RAY_ADDRESS, or one of this machine alone]",
        ),
        click.option("--cpus-per-run", type=NumberRange(min=0), help="Of a node, for each student.  [default: 1]"),
        click.option(
            "--gpus-per-run",
            type=NumberRange(min=0),
            help="For each student, as 0.25 or 1.  [default: 0.25 where the cluster has any]",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


def worker_options(command: Any) -> Any:
    """--jobs, --retry, --device, --precision."""
    options = (
        click.option(
            "--jobs",
            type=click.IntRange(1, 256),
            help="Students at the same time.  [default: one a core, or what a Ray cluster holds]",
        ),
        click.option("--retry", is_flag=True, help="Train again what failed before."),
        device_option,
        precision_option(PRECISIONS, refused=CALL_PRECISIONS),
    )
    for option in reversed(options):
        command = option(command)
    return command


def training_options(command: Any) -> Any:
    """--patience, --max-evals, --steps-per-eval, --schedule: of each student that the command trains."""
    options = (
        setting_option(ProtocolConfig, "patience", help="Evaluations without progress to a plateau."),
        click.option("--max-evals", type=int, help="Stop each student after this many evaluations."),
        click.option("--steps-per-eval", type=int, help="Steps between evaluations.  [default: once through the rows]"),
        setting_option(ProtocolConfig, "schedule", help="Of the learning rate, as for ckd-train."),
    )
    for option in reversed(options):
        command = option(command)
    return command
