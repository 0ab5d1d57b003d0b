"""Options that several commands share, so that they read and mean the same everywhere."""

from __future__ import annotations

from typing import Any

import click

from ground.options import device_option, precision_option
from models.names import CALL_PRECISIONS, PRECISIONS


def worker_options(command: Any) -> Any:
    """--jobs, --retry, --device, --precision."""
    options = (
        click.option("--jobs", type=click.IntRange(1, 256), help="Students at the same time.  [default: one a core]"),
        click.option("--retry", is_flag=True, help="Train again what failed before."),
        device_option,
        precision_option(PRECISIONS, refused=CALL_PRECISIONS),
    )
    for option in reversed(options):
        command = option(command)
    return command
