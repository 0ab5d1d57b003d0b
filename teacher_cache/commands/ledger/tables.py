"""Calls as tables on stdout."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ground.terminal import print_table, say
from storage.price import shown_micros

_LISTED = ("id", "status", "teacher", "purpose", "run", "sample", "row", "view", "reserved_at", "settled_at")
# Shown where any of the calls has a bill.
_BILL = ("billed", "failure", "tokens_in", "tokens_out", "model", "request_id")


def print_calls(rows: Sequence[dict[str, Any]], offset: int, total: int) -> None:
    """Some of a number of calls as a table, and where to find the others."""
    _print_table(rows)
    say(_page_text(len(rows), offset, total))


def print_calls_after(rows: Sequence[dict[str, Any]], limit: int) -> None:
    """Calls that follow one as a table, at most so many, and where to find others."""
    _print_table(rows)
    say(f"more with --after {rows[-1]['id']}" if len(rows) == limit else "no more calls")


def _print_table(rows: Sequence[dict[str, Any]]) -> None:
    if any(row["billed"] is not None for row in rows):
        names = (*_LISTED, *_BILL)
        table = ([*(row[name] for name in names), amount(row["cost_micros"])] for row in rows)
        print_table((*names, "cost"), table)
    elif rows:
        print_table(_LISTED, ([row[name] for name in _LISTED] for row in rows))


def amount(micros: int | None) -> str | None:
    """An amount of money for a table."""
    return None if micros is None else shown_micros(micros)


def _page_text(shown: int, offset: int, total: int) -> str:
    if not shown:
        return f"no calls after the first {total}" if total else "no calls"
    last = offset + shown
    more = f"; more with --offset {last}" if last < total else ""
    return f"calls {offset + 1}-{last} of {total}{more}"
