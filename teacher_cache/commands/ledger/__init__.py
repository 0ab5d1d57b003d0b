"""`ckd-cache ledger`: what was spent, on what, by whom, and whether the record holds."""

from __future__ import annotations

import click

from teacher_cache.commands.ledger.budget import budget
from teacher_cache.commands.ledger.export import export
from teacher_cache.commands.ledger.options import open_ledger
from teacher_cache.commands.ledger.reading import list_calls, summary, verify
from teacher_cache.commands.ledger.trace import trace

__all__ = ["ledger", "open_ledger"]


@click.group()
def ledger() -> None:
    """Show, export and check the record of every teacher call."""


for command in (summary, list_calls, export, verify, budget, trace):
    ledger.add_command(command)
