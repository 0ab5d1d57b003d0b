"""`ckd-cache ledger`: what was spent, on what, and whether the record holds."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from storage.errors import InvalidInput
from storage.ledger import Ledger
from storage.ledger_check import ledger_problems
from storage.manifest import Manifest
from storage.store import LEDGER_FILE
from storage.terminal import print_json
from teacher_cache.commands.options import json_option

_LISTED = ("id", "status", "teacher", "purpose", "sample", "row", "view", "reserved_at", "settled_at")


def open_ledger(store: Path | None, url: str | None) -> Ledger:
    """The ledger at a URL, or a store's own.

    Raises:
        InvalidInput: neither was given, or the store's calls are in a shared ledger.
    """
    if url is not None:
        return Ledger(url)
    if store is None:
        raise InvalidInput("say which ledger: give --store DIR or --ledger URL")
    shared = Manifest.load(store).ledger
    if shared is not None:
        raise InvalidInput(f"the calls of {store} are recorded in {shared}; give it as --ledger, with its password")
    return Ledger(store / LEDGER_FILE)


def _ledger_options(command: Any) -> Any:
    store = click.option("--store", type=click.Path(path_type=Path, file_okay=False), help="Folder of a store.")
    return store(click.option("--ledger", "url", help="URL of a shared ledger.")(command))


@click.group()
def ledger() -> None:
    """Show, export and check the record of every teacher call."""


@ledger.command()
@_ledger_options
@json_option
def summary(store: Path | None, url: str | None, as_json: bool) -> None:
    """Calls spent and left. spent = committed + reserved + lost."""
    opened = open_ledger(store, url)
    totals = opened.summary()
    per_teacher = {
        fingerprint: {"name": name, **asdict(opened.summary(fingerprint))}
        for fingerprint, name in opened.teachers().items()
    }
    opened.close()
    if as_json:
        print_json({**asdict(totals), "teachers": per_teacher})
        return
    table = Table("teacher", "committed", "reserved", "lost", "spent", "budget", "remaining")
    for fingerprint, row in per_teacher.items():
        counts = [
            row["committed"],
            row["reserved"],
            row["lost"],
            row["spent"],
            row["budget"],
            row["remaining"],
        ]
        table.add_row(f"{row['name']} {fingerprint[:12]}", *("-" if count is None else str(count) for count in counts))
    Console().print(table)
    click.echo(f"head {totals.head}")


@ledger.command("list")
@_ledger_options
@click.option("--status", type=click.Choice(("reserved", "committed", "lost")), help="Only calls with this status.")
@click.option("--limit", type=click.IntRange(min=1), default=50, show_default=True, help="Calls to show.")
@click.option("--offset", type=click.IntRange(min=0), default=0, show_default=True, help="Calls to pass over.")
@json_option
def list_calls(store: Path | None, url: str | None, status: str | None, limit: int, offset: int, as_json: bool) -> None:
    """List calls in the order they were charged."""
    opened = open_ledger(store, url)
    rows = list(opened.list_calls(status=status, limit=limit, offset=offset))
    opened.close()
    if as_json:
        print_json(rows)
        return
    table = Table(*_LISTED)
    for row in rows:
        table.add_row(*(str(row[name]) for name in _LISTED))
    Console().print(table)


@ledger.command()
@_ledger_options
@click.option("--format", "kind", type=click.Choice(("csv", "jsonl")), default="csv", show_default=True)
@click.option("--out", type=click.File("w"), default="-", help="File to write.  [default: stdout]")
def export(store: Path | None, url: str | None, kind: str, out: Any) -> None:
    """Write every call, with digests and times, as CSV or JSON lines."""
    opened = open_ledger(store, url)
    _WRITERS[kind](opened.list_calls(), out)
    opened.close()


@ledger.command()
@_ledger_options
@json_option
def verify(store: Path | None, url: str | None, as_json: bool) -> None:
    """Recompute the hash chain and every total. Exit status: 0 it holds, 1 not."""
    opened = open_ledger(store, url)
    problems, head = ledger_problems(opened), opened.head()
    opened.close()
    if as_json:
        print_json({"head": head, "problems": problems})
    else:
        click.echo("\n".join(problems) if problems else f"the chain holds, head {head}")
    sys.exit(1 if problems else 0)


def _write_csv(rows: Iterable[dict[str, Any]], out: Any) -> None:
    writer: csv.DictWriter[str] | None = None
    for row in rows:
        if writer is None:
            writer = csv.DictWriter(out, fieldnames=list(row))
            writer.writeheader()
        writer.writerow(row)


def _write_json_lines(rows: Iterable[dict[str, Any]], out: Any) -> None:
    for row in rows:
        out.write(json.dumps(row) + "\n")


_WRITERS: dict[str, Callable[[Iterable[dict[str, Any]], Any], None]] = {
    "csv": _write_csv,
    "jsonl": _write_json_lines,
}
