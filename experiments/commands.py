"""`ckd-pipeline run`, `status`, `report`: parse, call, print."""

from __future__ import annotations

import os
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

import click
import pandas as pd

from analysis.curves import accuracy_by_n
from analysis.results import collect, states
from experiments.estimate import Estimate, estimate
from experiments.execution import ExecutionConfig, Outcome, execute
from experiments.grid import read_grid, single_grid
from experiments.until import Answer, Step, until
from ground.terminal import print_json, print_table, stderr
from models.compute import PRECISIONS, Compute

_JOBS_ON_A_GPU = 4

_json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")


def worker_options(command: Any) -> Any:
    """--jobs, --retry, --device, --precision."""
    options = (
        click.option("--jobs", type=click.IntRange(1, 256), help="Students at the same time.  [default: one a core]"),
        click.option("--retry", is_flag=True, help="Train again what failed before."),
        click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, ..."),
        click.option("--precision", type=click.Choice(("auto", *PRECISIONS)), default="auto", show_default=True),
    )
    for option in reversed(options):
        command = option(command)
    return command


def default_jobs(device: str) -> int:
    """A core for each student on a CPU; a few students share a GPU."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, _JOBS_ON_A_GPU) if Compute.choose(device).device.type != "cpu" else cores


@click.command("run")
@click.argument("grid", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Its folder.  [default: results/NAME]")
@worker_options
@click.option("--dry-run", is_flag=True, help="Say what it would cost; call, train and write nothing.")
@_json_option
def run_command(grid: Path, out: Path | None, jobs: int | None, dry_run: bool, as_json: bool, **settings: Any) -> None:
    """Run a grid of experiments: GRID is a YAML file that docs/pipeline.md describes.

    The same command again goes on with what is left, or does nothing; a grid with more methods, seeds or values of n
    runs what is new.

    \b
    ckd-pipeline run grids/smoke.yaml --dry-run
    ckd-pipeline run grids/smoke.yaml

    Exit status: 0 done, 1 a run failed, 2 bad usage or bad input, 3 refused by budget, 130 interrupted.
    """
    read = read_grid(grid)
    config = ExecutionConfig(
        out=Path("results") / read.name if out is None else out,
        jobs=jobs or default_jobs(settings["device"]),
        **settings,
    )
    if dry_run:
        expected = estimate(read, config)
        print_json(expected.document()) if as_json else _print_estimate(expected, config)
        return
    outcome = execute(read, config)
    print_json(asdict(outcome)) if as_json else _print_outcome(outcome, config.out)
    if outcome.failed:
        raise SystemExit(1)


@click.command("status")
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@_json_option
def status_command(folder: Path, as_json: bool) -> None:
    """Say how far the grid in FOLDER is, while it runs or after; nothing is written."""
    results, runs = collect(folder), states(folder)
    counts = {state: int((runs["state"] == state).sum()) for state in ("finished", "failed", "begun", "waiting")}
    failed = runs[runs["state"] == "failed"]
    means = accuracy_by_n(results)
    if as_json:
        failures = dict(zip(failed["run"], failed["error"], strict=True))
        print_json({"runs": len(runs), **counts, "failures": failures, "accuracy": _records(means)})
        return
    click.echo(f"{folder}: {len(runs)} runs, " + ", ".join(f"{count} {state}" for state, count in counts.items()))
    for run, error in zip(failed["run"], failed["error"], strict=True):
        click.echo(f"failed: {run}: {error}")
    if len(means):
        print_table(
            ("teacher", "student", "method", "n", "test accuracy", "deviation", "seeds"),
            (
                (r.teacher, r.student, r.label, r.n, f"{r.mean:.4f}", f"{r.std:.4f}" if r.seeds > 1 else None, r.seeds)
                for r in means.itertuples()
            ),
        )


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows for JSON, which has no NaN."""
    rows: list[dict[str, Any]] = table.astype(object).where(table.notna(), None).to_dict("records")
    return rows


@click.command("report")
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
def report_command(folder: Path) -> None:
    """Write FOLDER/report.html, one page that needs no network, with its tables and figures beside it in report/."""
    from analysis.report import write_report  # the drawing library takes a second to load

    summary = write_report(folder)
    click.echo(f"{summary.page}: {summary.finished} of {summary.planned} runs")
    for sentence in summary.missing:
        click.echo(f"missing: {sentence}")


