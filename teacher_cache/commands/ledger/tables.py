"""Calls and counts as tables on stdout."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from storage.terminal import plain

_WIDTH_WITHOUT_TERMINAL = 200
_LISTED = ("id", "status", "teacher", "purpose", "run", "sample", "row", "view", "reserved_at", "settled_at")


def print_calls(rows: Sequence[dict[str, Any]], offset: int, total: int) -> None:
    """Some of a number of calls as a table, and where to find the others."""
    if rows:
        print_table(_LISTED, ([row[name] for name in _LISTED] for row in rows))
    click.echo(_page_text(len(rows), offset, total))


def _page_text(shown: int, offset: int, total: int) -> str:
    if not shown:
        return f"no calls after the first {total}" if total else "no calls"
    last = offset + shown
    more = f"; more with --offset {last}" if last < total else ""
    return f"calls {offset + 1}-{last} of {total}{more}"


def print_table(headers: Iterable[str], rows: Iterable[Iterable[Any]]) -> None:
    """A table on stdout; what is None is a dash."""
    table = Table(*headers)
    for row in rows:
        table.add_row(*("-" if value is None else plain(str(value)) for value in row))
    # Names in a ledger may be anybody's: they are not read as markup.
    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else _WIDTH_WITHOUT_TERMINAL
    Console(markup=False, highlight=False, width=width).print(table)
