"""`ckd-cache ledger budget`."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import click

from ground.options import json_option
from ground.terminal import plain, print_json, print_table, say
from storage.ledger import Ledger
from storage.ledger_report import budget_history
from teacher_cache.commands.ledger.options import ledger_options, opened_ledger, teacher_called


@click.command()
@ledger_options
@click.option("--teacher", help="Its name, or the first digits of its fingerprint.  [default: the only one]")
@click.option("--set", "wanted", type=click.IntRange(0, 1 << 40), help="Most calls ever to be spent on it.")
@json_option
def budget(store: Path | None, url: str | None, teacher: str | None, wanted: int | None, as_json: bool) -> None:
    """Show a teacher's budget and how it came about, or set it.

    A budget can be lowered, but not below what is spent: that is refused with exit status 3.

    \b
    ckd-cache ledger budget --store stores/wrn40_2 --set 6400
    """
    with closing(opened_ledger(store, url)) as opened:
        fingerprint = teacher_called(opened, teacher)
        if wanted is not None:
            opened.set_budget(fingerprint, opened.teachers()[fingerprint], wanted)
        document = _described(opened, fingerprint)
    if as_json:
        print_json(document)
        return
    limit, left = document["budget"], document["remaining"]
    of = "no budget" if limit is None else f"{left} of {limit} calls remain"
    say(plain(f"{document['teacher']['name']} {fingerprint[:12]}: {document['spent']} calls spent, {of}"))
    if document["history"]:
        print_table(("at", "from", "to"), (change.values() for change in document["history"]))


def _described(ledger: Ledger, teacher: str) -> dict[str, Any]:
    """What `budget --json` prints."""
    totals = ledger.summary(teacher)
    return {
        "teacher": {"name": ledger.teachers()[teacher], "fingerprint": teacher},
        "budget": totals.budget,
        "spent": totals.spent,
        "remaining": totals.remaining,
        "history": budget_history(ledger, teacher),
    }
