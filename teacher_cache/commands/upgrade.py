"""`ckd-cache upgrade`."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path

import click

from ground.errors import InvalidInput
from ground.options import StoreFolder, json_option
from ground.terminal import print_json, say
from teacher_cache.commands.options import ledger_option, ledger_url_of
from teacher_cache.upgrade import UpgradeReport, upgrade_ledger
from teacher_cache.upgrade import upgrade as run_upgrade


@click.command()
@click.option("--store", type=StoreFolder(), help="Folder of the store; none for a ledger by itself.")
@click.option(
    "--weights",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Of the store's teacher, to keep its last layer too.",
)
@ledger_option
@click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing.")
@json_option
def upgrade(store: Path | None, weights: Path | None, url: str | None, dry_run: bool, as_json: bool) -> None:
    """Bring a store of an older format, and its ledger, up to the current one, in place; no call is made.

    The step is recorded in the store's history and in its ledger. It can be stopped at any moment: the store is then
    the old one or the new one, and the same command finishes. Without --store, a ledger that stores share is brought up
    by itself.

    \b
    ckd-cache upgrade --store stores/wrn40_2 --weights teachers/cifar100/wrn_40_2.safetensors
    """
    if store is None:
        _upgrade_ledger(url or os.environ.get("CKD_LEDGER") or None, weights, dry_run=dry_run, as_json=as_json)
        return
    report = run_upgrade(store, ledger_url=ledger_url_of(store, url), weights=weights, act=not dry_run)
    if as_json:
        print_json({**asdict(report), "store": str(store)})
    else:
        say(f"{store}: {_text(report)}")


def _upgrade_ledger(url: str | None, weights: Path | None, *, dry_run: bool, as_json: bool) -> None:
    if url is None:
        raise InvalidInput("say what to bring up: give --store DIR, or --ledger URL for a ledger by itself")
    if weights is not None:
        raise InvalidInput("a ledger has no teacher's weights; give --store DIR, or leave --weights out")
    report = upgrade_ledger(url, act=not dry_run)
    if as_json:
        print_json(asdict(report))
    elif report.from_schema == report.schema:
        say(f"the ledger at {report.ledger} is of schema {report.schema} already; nothing to do")
    else:
        done = "was brought up" if report.done else "would be brought up; nothing was changed"
        say(f"the ledger at {report.ledger} {done} (schema {report.from_schema} to {report.schema})")


def _text(report: UpgradeReport) -> str:
    if not (report.manifests or report.has_older_ledger):
        unseen = "" if report.from_schema is not None else "; a shared ledger is brought up with --ledger URL"
        return f"is of format {report.version} already; nothing to do{unseen}"
    steps = []
    if report.from_version != report.version:
        steps.append(f"format {report.from_version} to {report.version}")
    elif report.manifests and not report.parameters:
        steps.append("its extension that was not finished")
    if report.parameters:
        steps.append(f"kept of the teacher: {', '.join(report.parameters)}")
    if report.has_older_ledger:
        steps.append(f"ledger schema {report.from_schema} to {report.schema}")
    done = "upgraded" if report.done else "would be upgraded; nothing was changed"
    return f"{done} ({'; '.join(steps)})"
