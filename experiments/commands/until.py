"""`ckd-pipeline until`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from experiments.commands.options import training_options, worker_options
from experiments.engines.local import default_jobs
from experiments.execution import ExecutionConfig
from experiments.until import Purchase, Step, until, until_grid
from ground.geometry import MAX_INPUT_SIZE
from ground.options import NumberRange, RunFolderPath, json_option, setting_option
from ground.terminal import note, print_json, say
from student_train.train_config import TrainConfig


@click.command("until")
@click.option("--target", type=NumberRange(0, 1, min_open=True, max_open=True), required=True, help="Accuracy.")
@click.option("--step", type=click.IntRange(min=2), required=True, help="Training images to buy at a time.")
@click.option("--budget", type=click.IntRange(min=2), required=True, help="Most teacher calls to spend.")
@click.option("--teacher", default="wrn40_2", show_default=True)
@click.option("--student", default="wrn16_2", show_default=True)
@click.option("--method", default="ckd", show_default=True, help="As for ckd-train --method.")
@click.option("--dataset", default="cifar100", show_default=True, help="As for ckd-cache build.")
@click.option("--data-root", type=click.Path(path_type=Path, file_okay=False), help="Where named data sets lie.")
@click.option("--weights", type=click.Path(path_type=Path, dir_okay=False), help="Of the teacher.")
@click.option("--trust-teacher", is_flag=True, help="As for ckd-cache build.")
@click.option("--seeds", type=click.IntRange(1, 1000), default=3, show_default=True, help="Students at each step.")
@click.option(
    "--select",
    default="random",
    show_default=True,
    help="Rule that chooses what is bought, as for ckd-cache build; {METHOD} in it stands for the students so far.",
)
@click.option(
    "--rest",
    multiple=True,
    help="What becomes of images that are not bought: all keeps them, at no call, and begins with what their labels "
    "alone give; a loss also learns from them beside calls, as for ckd-train.",
)
@click.option(
    "--min-gain",
    type=NumberRange(0, 1),
    default=0.0,
    show_default=True,
    help="Stop where the next step is expected to gain less validation accuracy.",
)
@click.option("--student-size", type=click.IntRange(1, MAX_INPUT_SIZE), help="As for ckd-train.")
@setting_option(TrainConfig, "lr", multiple=True, help="Of several, validation chooses at each step.")
@training_options
@click.option("--out", type=RunFolderPath(), default=Path("results/until"), show_default=True)
@worker_options
@json_option
def until_command(
    target: float,
    step: int,
    budget: int,
    min_gain: float,
    out: Path,
    jobs: int | None,
    retry: bool,
    device: str,
    precision: str,
    as_json: bool,
    **asked: Any,
) -> None:
    """Ask how many teacher calls an accuracy takes: buy them in steps, train, and stop when it is reached.

    The mean over the seeds of the best validation accuracy decides. With --rest it begins with labels alone, buys
    nothing where those are enough, and says what the calls of each step brought beyond them. The same command again
    goes on; with a larger budget it goes further, and no call is made twice.

    \b
    ckd-pipeline until --target 0.50 --step 400 --budget 6400 --method ckd
    ckd-pipeline until --target 0.50 --step 400 --budget 6400 --method kd --rest ce

    Exit status: 0 reached, 1 not reached within the budget, or with --min-gain, 2 bad usage or bad input, 3 refused by
    budget, 130 interrupted.
    """
    grid = until_grid(**asked)
    config = ExecutionConfig(
        out=out, jobs=jobs or default_jobs(device), retry=retry, device=device, precision=precision
    )
    answer = until(
        grid,
        config,
        target=target,
        step=step,
        budget=budget,
        min_gain=min_gain,
        on_step=lambda step: note(_told(step)),
    )
    if as_json:
        print_json(answer.document())
    else:
        _print_answer(answer, out)
    if not answer.reached:
        raise SystemExit(1)


def shown(step: Step) -> str:
    """A step in one line."""
    deviation = "" if step.val_std is None else f" ± {step.val_std:.4f}"
    bought = f"{step.new_calls} new" if step.n else f"labels alone, of {step.labelled_rows} images"
    return (
        f"n={step.n}: {step.calls} calls ({bought}), validation {step.val_accuracy:.4f}{deviation}, "
        f"test {step.test_accuracy:.4f}{_shown_gain(step)}"
    )


def _shown_gain(step: Step) -> str:
    gain = step.expected
    if gain is None:
        return ""
    return f"; the next step is expected to bring {gain.mean:+.4f} ({gain.low:+.4f} to {gain.high:+.4f})"


def _told(step: Step) -> str:
    """The same as soon as it is there, with what its calls brought beyond labels alone."""
    return shown(step) if step.beyond is None else f"{shown(step)}\n  {step.beyond.sentence}"


def _print_answer(answer: Purchase, out: Path) -> None:
    for step in answer.steps:
        say(_told(step))
    say(_verdict(answer))
    if answer.labels_alone is None:
        say("what labels alone give was not looked at; --rest ce, or --rest all, begins with that, at no call")
    say(f"every run is in {out / 'results.csv'}")


def _verdict(answer: Purchase) -> str:
    last = answer.steps[-1]
    at = f"validation {last.val_accuracy:.4f}{_beside_labels(answer)}"
    if answer.reached and not last.n:
        return f"{answer.target:g} is reached by labels alone: {at}; nothing is bought"
    with_calls = f"with {answer.calls} teacher calls"
    if answer.reached:
        return f"{answer.target:g} is reached {with_calls}: {at}"
    if answer.stopped:
        why = ", and another step is expected to bring less than --min-gain"
    else:
        why = f"; another step does not fit the budget of {answer.budget}, or there are no more images"
    return f"{answer.target:g} is not reached {with_calls} ({at}){why}"


def _beside_labels(answer: Purchase) -> str:
    """What labels alone are at, beside steps that were bought."""
    alone = answer.labels_alone
    return "" if alone is None or len(answer.steps) == 1 else f", of labels alone {alone.val_accuracy:.4f}"