@click.command("until")
@click.option("--target", type=click.FloatRange(0, 1, min_open=True, max_open=True), required=True, help="Accuracy.")
@click.option("--step", type=click.IntRange(min=2), required=True, help="Training images to buy at a time.")
@click.option("--budget", type=click.IntRange(min=2), required=True, help="Most teacher calls to spend.")
@click.option("--teacher", default="wrn40_2", show_default=True)
@click.option("--student", default="wrn16_2", show_default=True)
@click.option("--method", default="ckd", show_default=True, help="As for ckd-train --method.")
@click.option("--dataset", default="cifar100", show_default=True, help="As for ckd-cache build.")
@click.option("--data-root", type=click.Path(path_type=Path, file_okay=False), help="Where named data sets lie.")
@click.option("--weights", type=click.Path(path_type=Path, dir_okay=False), help="Of the teacher.")
@click.option("--seeds", type=click.IntRange(1, 1000), default=3, show_default=True, help="Students at each step.")
@click.option("--lr", type=float, default=0.05, show_default=True)
@click.option("--patience", type=int, default=50, show_default=True, help="Evaluations without progress to a plateau.")
@click.option("--max-evals", type=int, help="Stop each student after this many evaluations.")
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), default=Path("results/until"), show_default=True
)
@worker_options
@_json_option
def until_command(
    target: float,
    step: int,
    budget: int,
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

    Exit status: 0 reached, 1 not reached within the budget, 2 bad usage or bad input, 3 refused by budget,
    130 interrupted.
    """
    grid = single_grid(**asked)
    config = ExecutionConfig(
        out=out, jobs=jobs or default_jobs(device), retry=retry, device=device, precision=precision
    )
    answer = until(
        grid, config, target=target, step=step, budget=budget, on_step=lambda step: stderr.print(shown(step))
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
        f"test {step.test_accuracy:.4f}"
    )


def _print_answer(answer: Answer, out: Path) -> None:
    for step in answer.steps:
        click.echo(shown(step))
    last = answer.steps[-1]
    if answer.reached:
        click.echo(
            f"{answer.target:g} is reached with {answer.calls} teacher calls: validation {last.val_accuracy:.4f}"
        )
    else:
        click.echo(
            f"{answer.target:g} is not reached with {answer.calls} teacher calls (validation {last.val_accuracy:.4f}); "
            f"another step does not fit the budget of {answer.budget}, or there are no more images"
        )
    click.echo(f"every run is in {out / 'results.csv'}")


def _print_estimate(expected: Estimate, config: ExecutionConfig) -> None:
    print_table(("method", "runs"), expected.by_method.items())
    least = "" if expected.bounded else "at least "
    ending = (
        f"{least}{expected.evaluations} evaluations, at least {_span(expected.student_seconds)} with {config.jobs} at "
        "a time (bare student steps; losses add to it)"
    )
    click.echo(
        f"{config.out}: {expected.runs} runs, {expected.finished} of them finished\n"
        f"teacher calls: {expected.calls} in all, {expected.new_calls} of them still to be paid\n"
        f"  a sample of its own for each n would take {expected.calls_without_nesting}, and each run calling the "
        f"teacher for itself at least {expected.calls_without_store}\n"
        f"time: {_span(expected.teacher_seconds)} of teacher calls; students: {ending}\n"
        f"disk: {expected.bytes / 1e6:.0f} MB\n"
        "nothing was called, trained or written"
    )


def _span(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


def _print_outcome(outcome: Outcome, out: Path) -> None:
    click.echo(
        f"{out}: {outcome.runs} runs, {outcome.found} found finished, {outcome.trained} trained, "
        f"{len(outcome.failed)} failed; {outcome.new_calls} new teacher calls"
    )
    for run, reason in outcome.failed.items():
        click.echo(f"failed: {run}: {reason}")
    if outcome.failed:
        click.echo("train them again with --retry")
    click.echo(f"{out / 'results.csv'} has a row a run; see also: ckd-pipeline report {out}")
