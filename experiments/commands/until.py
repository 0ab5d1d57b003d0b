"""`ckd-pipeline until`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from experiments.commands.options import training_options, worker_options
from experiments.engines.local import default_jobs
from experiments.execution import ExecutionConfig
from experiments.grid import single_grid
from experiments.until import Purchase, Step, until
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
    "--min-gain",
    type=NumberRange(0, 1),
    default=0.0,
    show_default=True,
    help="Stop where the next step is expected to gain less validation accuracy.",
)
@click.option("--student-size", type=click.IntRange(1, MAX_INPUT_SIZE), help="As for ckd-train.")
@setting_option(TrainConfig, "lr")
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

    The mean over the seeds of the best validation accuracy decides. The same command again goes on; with a larger
    budget it goes further, and no call is made twice.

    \b
    ckd-pipeline until --target 0.50 --step 400 --budget 6400 --method ckd

    Exit status: 0 reached, 1 not reached within the budget, or with --min-gain, 2 bad usage or bad input, 3 refused by
    budget, 130 interrupted.
    """
    grid = single_grid(**asked)
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
        on_step=lambda step: note(shown(step)),
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
    return (
        f"n={step.n}: {step.calls} calls ({step.new_calls} new), validation {step.val_accuracy:.4f}{deviation}, "
        f"test {step.test_accuracy:.4f}{_shown_gain(step)}"
    )


def _shown_gain(step: Step) -> str:
    gain = step.expected
    if gain is None:
        return ""
    return f"; the next step is expected to bring {gain.mean:+.4f} ({gain.low:+.4f} to {gain.high:+.4f})"


def _print_answer(answer: Purchase, out: Path) -> None:
    for step in answer.steps:
        say(shown(step))
    last = answer.steps[-1]
    if answer.reached:
        say(f"{answer.target:g} is reached with {answer.calls} teacher calls: validation {last.val_accuracy:.4f}")
    elif answer.stopped:
        say(
            f"{answer.target:g} is not reached with {answer.calls} teacher calls (validation {last.val_accuracy:.4f}), "
            "and another step is expected to bring less than --min-gain"
        )
    else:
        say(
            f"{answer.target:g} is not reached with {answer.calls} teacher calls (validation {last.val_accuracy:.4f}); "
            f"another step does not fit the budget of {answer.budget}, or there are no more images"
        )
    say(f"every run is in {out / 'results.csv'}")
