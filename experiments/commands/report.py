"""`ckd-pipeline report`."""

from __future__ import annotations

from pathlib import Path

import click

from analysis.report import write_report
from ground.terminal import plain, say


@click.command("report")
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
def report_command(folder: Path) -> None:
    """Write FOLDER/report.html, one page that needs no network, with its tables and figures beside it in report/."""
    summary = write_report(folder)
    say(f"{summary.page}: {summary.finished} of {summary.planned} runs")
    for sentence in summary.missing:
        say(plain(f"missing: {sentence}"))
