"""`ckd-cache ledger move`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from ground.errors import InvalidInput
from ground.options import json_option
from ground.terminal import print_json, say
from teacher_cache.commands.options import ledger_url_of, store_option
from teacher_cache.ledger_move import move_ledger


@click.command()
@store_option
@click.option("--ledger", "url", help="URL where the ledger is now.  [default: $CKD_LEDGER]")
@json_option
def move(store: Path, url: str | None, as_json: bool) -> None:
    """Record in a store where the ledger that it shares is now.

    Move the ledger first: the file with `mv` while nobody builds, or the database with its server's own tools. It has
    to be the same ledger, which is known by its first entry. The change is recorded in the store's manifest and in the
    ledger. A ledger of a store's own stays in the store.

    \b
    ckd-cache ledger move --store stores/wrn40_2 --ledger sqlite:////data/ledgers/all.sqlite
    """
    url = ledger_url_of(store, url)
    if url is None:
        raise InvalidInput(
            "say where the ledger is now: give --ledger URL; a store's own ledger is not moved out of it"
        )
    report = move_ledger(store, url)
    if as_json:
        print_json({"store": str(store), **asdict(report)})
    elif report.before == report.after:
        say(f"{store}: its calls are recorded in {report.after} already; nothing to do")
    else:
        say(
            f"{store}: its calls are recorded in {report.after} now, and were in {report.before}; it is the same "
            f"ledger, which begins with entry {report.genesis[:12]}"
        )
