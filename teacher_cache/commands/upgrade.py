"""`ckd-cache upgrade`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from ground.options import json_option
from ground.terminal import print_json, say
from teacher_cache.commands.options import ledger_option, ledger_url_of, store_option
from teacher_cache.upgrade import UpgradeReport
from teacher_cache.upgrade import upgrade as run_upgrade


@click.command()
@store_option
@click.option(
    "--weights",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Of the store's teacher, to keep its last layer too.",
)
@ledger_option
@click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing.")
@json_option
def upgrade(store: Path, weights: Path | None, url: str | None, dry_run: bool, as_json: bool) -> None:
    """Bring a store of an older format up to the current one, in place; no call is made.

    The step is recorded in the store's history and in its ledger. It can be stopped at any moment: the store is then
    the old one or the new one, and the same command finishes.

    \b
    ckd-cache upgrade --store stores/wrn40_2 --weights teachers/cifar100/wrn_40_2.safetensors
    """
    report = run_upgrade(store, ledger_url=ledger_url_of(store, url), weights=weights, act=not dry_run)
    if as_json:
        print_json({**asdict(report), "store": str(store)})
    else:
        say(f"{store}: {_text(report)}")


def _text(report: UpgradeReport) -> str:
    if not report.manifests:
        return f"is of format {report.version} already; nothing to do"
    steps = []
    if report.from_version != report.version:
        steps.append(f"format {report.from_version} to {report.version}")
    elif not report.parameters:
        steps.append("its extension that was not finished")
    if report.parameters:
        steps.append(f"kept of the teacher: {', '.join(report.parameters)}")
    done = "upgraded" if report.done else "would be upgraded; nothing was changed"
    return f"{done} ({'; '.join(steps)})"
