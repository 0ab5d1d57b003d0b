"""Calls as tables on stdout."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ground.terminal import print_table, say

_LISTED = ("id", "status", "teacher", "purpose", "run", "sample", "row", "view", "reserved_at", "settled_at")


def print_calls(rows: Sequence[dict[str, Any]], offset: int, total: int) -> None:
    """Some of a number of calls as a table, and where to find the others."""
    if rows:
        print_table(_LISTED, ([row[name] for name in _LISTED] for row in rows))
    say(_page_text(len(rows), offset, total))


def _page_text(shown: int, offset: int, total: int) -> str:
    if not shown:
        return f"no calls after the first {total}" if total else "no calls"
    last = offset + shown
    more = f"; more with --offset {last}" if last < total else ""
    return f"calls {offset + 1}-{last} of {total}{more}"
