"""`ckd-cache ledger budget`."""

from __future__ import annotations

from contextlib import closing
from typing import Any

import click

from ground.options import json_option
from ground.places import Place
from ground.terminal import plain, print_json, print_table, say
from storage.ledger import Ledger
from storage.ledger_report import budget_history
from storage.price import parse_micros, shown_micros
from teacher_cache.commands.ledger.options import ledger_options, opened_ledger, teacher_called
from teacher_cache.commands.ledger.tables import amount


@click.command()
@ledger_options
@click.option("--teacher", help="Its name, or the first digits of its fingerprint.  [default: the only one]")
@click.option("--set", "wanted", type=click.IntRange(0, 1 << 40), help="Most calls ever to be spent on it.")
@click.option("--set-cost", "cost", help="Most money ever to be spent on it, as 20.00.")
@json_option
def budget(
    store: Place | None, url: str | None, teacher: str | None, wanted: int | None, cost: str | None, as_json: bool
) -> None:
    """Show a teacher's budgets, in calls and in money, and how they came about, or set them.

    A budget can be lowered, but not below what is spent: that is refused with exit status 3.

    \b
    ckd-cache ledger budget --store stores/wrn40_2 --set 6400
    ckd-cache ledger budget --store stores/labels --set-cost 20.00
    """
    most = None if cost is None else parse_micros(cost, "--set-cost")
    with closing(opened_ledger(store, url)) as opened:
        fingerprint = teacher_called(opened, teacher)
        if wanted is not None or most is not None:
            opened.set_budget(fingerprint, opened.teachers()[fingerprint], wanted, cost_micros=most)
        document = _described(opened, fingerprint)
    if as_json:
        print_json(document)
        return
    say(plain(f"{document['teacher']['name']} {fingerprint[:12]}: {_text(document)}"))
    if document["history"]:
        _print_history(document["history"])


def _text(document: dict[str, Any]) -> str:
    limit, left = document["budget"], document["remaining"]
    of = "no budget" if limit is None else f"{left} of {limit} calls remain"
    calls = f"{document['spent']} calls spent, {of}"
    paid, most, rest = (document[name] for name in ("paid_micros", "budget_micros", "remaining_micros"))
    if not paid and most is None:
        return calls
    of = "no budget in money" if most is None else f"{shown_micros(rest)} of {shown_micros(most)} remains"
    return f"{calls}; {shown_micros(paid)} paid, {of}"


def _print_history(history: list[dict[str, Any]]) -> None:
    if not any("to_micros" in change for change in history):
        print_table(("at", "from", "to"), (change.values() for change in history))
        return
    rows = (
        (
            change["at"],
            change["from"],
            change["to"],
            *(amount(change.get(name)) for name in ("from_micros", "to_micros")),
        )
        for change in history
    )
    print_table(("at", "from", "to", "cost from", "cost to"), rows)


def _described(ledger: Ledger, teacher: str) -> dict[str, Any]:
    """What `budget --json` prints."""
    totals = ledger.summary(teacher)
    return {
        "teacher": {"name": ledger.teachers()[teacher], "fingerprint": teacher},
        "budget": totals.budget,
        "spent": totals.spent,
        "remaining": totals.remaining,
        "budget_micros": totals.budget_micros,
        "paid_micros": totals.cost_micros + totals.reserved_micros,
        "remaining_micros": totals.remaining_micros,
        "history": budget_history(ledger, teacher),
    }
