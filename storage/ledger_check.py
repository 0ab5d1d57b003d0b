"""Recompute a ledger from its journal, and say where the two differ."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from itertools import groupby
from typing import Any

import sqlalchemy as sa

from storage.ledger import Ledger
from storage.ledger_chain import GENESIS, entry_hash, id_ranges, reserved_rows_digest, settled_rows_digest
from storage.ledger_tables import accounts, calls, entries, sessions


def ledger_problems(ledger: Ledger) -> list[str]:
    """Every disagreement between the chain, the calls and the accounts; empty when the ledger is whole."""
    with ledger.reading() as connection:
        journal = list(connection.execute(sa.select(entries).order_by(entries.c.seq)))
        return [
            *_chain_problems(journal),
            *_reserved_problems(connection, journal),
            *_settled_problems(connection, journal),
            *_session_problems(connection, journal),
            *_account_problems(connection, journal),
        ]


def _chain_problems(journal: list[Any]) -> Iterator[str]:
    previous = GENESIS
    for place, entry in enumerate(journal, start=1):
        if entry.seq != place:
            yield f"ledger entry {place} is missing: the next one is {entry.seq}"
            return
        if entry.previous != previous:
            yield f"ledger entry {entry.seq} does not follow the one before it"
        expected = entry_hash(entry.seq, entry.kind, entry.at, entry.payload, entry.previous)
        if entry.hash != expected:
            yield f"ledger entry {entry.seq} ({entry.kind}) was changed: its hash does not match"
        previous = entry.hash


def _reserved_problems(connection: sa.Connection, journal: list[Any]) -> Iterator[str]:
    expected = {entry.seq: json.loads(entry.payload) for entry in journal if entry.kind == "reserve"}
    query = sa.select(calls).order_by(calls.c.reserved_in, calls.c.id)
    for seq, rows in _grouped(connection, query, "reserved_in"):
        digest = reserved_rows_digest((row.id, row.sample, row.row, row.view, row.input_digest) for row in rows)
        payload = expected.pop(seq, None)
        if payload is None or payload["rows"] != digest or any(row.session != payload["session"] for row in rows):
            yield f"calls {_span(rows)} differ from what ledger entry {seq} reserved"
    for seq, payload in expected.items():
        yield f"the {payload['count']} calls that ledger entry {seq} reserved are missing"


def _settled_problems(connection: sa.Connection, journal: list[Any]) -> Iterator[str]:
    status = {"commit": "committed", "lose": "lost"}
    expected = {entry.seq: entry for entry in journal if entry.kind in status}
    query = sa.select(calls).where(calls.c.status != "reserved").order_by(calls.c.settled_in, calls.c.id)
    for seq, rows in _grouped(connection, query, "settled_in"):
        entry = expected.pop(seq, None)
        payload = {
            "calls": id_ranges([row.id for row in rows]),
            "rows": settled_rows_digest((row.id, row.output_digest) for row in rows),
        }
        if (
            entry is None
            or json.loads(entry.payload) != payload
            or any(row.status != status[entry.kind] for row in rows)
        ):
            yield f"calls {_span(rows)} differ from what ledger entry {seq} settled"
    for seq in expected:
        yield f"the calls that ledger entry {seq} settled are missing or no longer settled"


def _session_problems(connection: sa.Connection, journal: list[Any]) -> Iterator[str]:
    recorded = {}
    for entry in journal:
        if entry.kind == "session":
            fields = json.loads(entry.payload)
            recorded[fields["id"]] = fields
    for row in connection.execute(sa.select(sessions)).mappings():
        if recorded.pop(row["id"], None) != dict(row):
            yield f"session {row['id']} differs from its ledger entry"
    for session_id in recorded:
        yield f"session {session_id} is missing"


def _account_problems(connection: sa.Connection, journal: list[Any]) -> Iterator[str]:
    query = sa.select(calls.c.teacher, calls.c.status, sa.func.count()).group_by(calls.c.teacher, calls.c.status)
    counts = Counter({(teacher, status): count for teacher, status, count in connection.execute(query)})
    budgets = {}
    for entry in journal:
        if entry.kind == "budget":
            change = json.loads(entry.payload)
            budgets[change["teacher"]] = change["to"]
    rows_of = connection.execute(sa.select(accounts)).all()
    for teacher in {teacher for teacher, _ in counts} - {account.teacher for account in rows_of}:
        yield f"the account of teacher {teacher[:12]} is missing"
    for account in rows_of:
        for status in ("reserved", "committed", "lost"):
            total, rows = getattr(account, status), counts[account.teacher, status]
            if total != rows:
                yield f"the account of {account.name} says {total} calls {status}, the ledger has {rows}"
        if account.budget != budgets.get(account.teacher):
            yield f"the account of {account.name} has a budget that no ledger entry set"


def _grouped(connection: sa.Connection, query: sa.Select[Any], column: str) -> Iterator[tuple[int, list[Any]]]:
    rows = connection.execution_options(stream_results=True).execute(query)
    for seq, group in groupby(rows, key=lambda row: getattr(row, column)):
        yield seq, list(group)


def _span(rows: list[Any]) -> str:
    return ", ".join(f"{first}-{last}" for first, last in id_ranges([row.id for row in rows])[:5])
