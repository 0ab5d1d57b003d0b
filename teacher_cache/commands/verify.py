"""`ckd-cache verify`."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from storage.store import Store
from storage.terminal import print_json
from storage.verify import store_problems
from teacher_cache.commands.ledger import open_ledger
from teacher_cache.commands.options import json_option, ledger_option, ledger_url_of, store_option


@click.command()
@store_option
@ledger_option
@json_option
def verify(store: Path, url: str | None, as_json: bool) -> None:
    """Check every row, the manifest and the ledger against each other; nothing is changed.

    Exit status: 0 whole, 1 not: every problem is listed.
    """
    opened = Store.open(store)
    ledger = open_ledger(store, ledger_url_of(store, url))
    try:
        problems = [str(problem) for problem in store_problems(opened, ledger)]
        calls = ledger.summary(opened.manifest.identity.teacher.fingerprint).committed
    finally:
        ledger.close()
    if as_json:
        print_json({"store": str(store), "rows": opened.manifest.n, "calls": calls, "problems": problems})
    elif problems:
        click.echo("\n".join(problems))
        click.echo(f"{store}: {len(problems)} problems")
    else:
        click.echo(f"{store}: {opened.manifest.n} rows whole, {calls} calls committed, the ledger's chain holds")
    sys.exit(1 if problems else 0)
