"""`ckd-cache train-teacher`."""

from __future__ import annotations

from pathlib import Path

import click

from ground.errors import InvalidInput
from ground.options import json_option, setting_option
from ground.terminal import print_json, progress, say
from models import canonical_name
from models.compute import Compute
from teacher_cache.commands.options import compute_options, dataset_options
from teacher_cache.datasets import open_dataset
from teacher_cache.teacher_training import TrainingConfig, require_new_file
from teacher_cache.teacher_training import train_teacher as run_training
from teacher_cache.teachers.weights import default_weights


@click.command()
@click.option("--teacher", required=True, help="Network, for instance wrn40_2.")
@dataset_options
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    help="safetensors file to write.  [default: where build looks for it]",
)
@setting_option(TrainingConfig, "epochs")
@setting_option(TrainingConfig, "lr", help="First learning rate.")
@click.option("--decay-epochs", help="Divide it by 10 after these, as 150,180,210.  [default: 5/8, 3/4, 7/8 of all]")
@setting_option(TrainingConfig, "momentum")
@setting_option(TrainingConfig, "weight_decay")
@setting_option(TrainingConfig, "batch_size")
@click.option("--seed", type=click.IntRange(0, 2**40), default=0, show_default=True)
@compute_options("bf16 where the device is fast at it, else fp32")
@json_option
def train_teacher(
    teacher: str,
    dataset: str,
    data_root: Path | None,
    image_size: int | None,
    split: str | None,
    split_seed: int,
    download: bool,
    rehash: bool,
    out: Path | None,
    epochs: int,
    lr: float,
    decay_epochs: str | None,
    momentum: float,
    weight_decay: float,
    batch_size: int,
    seed: int,
    device: str,
    precision: str,
    as_json: bool,
) -> None:
    """Train a teacher on a data set's labels; an interrupted training goes on where it stopped.

    \b
    ckd-cache train-teacher --teacher wrn40_2 --dataset cifar100
    """
    config = TrainingConfig(
        teacher=teacher,
        epochs=epochs,
        lr=lr,
        decay_epochs=_epoch_list(decay_epochs),
        momentum=momentum,
        weight_decay=weight_decay,
        batch_size=batch_size,
        seed=seed,
    )
    compute = Compute.choose(device, precision)
    canonical_name(teacher)  # an unknown name is refused before any image is read
    images = open_dataset(
        dataset,
        data_root=data_root,
        image_size=image_size,
        download=download,
        split=split,
        split_seed=split_seed,
        rehash=rehash,
    )
    path = default_weights(teacher, images) if out is None else out
    require_new_file(path)
    with progress(f"{teacher}: epochs", epochs) as advance:
        report = run_training(config, images, path, compute, advance)
    accuracy = report["test_accuracy"]
    print_json({**report, "out": str(path)}) if as_json else say(f"{path}: test accuracy {accuracy:.4f}")


def _epoch_list(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise InvalidInput(f"--decay-epochs takes whole numbers with commas between, got {text!r}") from error
