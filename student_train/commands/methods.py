"""`ckd-train methods`."""

from __future__ import annotations

import click

from ground.options import json_option
from ground.terminal import print_json, print_table
from student_train import catalogue


@click.command("methods")
@json_option
def methods(as_json: bool) -> None:
    """List every method with the losses it adds up."""
    described = catalogue.describe_methods()
    if as_json:
        print_json(described)
    else:
        rows = ((m["name"], catalogue.shown_method(m), catalogue.shown_batches(m)) for m in described)
        print_table(("method", "losses", "batches"), rows)
