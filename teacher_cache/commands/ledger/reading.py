"""`ckd-cache ledger summary`, `list` and `verify`."""

from __future__ import annotations

import sys
from contextlib import closing
from dataclasses import asdict
from typing import Any

import click

from ground.options import json_option
from ground.places import Place
from ground.terminal import plain, print_json, print_table, say
from storage.ledger import Ledger
from storage.ledger_check import ledger_problems
from storage.ledger_report import count_calls, teacher_seconds
from storage.ledger_report import list_calls as list_calls_of
from storage.ledger_spending import DAY, MODEL, Spending, spending_by, spending_of_teachers, total_of
from teacher_cache.commands.ledger.options import (
    call_filter,
    cost_of,
    filter_options,
    ledger_options,
    opened_ledger,
    paging_options,
    price_option,
)
from teacher_cache.commands.ledger.tables import amount, print_calls, print_calls_after

_SUMMARY = ("committed", "reserved", "lost", "spent", "budget", "remaining")
_SPENDING = ("attempts", "calls", "committed", "reserved", "lost", "returned", "failures", "tokens_in", "tokens_out")


@click.command()
@ledger_options
@price_option
@click.option("--by", type=click.Choice((DAY, MODEL)), multiple=True, help="Also a table of it; may be given twice.")
@json_option
def summary(store: Place | None, url: str | None, price: float | None, by: tuple[str, ...], as_json: bool) -> None:
    """Calls spent and left, and the time they took. spent = committed + reserved + lost.

    Of teachers that are billed also what they cost: settled, reserved at most, and left of the budget in money.

    \b
    ckd-cache ledger summary --store stores/wrn40_2 --price-per-call 0.002
    ckd-cache ledger summary --ledger sqlite:///all.sqlite --by day --by model
    """
    with closing(opened_ledger(store, url)) as opened:
        document = _summarised(opened, price)
        tables = {what: spending_by(opened, what) for what in by}
    if as_json:
        spent = {f"by_{what}": [{what: key, **_spent(found)} for key, found in tables[what].items()] for what in by}
        print_json({**document, **spent})
        return
    rows = {f"{row['name']} {teacher[:12]}": row for teacher, row in document["teachers"].items()}
    if len(rows) > 1:
        rows["all"] = document
    columns = (*_SUMMARY, "teacher_seconds", *(() if price is None else ("cost",)))
    headers = ("teacher", *_SUMMARY, "seconds", *columns[len(_SUMMARY) + 1 :])
    print_table(headers, ([name, *(row[column] for column in columns)] for name, row in rows.items()))
    if any(row["billed"] or row["budget_micros"] is not None for row in rows.values()):
        _print_bills(rows)
    for what, found in tables.items():
        _print_spending(what, found)
    say(f"head {document['head']}")


def _summarised(ledger: Ledger, price: float | None) -> dict[str, Any]:
    """What `summary --json` prints."""
    seconds = teacher_seconds(ledger)
    spending = spending_of_teachers(ledger)

    def totals(teacher: str | None) -> dict[str, Any]:
        counts = asdict(ledger.summary(teacher))
        took = seconds.total() if teacher is None else seconds[teacher]
        costs = {} if price is None else {"price_per_call": price, "cost": cost_of(counts["spent"], price)}
        ours = total_of(spending.values()) if teacher is None else spending.get(teacher, Spending())
        more = {name: getattr(ours, name) for name in ("billed", "failures", "tokens_in", "tokens_out")}
        attempts = counts["spent"] + counts["returned"]
        return {**counts, "teacher_seconds": round(took, 3), "attempts": attempts, **more, **costs}

    teachers = ledger.teachers()
    return {**totals(None), "teachers": {key: {"name": name, **totals(key)} for key, name in teachers.items()}}


def _spent(found: Spending) -> dict[str, Any]:
    return {"attempts": found.attempts, "calls": found.calls, **asdict(found)}


def _print_bills(rows: dict[str, dict[str, Any]]) -> None:
    """What teachers that are billed cost; None where there is no budget."""
    money = ("cost_micros", "reserved_micros", "budget_micros", "remaining_micros")
    counts = ("attempts", "returned", "failures", "tokens_in", "tokens_out")
    headers = ("teacher", *counts, *(name.removesuffix("_micros") for name in money))
    table = [
        [name, *(_cell(row[column]) for column in counts), *(amount(row[column]) for column in money)]
        for name, row in rows.items()
    ]
    print_table(headers, table)


def _print_spending(what: str, found: dict[str, Spending]) -> None:
    rows = {key: _spent(spending) for key, spending in found.items()}
    table = [
        [key, *(_cell(row[column]) for column in _SPENDING), amount(row["cost_micros"])] for key, row in rows.items()
    ]
    print_table((what, *_SPENDING, "cost"), table)


def _cell(value: Any) -> Any:
    if isinstance(value, dict):
        return ", ".join(f"{count} {name}" for name, count in sorted(value.items())) or "none"
    return value


@click.command("list")
@ledger_options
@filter_options
@paging_options
@click.option(
    "--after", type=click.IntRange(0, 1 << 40), help="Begin after the call with this id: unlike an offset, at once."
)
@json_option
def list_calls(
    store: Place | None, url: str | None, limit: int, offset: int, after: int | None, as_json: bool, **filters: Any
) -> None:
    """List calls in the order they were charged.

    \b
    ckd-cache ledger list --store stores/wrn40_2 --status lost --since 2026-01-31
    ckd-cache ledger list --ledger sqlite:///all.sqlite --after 1000000
    """
    with closing(opened_ledger(store, url)) as opened:
        where = call_filter(opened, **filters)
        rows = list(list_calls_of(opened, where, limit=limit, offset=offset, after=after or 0))
        total = 0 if as_json or after is not None else count_calls(opened, where)
    if as_json:
        print_json(rows)
    elif after is None:
        print_calls(rows, offset, total)
    else:
        print_calls_after(rows, limit)


@click.command()
@ledger_options
@json_option
def verify(store: Place | None, url: str | None, as_json: bool) -> None:
    """Recompute the hash chain and every total. Exit status: 0 it holds, 1 not."""
    with closing(opened_ledger(store, url)) as opened:
        problems, head = ledger_problems(opened), opened.head()
    if as_json:
        print_json({"head": head, "problems": problems})
    else:
        say("\n".join(map(plain, problems)) if problems else f"the chain holds, head {head}")
    sys.exit(1 if problems else 0)
