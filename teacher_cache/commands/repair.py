"""`ckd-cache repair`."""

from __future__ import annotations

import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path

import click

from ground.options import json_option
from ground.terminal import print_json, say
from storage.store import Store
from teacher_cache.commands.options import accept_rollback_option, ledger_option, ledger_url_of, store_option
from teacher_cache.repair import RepairReport
from teacher_cache.repair import repair as run_repair

_SHOWN = 10


@click.command()
@store_option
@click.option(
    "--from",
    "copy",
    type=click.Path(path_type=Path, file_okay=False),
    help="A copy of the store, to take answers from.",
)
@ledger_option
@accept_rollback_option
@click.option(
    "--only-copy",
    is_flag=True,
    help="No other folder holds this store: give up, too, what it asked for from another place.",
)
@click.option("--yes", is_flag=True, help="Do it; otherwise it is shown, and asked about on a terminal.")
@json_option
def repair(
    store: Path,
    copy: Path | None,
    url: str | None,
    accept_rollback: bool,
    only_copy: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Show what is damaged in a store and can be put right, then do it.

    Deletes what killed writers left, settles calls of builds that stopped, and restores answers that are still
    somewhere. An answer that is nowhere is dropped and its call marked lost: the next build makes it again. What is
    whole is never touched, and a call that was made from another folder is not given up without --only-copy.

    Exit status: 0 nothing is left to do, 1 something is: it was not confirmed, or cannot be repaired.
    """
    url = ledger_url_of(store, url)
    look = partial(run_repair, store, ledger_url=url, copy=copy, accept_rollback=accept_rollback, only_copy=only_copy)
    report = look(act=False)
    done = False
    if not report.is_empty:
        if not as_json or not yes:
            say(_text(report), err=as_json)
        if yes or (sys.stdin.isatty() and click.confirm("do that?", err=True)):
            report, done = look(act=True), True
    if as_json:
        print_json({"store": str(store), "done": done or report.is_empty, **asdict(report)})
    else:
        _conclude(store, report, done=done)
    sys.exit(1 if report.left or not (done or report.is_empty) else 0)


def _conclude(store: Path, report: RepairReport, *, done: bool) -> None:
    for line in report.left:
        say(f"left: {line}")
    if report.is_empty:
        say(f"{store}: nothing to repair")
    elif not done:
        say("nothing was changed; give the same command with --yes to do it")
    elif report.dropped or report.revoked:
        found = Store.open(store)
        say(
            f"repaired; call the teacher again on what was given up ({len(report.revoked)} calls), with: "
            f"{found.build_command(found.manifest.n)}"
        )
    else:
        say("repaired")


def _text(report: RepairReport) -> str:
    lines: dict[str, list[str] | list[int]] = {
        "take the mark of a program that did not close them from": report.left_open,
        "delete": report.files,
        "make again, empty": report.made_again,
        "end the lease of a builder that is no more": report.leases,
        "restore cells whose answers are there": report.restored,
        "drop cells that do not hold what the teacher said": report.dropped,
        "mark calls lost whose answers are nowhere": report.revoked,
    }
    text = [f"{what}: {_some(items)}" for what, items in lines.items() if items]
    if report.rollback:
        text.insert(0, f"accept, and record in the ledger: {report.rollback}")
    if report.adopted or report.lost:
        text.append(f"settle calls of a build that stopped: {report.adopted} whole, {report.lost} lost")
    return "\n".join(text)


def _some(items: list[str] | list[int]) -> str:
    shown = ", ".join(str(item) for item in items[:_SHOWN])
    return shown if len(items) <= _SHOWN else f"{shown}, ... ({len(items)} in all)"
