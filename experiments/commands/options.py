"""Options that several commands share, so that they read and mean the same everywhere."""

from __future__ import annotations

from typing import Any

import click

from models.names import PRECISIONS

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")


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
