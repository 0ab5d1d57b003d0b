"""`ckd-cache ledger summary`, `list` and `verify`."""

from __future__ import annotations

import sys
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from ground.options import json_option
from ground.terminal import plain, print_json, print_table, say
from storage.ledger import Ledger
from storage.ledger_check import ledger_problems
from storage.ledger_report import count_calls, teacher_seconds
from storage.ledger_report import list_calls as list_calls_of
from teacher_cache.commands.ledger.options import (
    call_filter,
    cost_of,
    filter_options,
    ledger_options,
    opened_ledger,
    paging_options,
    price_option,
)
from teacher_cache.commands.ledger.tables import print_calls

_SUMMARY = ("committed", "reserved", "lost", "spent", "budget", "remaining")


@click.command()
@ledger_options
@price_option
@json_option
def summary(store: Path | None, url: str | None, price: float | None, as_json: bool) -> None:
    """Calls spent and left, and the time they took. spent = committed + reserved + lost.

    \b
    ckd-cache ledger summary --store stores/wrn40_2 --price-per-call 0.002
    """
    with closing(opened_ledger(store, url)) as opened:
        document = _summarised(opened, price)
    if as_json:
        print_json(document)
        return
    rows = {f"{row['name']} {teacher[:12]}": row for teacher, row in document["teachers"].items()}
    if len(rows) > 1:
        rows["all"] = document
    columns = (*_SUMMARY, "teacher_seconds", *(() if price is None else ("cost",)))
    headers = ("teacher", *_SUMMARY, "seconds", *columns[len(_SUMMARY) + 1 :])
    print_table(headers, ([name, *(row[column] for column in columns)] for name, row in rows.items()))
    say(f"head {document['head']}")


def _summarised(ledger: Ledger, price: float | None) -> dict[str, Any]:
    """What `summary --json` prints."""
    seconds = teacher_seconds(ledger)

    def totals(teacher: str | None) -> dict[str, Any]:
        counts = asdict(ledger.summary(teacher))
        took = seconds.total() if teacher is None else seconds[teacher]
        costs = {} if price is None else {"price_per_call": price, "cost": cost_of(counts["spent"], price)}
        return {**counts, "teacher_seconds": round(took, 3), **costs}

    teachers = ledger.teachers()
    return {**totals(None), "teachers": {key: {"name": name, **totals(key)} for key, name in teachers.items()}}


@click.command("list")
@ledger_options
@filter_options
@paging_options
@json_option
def list_calls(store: Path | None, url: str | None, limit: int, offset: int, as_json: bool, **filters: Any) -> None:
    """List calls in the order they were charged.

    \b
    ckd-cache ledger list --store stores/wrn40_2 --status lost --since 2026-01-31
    """
    with closing(opened_ledger(store, url)) as opened:
        where = call_filter(opened, **filters)
        rows = list(list_calls_of(opened, where, limit=limit, offset=offset))
        total = 0 if as_json else count_calls(opened, where)
    print_json(rows) if as_json else print_calls(rows, offset, total)


@click.command()
@ledger_options
@json_option
def verify(store: Path | None, url: str | None, as_json: bool) -> None:
    """Recompute the hash chain and every total. Exit status: 0 it holds, 1 not."""
    with closing(opened_ledger(store, url)) as opened:
        problems, head = ledger_problems(opened), opened.head()
    if as_json:
        print_json({"head": head, "problems": problems})
    else:
        say("\n".join(map(plain, problems)) if problems else f"the chain holds, head {head}")
    sys.exit(1 if problems else 0)
