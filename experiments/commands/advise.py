"""`ckd-cache advise`. It trains students and calls teachers, so it is here, above both stages."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

import click

from analysis.advice import Advice, Measured, Point, Prospect, signed
from analysis.expectation import Expected
from experiments.advise import ADVICE_FILE, Answer, Question, advice_grid, advise, foresee
from experiments.commands.options import training_options, worker_options
from experiments.engines.local import default_jobs
from experiments.estimate import Estimate
from experiments.execution import ExecutionConfig
from ground.options import NumberRange, RunFolderPath, json_option, setting_option
from ground.terminal import note, print_json, print_table, say
from student_train.train_config import TrainConfig


@click.command("advise")
@click.option("--teacher", required=True, help="As for build.")
@click.option("--dataset", required=True, help="As for build.")
@click.option("--out", type=RunFolderPath(), required=True, help="Folder of the pilot, its students and the advice.")
@click.option("--n", type=click.IntRange(min=2), default=1600, show_default=True, help="Calls to think of buying.")
@click.option("--pilot", type=click.IntRange(min=0), default=200, show_default=True, help="Calls to find out with.")
@click.option(
    "--gain",
    type=NumberRange(0, 1, max_open=True),
    default=0.01,
    show_default=True,
    help="Accuracy that calls have to bring beyond labels.",
)
@click.option("--student", default="wrn16_2", show_default=True)
@click.option("--student-size", type=click.IntRange(min=1), help="As for ckd-train.")
@click.option("--method", default="kd", show_default=True, help="As for ckd-train.")
@click.option("--loss", "losses", multiple=True, help="In its place, as for ckd-train; repeatable.")
@click.option(
    "--rest",
    default="ce",
    show_default=True,
    help="How labels teach beside calls; of ce:weight=auto, validation chooses.",
)
@click.option("--seeds", type=click.IntRange(1, 1000), default=3, show_default=True, help="Students at each point.")
@click.option("--weights", type=click.Path(path_type=Path, dir_okay=False), help="Of the teacher.")
@click.option("--data-root", type=click.Path(path_type=Path, file_okay=False), help="Where named data sets lie.")
@click.option("--image-size", type=click.IntRange(8, 1024), help="As for build.")
@click.option("--split", help="As for build.")
@click.option("--split-seed", type=click.IntRange(0, 2**40), default=0, show_default=True, help="As for build.")
@click.option("--trust-teacher", is_flag=True, help="As for build.")
@setting_option(TrainConfig, "lr", multiple=True, help="Of several, validation chooses at each point.")
@training_options
@worker_options
@click.option("--dry-run", is_flag=True, help="Say what it would call and train; call, train and write nothing.")
@json_option
def advise_command(
    n: int,
    pilot: int,
    gain: float,
    out: Path,
    jobs: int | None,
    retry: bool,
    device: str,
    precision: str,
    dry_run: bool,
    as_json: bool,
    **asked: Any,
) -> None:
    """Say whether calls are worth paying for, from labels alone and a pilot of a few calls.

    First students are trained on all labels, which costs no call; --pilot 0 stops there. Then so many calls as --pilot
    says are bought, no more, and students trained on them, with and without the labels of the other images. The verdict
    is to buy about so many, not to buy, or that it cannot be told yet. The same command again goes on with what is
    left, or says it again.

    \b
    ckd-cache advise --teacher wrn40_2 --dataset imagefolder:photos --n 1600 --out advice

    Exit status: 0 advised, whatever the verdict, 2 bad usage or bad input, 3 refused by budget, 130 interrupted.
    """
    question = Question(n=n, pilot=pilot, worth=gain)
    grid = advice_grid(**asked)
    config = ExecutionConfig(
        out=out, jobs=jobs or default_jobs(device), retry=retry, device=device, precision=precision
    )
    if dry_run:
        expected = foresee(grid, config, question)
        print_json(expected.document()) if as_json else _print_estimate(expected, config)
        return
    answer = advise(grid, config, question, on_labels=lambda alone: note(f"labels alone: {_measured(alone)} %"))
    print_json(answer.document()) if as_json else _print_answer(answer, out)


def _print_estimate(expected: Estimate, config: ExecutionConfig) -> None:
    print_table(("learned from", "students"), expected.by_method.items())
    least = "" if expected.bounded else "at least "
    say(
        f"{config.out}: {expected.runs} students, {expected.finished} of them trained\n"
        f"teacher calls: {expected.calls}, {expected.new_calls} of them still to be paid\n"
        f"time: {_span(expected.teacher_seconds)} of teacher calls; students: {least}{expected.evaluations} "
        f"evaluations, at least {_span(expected.student_seconds)} with {config.jobs} at a time\n"
        f"disk: {expected.bytes / 1e6:.0f} MB\n"
        "nothing was called, trained or written"
    )


def _span(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


def _print_answer(answer: Answer, out: Path) -> None:
    advice = answer.advice
    beyond = "the pilot" if advice.labels_alone is None else "labels alone"
    print_table(("n", "calls alone, %", "calls and labels, %", f"beyond {beyond}, points"), _rows(advice))
    say("\n".join(answer.sentences()))
    say(f"{answer.calls_made} calls were made, {answer.new_calls} of them now; {out / ADVICE_FILE} has all figures")


def _rows(advice: Advice) -> Iterator[Sequence[str | None]]:
    """Test accuracies that were measured, and those that are expected."""
    if advice.labels_alone is not None:
        yield "0", None, f"{_measured(advice.labels_alone)} (labels alone, of {advice.labelled} images)", None
    for n, point in advice.measured.items():
        yield str(n), *_cells_of_point(point)
    for n, prospect in advice.expected.items():
        yield f"{n}, expected", *_cells_of_prospect(prospect)


def _cells_of_point(point: Point) -> tuple[str | None, ...]:
    both = None if point.calls_and_labels is None else _measured(point.calls_and_labels)
    return _measured(point.calls_alone), both, None if point.gain is None else signed(point.gain)


def _cells_of_prospect(prospect: Prospect) -> tuple[str | None, ...]:
    both = None if prospect.calls_and_labels is None else _interval(prospect.calls_and_labels)
    return _interval(prospect.calls_alone), both, _interval(prospect.gain, signed)


def _measured(found: Measured) -> str:
    deviation = "" if found.std is None else f" ± {_share(found.std)}"
    return f"{_share(found.mean)}{deviation}"


def _share(accuracy: float) -> str:
    return f"{100 * accuracy:.1f}"


def _interval(expected: Expected, shown: Callable[[float], str] = _share) -> str:
    mean, low, high = map(shown, asdict(expected).values())
    return f"{mean} ({low} to {high})"
