"""`ckd-cache ledger`: what was spent, on what, by whom, and whether the record holds."""

from __future__ import annotations

import click

from ground.terminal import CommandAt, LazyGroup

_COMMANDS = {
    "summary": CommandAt(
        "teacher_cache.commands.ledger.reading:summary",
        "Calls spent and left, and the time they took. spent = committed + reserved + lost.",
    ),
    "list": CommandAt("teacher_cache.commands.ledger.reading:list_calls", "List calls in the order they were charged."),
    "export": CommandAt(
        "teacher_cache.commands.ledger.export:export",
        "Write calls, with digests and times, as CSV, JSON lines or Parquet; any number of them.",
    ),
    "verify": CommandAt(
        "teacher_cache.commands.ledger.reading:verify",
        "Recompute the hash chain and every total. Exit status: 0 it holds, 1 not.",
    ),
    "reconcile": CommandAt(
        "teacher_cache.commands.ledger.reconcile:reconcile",
        "Compare the ledger with what a provider says it charged, by request id; without --settle nothing is changed.",
    ),
    "budget": CommandAt(
        "teacher_cache.commands.ledger.budget:budget",
        "Show a teacher's budgets, in calls and in money, and how they came about, or set them.",
    ),
    "move": CommandAt(
        "teacher_cache.commands.ledger.move:move", "Record in a store where the ledger that it shares is now."
    ),
    "trace": CommandAt(
        "teacher_cache.commands.ledger.trace:trace",
        "List the calls that a student drew on, or with --call the students that drew on a call; nothing is changed.",
    ),
}


@click.group(cls=LazyGroup, lazy=_COMMANDS)
def ledger() -> None:
    """Show, export and check the record of every teacher call."""
