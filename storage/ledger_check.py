"""Recompute a ledger from its journal, and say where the two differ."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import groupby
from typing import Any

import sqlalchemy as sa

from ground.errors import StoreUnreadable
from storage.ledger import SETTLED_STATUS, Ledger
from storage.ledger_chain import GENESIS, id_ranges, reserved_rows_digest, settled_rows_digest
from storage.ledger_tables import accounts, calls, entries, sessions

_REMEDY = "bring the ledger back from a copy"
_MAX_LISTED = 20


def ledger_problems(ledger: Ledger) -> list[str]:
    """Every disagreement between the chain, the calls and the accounts; empty when the ledger is whole.

    Raises:
        InvalidInput: it is sealed with a key that is not set.
    """
    ledger.require_key()
    try:
        with ledger.reading() as connection:
            # What SQLite itself calls damaged is not looked at any further.
            found = _file_problems(connection) or _content_problems(connection, ledger.seal.hash)
            return [*ledger.schema_problems(), *found]
    except StoreUnreadable as error:
        return [str(error)]
    except (KeyError, ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        # The chain holds, and what it holds was not written by us.
        wrong = f"the ledger's entries are not what any release writes ({error!r}); {_REMEDY}"
        return [*ledger.schema_problems(), wrong]


def _content_problems(connection: sa.Connection, entry_hash: Callable[..., str]) -> list[str]:
    journal = list(connection.execute(sa.select(entries).order_by(entries.c.seq)))
    broken = list(_chain_problems(journal, entry_hash))
    if broken:
        # Nothing can be compared with a journal that does not hold.
        return broken
    return [
        *_duplicate_problems(connection),
        *_reserved_problems(connection, journal),
        *_settled_problems(connection, journal),
        *_revoked_problems(connection, journal),
        *_session_problems(connection, journal),
        *_account_problems(connection, journal),
    ]


def _file_problems(connection: sa.Connection) -> list[str]:
    """An SQLite file that is damaged; a server looks after its own."""
    if connection.dialect.name != "sqlite":
        return []
    found = list(connection.exec_driver_sql(f"PRAGMA integrity_check({_MAX_LISTED})").scalars())
    return [f"the ledger's file is damaged ({line}); {_REMEDY}" for line in found if line != "ok"]


def _chain_problems(journal: list[Any], entry_hash: Callable[..., str]) -> Iterator[str]:
    previous = GENESIS
    for place, entry in enumerate(journal, start=1):
        if entry.seq != place:
            yield f"ledger entry {place} is missing: the next one is {entry.seq}; {_REMEDY}"
            return
        if entry.previous != previous:
            yield f"ledger entry {entry.seq} does not follow the one before it; {_REMEDY}"
        expected = entry_hash(entry.seq, entry.kind, entry.at, entry.payload, entry.previous)
        if entry.hash != expected:
            yield f"ledger entry {entry.seq} ({entry.kind}) was changed: its hash does not match; {_REMEDY}"
        previous = entry.hash


def _reserved_problems(connection: sa.Connection, journal: list[Any]) -> Iterator[str]:
    expected = {entry.seq: json.loads(entry.payload) for entry in journal if entry.kind == "reserve"}
    who: sa.Select[Any] = sa.select(sessions.c.id, sessions.c.account)
    account_of: dict[int, int] = dict(connection.execute(who).all())
    query = sa.select(calls).order_by(calls.c.reserved_in, calls.c.id)
    for seq, rows in _grouped(connection, query, "reserved_in"):
        digest = reserved_rows_digest(
            (row.id, row.repeat, row.sample, row.row, row.view, row.input_digest) for row in rows
        )
        payload = expected.pop(seq, None)
        if payload is None or (payload["rows"], len(rows)) != (digest, payload["count"]):
            yield f"calls {_span(rows)} differ from what ledger entry {seq} reserved; {_REMEDY}"
        elif any((row.session, row.account) != (payload["session"], account_of.get(row.session)) for row in rows):
            yield f"calls {_span(rows)} are not of the session that ledger entry {seq} names; {_REMEDY}"
    for seq, payload in expected.items():
        yield f"the {payload['count']} calls that ledger entry {seq} reserved are missing; {_REMEDY}"


def _duplicate_problems(connection: sa.Connection) -> Iterator[str]:
    """Inputs that were paid for more than once; the database's own index should have refused them."""
    # Written so that no index can answer: which one there is, and what is in it, is the question.
    not_lost = calls.c.status.concat("") != "lost"
    key = (calls.c.account, calls.c.input_digest, calls.c.repeat)
    query = sa.select(sa.func.count().label("calls"), sa.func.min(calls.c.id).label("first")).where(not_lost)
    twice = query.group_by(*key).having(sa.func.count() > 1).subquery()
    paid = sa.select(sa.func.count(), sa.func.sum(twice.c.calls), sa.func.min(twice.c.first))
    inputs, paid_calls, first = connection.execute(paid).one()
    if inputs:
        yield (
            f"{inputs} input(s) were paid for more than once, by {paid_calls} calls that are not lost, the first of "
            f"them call {first}: whatever refuses that was missing when they were charged; {_REMEDY}"
        )
    numbered = sa.select(sa.func.count(), sa.func.count(sa.distinct(calls.c.id + 0))).select_from(calls)
    rows, numbers = connection.execute(numbered).one()
    if rows != numbers:
        yield f"the ledger has {rows} calls under {numbers} numbers; {_REMEDY}"


