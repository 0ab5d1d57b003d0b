"""`ckd-pipeline run`."""

from __future__ import annotations

from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

import click

from experiments.commands.options import engine_options, worker_options
from experiments.engines.contract import Engine
from experiments.engines.local import default_jobs
from experiments.engines.ray_runs import RayEngine
from experiments.estimate import Estimate, estimate
from experiments.execution import ExecutionConfig, Outcome, execute
from experiments.grid_file import read_grid
from ground.errors import InvalidInput, suggested
from ground.options import RunFolderPath, allow_code_option, json_option
from ground.terminal import plain, print_json, print_table, say
from ground.user_code import UserCode


@click.command("run")
@click.argument("grid", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--out", type=RunFolderPath(), help="Its folder.  [default: results/NAME]")
@worker_options
@engine_options
@allow_code_option
@click.option("--dry-run", is_flag=True, help="Say what it would cost; call, train, write and import nothing.")
@json_option
def run_command(
    grid: Path,
    out: Path | None,
    jobs: int | None,
    allow_code: bool,
    dry_run: bool,
    as_json: bool,
    **settings: Any,
) -> None:
    """Run a grid of experiments: GRID is a YAML file that docs/pipeline.md describes.

    The same command again goes on with what is left, or does nothing; a grid with more methods, seeds or values of n
    runs what is new.

    \b
    ckd-pipeline run grids/smoke.yaml --dry-run
    ckd-pipeline run grids/smoke.yaml

    Exit status: 0 done, 1 a run failed, 2 bad usage or bad input, 3 refused by budget, 130 interrupted.
    """
    engine = _engine_of(settings, jobs)
    read = read_grid(grid, UserCode.UNSEEN if dry_run else UserCode.of(allowed=allow_code))
    config = ExecutionConfig(
        out=Path("results") / read.name if out is None else out,
        jobs=jobs or default_jobs(settings["device"]),
        engine=engine,
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


def _engine_of(settings: dict[str, Any], jobs: int | None) -> Engine | None:
    """Where students are to be trained, from what `engine_options` gave, which is taken out; None for here.

    Raises:
        InvalidInput: options that mean nothing together.
    """
    engine = settings.pop("engine")
    said = {name: settings.pop(name) for name in ("ray_address", "cpus_per_run", "gpus_per_run")}
    if engine == "local":
        for name, value in said.items():
            if value is not None:
                raise InvalidInput(f"--{name.replace('_', '-')} is for --engine ray, which is not asked for; add it")
        return None
    cpus = 1.0 if said["cpus_per_run"] is None else said["cpus_per_run"]
    ray = RayEngine(jobs=jobs, address=said["ray_address"], cpus=cpus, gpus=said["gpus_per_run"])
    ray.check(settings["device"])
    return ray


def _print_estimate(expected: Estimate, config: ExecutionConfig) -> None:
    print_table(("method", "runs"), expected.by_method.items())
    least = "" if expected.bounded else "at least "
    ending = (
        f"{least}{expected.evaluations} evaluations, at least {_span(expected.student_seconds)} with {config.jobs} at "
        "a time (bare student steps; losses add to it)"
    )
    say(
        f"{config.out}: {expected.runs} runs, {expected.finished} of them finished\n"
        f"teacher calls: {expected.calls} in all{_samples(expected)}, {expected.new_calls} of them still to be paid\n"
        f"  a sample of its own for each n would take {expected.calls_without_nesting}, and each run calling the "
        f"teacher for itself at least {expected.calls_without_store}\n"
        f"time: {_span(expected.teacher_seconds)} of teacher calls; students: {ending}\n"
        f"disk: {expected.bytes / 1e6:.0f} MB"
    )
    for name in expected.unchecked:
        say(
            f"{name} is not checked: a dry run imports no code of yours; it is taken to need the logits of both "
            "networks, and its runs count as not finished"
        )
    say("nothing was called, trained or written")


def _samples(expected: Estimate) -> str:
    return f" for {expected.samples} samples of images, each a store of its own" if expected.samples > 1 else ""


def _span(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


def _print_outcome(outcome: Outcome, out: Path) -> None:
    say(
        f"{out}: {outcome.runs} runs, {outcome.found} found finished, {outcome.trained} trained, "
        f"{len(outcome.failed)} failed; {outcome.new_calls} new teacher calls"
    )
    for run, reason in outcome.failed.items():
        say(plain(f"failed: {run}: {reason}"))
    if outcome.failed:
        say("train them again with --retry")
    say(f"{out / 'results.csv'} has a row a run; see also: {suggested('ckd-pipeline report', out)}")
