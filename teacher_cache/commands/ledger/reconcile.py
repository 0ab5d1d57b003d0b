"""`ckd-cache ledger reconcile`."""

from __future__ import annotations

import sys
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from ground.options import json_option
from ground.places import Place
from ground.terminal import print_json, print_table, say
from storage.price import shown_micros
from teacher_cache.commands.ledger.options import call_filter, ledger_options, opened_ledger
from teacher_cache.commands.ledger.tables import amount
from teacher_cache.reconcile import Compared, Reconciliation, read_bill
from teacher_cache.reconcile import reconcile as compare

_MOST_SHOWN = 20
_LISTS = {
    "differs": "cost something else in the bill",
    "not_in_ledger": "are in the bill, and not in the ledger",
    "not_in_bill": "are billed by the ledger, and not in the bill",
}


@click.command()
@click.argument("bill", metavar="BILL.csv", type=click.Path(path_type=Path, dir_okay=False))
@ledger_options
@click.option("--id-column", default="request_id", show_default=True, help="Of the provider's request ids.")
@click.option("--cost-column", default="cost", show_default=True, help="Of what each cost, in the prices' currency.")
@click.option("--teacher", help="Only calls to this teacher: its name, or the first digits of its fingerprint.")
@click.option("--since", help="The bill is of calls charged at this time or later: ISO 8601, as in ledger list.")
@click.option("--until", help="The bill is of calls charged before this time.")
@click.option("--settle", is_flag=True, help="Record what the bill decides of calls that were unknown.")
@json_option
def reconcile(
    bill: Path,
    store: Place | None,
    url: str | None,
    id_column: str,
    cost_column: str,
    teacher: str | None,
    since: str | None,
    until: str | None,
    settle: bool,
    as_json: bool,
) -> None:
    """Compare the ledger with what a provider says it charged, by request id; without --settle nothing is changed.

    \b
    ckd-cache ledger reconcile usage-october.csv --ledger sqlite:///all.sqlite --id-column id --cost-column usd

    Exit status: 0 they agree, 1 they do not.
    """
    said = read_bill(bill, id_column=id_column, cost_column=cost_column)
    with closing(opened_ledger(store, url)) as opened:
        where = call_filter(opened, teacher=teacher, store_id=None, status=None, run=None, since=since, until=until)
        found = compare(opened, said, where, settle=settle)
    print_json(_document(found)) if as_json else _print(found, settle=settle)
    sys.exit(0 if found.agrees else 1)


def _document(found: Reconciliation) -> dict[str, Any]:
    """What `reconcile --json` prints."""
    unknown = {
        "billed": sorted(found.billed),
        "not_billed": sorted(found.not_billed),
        "undecided": found.undecided,
        "without_id": found.unknown_without_id,
    }
    lists = {name: [asdict(each) for each in getattr(found, name)] for name in _LISTS}
    return {
        "agrees": found.agrees,
        "ledger_micros": found.ledger_micros,
        "bill_micros": found.bill_micros,
        "matched": found.matched,
        **lists,
        "unknown": unknown,
        "without_id": found.without_id,
        "settled": found.settled,
    }


def _print(found: Reconciliation, *, settle: bool) -> None:
    say(f"the ledger says {shown_micros(found.ledger_micros)}, the bill {shown_micros(found.bill_micros)}")
    say(f"{found.matched} requests are in both, at the same cost")
    for name, what in _LISTS.items():
        _print_compared(getattr(found, name), what)
    if found.without_id:
        say(f"{found.without_id} calls are billed, and cannot be looked for: their requests have no id")
    decided = len(found.billed) + len(found.not_billed)
    if decided:
        done = "settled in the ledger" if settle else "not settled; settle them with --settle"
        say(f"of unknown calls {len(found.billed)} are billed and {len(found.not_billed)} are not: {done}")
    if found.undecided:
        say(
            f"{len(found.undecided)} unknown calls are not in the bill, which may not cover them; say what it covers "
            "with --since and --until"
        )
    if found.unknown_without_id:
        say(f"{found.unknown_without_id} unknown calls stay so: their requests have no id")
    say("they agree" if found.agrees else "they do not agree")


def _print_compared(requests: list[Compared], what: str) -> None:
    if not requests:
        return
    say(f"{len(requests)} requests {what}:")
    shown = requests[:_MOST_SHOWN]
    rows = (
        (each.request_id, ", ".join(map(str, each.calls)), amount(each.ledger_micros), amount(each.bill_micros))
        for each in shown
    )
    print_table(("request", "calls", "ledger", "bill"), rows)
    if len(requests) > len(shown):
        say(f"and {len(requests) - len(shown)} more; see all with --json")