def _settled_problems(connection: sa.Connection, journal: list[Any]) -> Iterator[str]:
    expected = {entry.seq: entry for entry in journal if entry.kind in SETTLED_STATUS}
    query = sa.select(calls).where(calls.c.settled_in.is_not(None)).order_by(calls.c.settled_in, calls.c.id)
    for seq, rows in _grouped(connection, query, "settled_in"):
        entry = expected.pop(seq, None)
        content = {} if entry is None else json.loads(entry.payload)
        found = {
            "calls": id_ranges([row.id for row in rows]),
            "rows": settled_rows_digest((row.id, row.output_digest) for row in rows),
        }
        if (
            entry is None
            or {name: content[name] for name in found} != found
            or any(row.session != content["session"] for row in rows)
            or any(row.status != SETTLED_STATUS[entry.kind] for row in rows if row.revoked_in is None)
        ):
            yield f"calls {_span(rows)} differ from what ledger entry {seq} settled; {_REMEDY}"
    for seq in expected:
        yield f"the calls that ledger entry {seq} settled are missing or no longer settled; {_REMEDY}"
    wrong = sa.select(calls).where(
        sa.or_(
            sa.and_(calls.c.status != "reserved", calls.c.settled_in.is_(None)),
            sa.and_(calls.c.status == "reserved", calls.c.output_digest.is_not(None)),
        )
    )
    rows = list(connection.execute(wrong.order_by(calls.c.id)))
    if rows:
        yield f"calls {_span(rows)} are settled, and no ledger entry says so; {_REMEDY}"


def _revoked_problems(connection: sa.Connection, journal: list[Any]) -> Iterator[str]:
    expected = {entry.seq: json.loads(entry.payload) for entry in journal if entry.kind == "revoke"}
    query = sa.select(calls).where(calls.c.revoked_in.is_not(None)).order_by(calls.c.revoked_in, calls.c.id)
    for seq, rows in _grouped(connection, query, "revoked_in"):
        content = expected.pop(seq, None)
        same = content is not None and content["calls"] == id_ranges([row.id for row in rows])
        if not same or any(row.status != "lost" for row in rows):
            yield f"calls {_span(rows)} differ from what ledger entry {seq} revoked; {_REMEDY}"
    for seq in expected:
        yield f"the calls that ledger entry {seq} revoked are no longer revoked; {_REMEDY}"


def _session_problems(connection: sa.Connection, journal: list[Any]) -> Iterator[str]:
    recorded = {}
    for entry in journal:
        if entry.kind == "session":
            fields = json.loads(entry.payload)
            recorded[fields["id"]] = fields
    query = sa.select(sessions, accounts.c.teacher, accounts.c.name.label("teacher_name"))
    for row in connection.execute(query.join(accounts, sessions.c.account == accounts.c.id)).mappings():
        found = {name: value for name, value in row.items() if name != "account"}
        fields = recorded.pop(row["id"], {})
        if {name: fields.get(name) for name in found} != found:
            yield f"session {row['id']} differs from its ledger entry; {_REMEDY}"
    for session_id in recorded:
        yield f"session {session_id} is missing; {_REMEDY}"


def _account_problems(connection: sa.Connection, journal: list[Any]) -> Iterator[str]:
    query = sa.select(calls.c.account, calls.c.status, sa.func.count()).group_by(calls.c.account, calls.c.status)
    counts = Counter({(account, status): count for account, status, count in connection.execute(query)})
    budgets, names = {}, {}
    for entry in journal:
        content = json.loads(entry.payload)
        if entry.kind == "budget":
            budgets[content["teacher"]] = content["to"]
            names[content["teacher"]] = content["name"]
        elif entry.kind == "session":
            names[content["teacher"]] = content["teacher_name"]
    rows_of = connection.execute(sa.select(accounts)).all()
    for account in {account for account, _ in counts} - {account.id for account in rows_of}:
        yield f"account {account} is missing; {_REMEDY}"
    for teacher in names.keys() - {account.teacher for account in rows_of}:
        yield f"the account of teacher {teacher[:12]} is missing; {_REMEDY}"
    for column in ("id", "teacher"):
        for value, count in Counter(getattr(account, column) for account in rows_of).items():
            if count > 1:
                yield f"the ledger has {count} accounts with the {column} {str(value)[:12]}; {_REMEDY}"
    for account in rows_of:
        if account.name != names.get(account.teacher):
            yield f"the account of {account.name} ({account.teacher[:12]}) has another name in the journal; {_REMEDY}"
        for status in ("reserved", "committed", "lost"):
            total, rows = getattr(account, status), counts[account.id, status]
            if total != rows:
                yield f"the account of {account.name} says {total} calls {status}, the ledger has {rows}; {_REMEDY}"
        if account.budget != budgets.get(account.teacher):
            yield f"the account of {account.name} has a budget that no ledger entry set; {_REMEDY}"


def _grouped(connection: sa.Connection, query: sa.Select[Any], column: str) -> Iterator[tuple[int, list[Any]]]:
    rows = connection.execution_options(stream_results=True).execute(query)
    for seq, group in groupby(rows, key=lambda row: getattr(row, column)):
        yield seq, list(group)


def _span(rows: list[Any]) -> str:
    return ", ".join(f"{first}-{last}" for first, last in id_ranges([row.id for row in rows])[:5])
