"""Older ledgers: read as they are, and brought up to the current schema in one transaction, with an entry that says so.

The genesis entry says with which schema a ledger was begun, and never changes; an entry of kind `schema` says to which
one it was brought since. What was true of a schema is stated as data here, and never changes whatever later releases
do. No row is deleted or changed: columns and tables are added, and the index that keeps an input from being paid for
twice is made anew with what it has to leave out by now.

Schema 1 was written for a few hours, beside stores of format 1; answers had one digest each, from which those of schema
2, one for each output, cannot be told.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from storage import ledger_tables as current

SCHEMA_VERSION = 3
OLDEST_SCHEMA = 2


@dataclass(frozen=True, slots=True)
class Tables:
    """What queries of the current release name, in a ledger of some schema; what it lacks is 0, or no row.

    Args:
        metadata: what the database holds.
        accounts, calls, bills: with all columns of the current schema.
    """

    metadata: sa.MetaData
    accounts: sa.FromClause
    calls: sa.FromClause
    bills: sa.FromClause


# Schema 2: what releases of the store formats 2 and 3 made, up to and including 91dc462.

_schema_2 = sa.MetaData()
_BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def _number(name: str, *constraints: sa.ForeignKey, nullable: bool = False) -> sa.Column[int]:
    return sa.Column(name, _BIG, *constraints, nullable=nullable)


def _key(name: str, *constraints: sa.ForeignKey) -> sa.Column[int]:
    return sa.Column(name, _BIG, *constraints, primary_key=True, autoincrement=False)


def _text(name: str, *, unique: bool | None = None) -> sa.Column[str]:
    return sa.Column(name, sa.Text, nullable=False, unique=unique)


def _small(name: str) -> sa.Column[int]:
    return sa.Column(name, sa.Integer, nullable=False)


def _bytes(name: str, *, nullable: bool) -> sa.Column[bytes]:
    return sa.Column(name, sa.LargeBinary, nullable=nullable)


def _to(column: str) -> sa.ForeignKey:
    return sa.ForeignKey(column)


_entries_2 = sa.Table(
    "entries",
    _schema_2,
    _key("seq"),
    *(_text(name) for name in ("kind", "at", "payload", "previous", "hash")),
    sqlite_strict=True,
)
sa.Index("entries_by_kind", _entries_2.c.kind)
_accounts_2 = sa.Table(
    "accounts",
    _schema_2,
    _key("id"),
    _text("teacher", unique=True),
    _text("name"),
    *(_number(name) for name in ("reserved", "committed", "lost")),
    _number("budget", nullable=True),
    sqlite_strict=True,
)
sa.Table(
    "sessions",
    _schema_2,
    _key("id"),
    _number("account", _to("accounts.id")),
    *(_text(name) for name in ("store", "location", "purpose", "device", "precision", "outputs")),
    sqlite_strict=True,
)
_calls_2 = sa.Table(
    "calls",
    _schema_2,
    _key("id"),
    _number("session", _to("sessions.id")),
    _number("account", _to("accounts.id")),
    _bytes("input_digest", nullable=False),
    _small("repeat"),
    _number("sample"),
    _number("row"),
    _small("view"),
    _text("status"),
    _bytes("output_digest", nullable=True),
    _number("reserved_in", _to("entries.seq")),
    _number("settled_in", _to("entries.seq"), nullable=True),
    _number("revoked_in", _to("entries.seq"), nullable=True),
    sqlite_strict=True,
)
_not_lost, _reserved = _calls_2.c.status != "lost", _calls_2.c.status == "reserved"
_one_call = (_calls_2.c.account, _calls_2.c.input_digest, _calls_2.c.repeat)
sa.Index("one_call_per_input", *_one_call, unique=True, sqlite_where=_not_lost, postgresql_where=_not_lost)
sa.Index("unsettled_calls", _calls_2.c.session, sqlite_where=_reserved, postgresql_where=_reserved)
sa.Index("calls_by_session", _calls_2.c.session)
sa.Table("leases", _schema_2, _key("session", _to("sessions.id")), _text("host"), _number("beat"), sqlite_strict=True)

# From 2 to 3; {big} is the database's type for large numbers.
_BILLS = (
    "CREATE TABLE bills ("
    "call {big} NOT NULL, settled_in {big} NOT NULL, billed TEXT NOT NULL, cost_micros {big} NOT NULL, "
    "tokens_in {big}, tokens_out {big}, model TEXT, request_id TEXT, failure TEXT, replaced_in {big}, "
    "PRIMARY KEY (call, settled_in), FOREIGN KEY(call) REFERENCES calls (id), "
    "FOREIGN KEY(settled_in) REFERENCES entries (seq), FOREIGN KEY(replaced_in) REFERENCES entries (seq)"
    "){strict}"
)
_ONE_CALL = (
    "CREATE UNIQUE INDEX one_call_per_input ON calls (account, input_digest, repeat) "
    "WHERE status != 'lost' AND status != 'returned'"
)
_TO_3 = (
    "ALTER TABLE accounts ADD COLUMN returned {big} DEFAULT 0 NOT NULL",
    "ALTER TABLE accounts ADD COLUMN reserved_micros {big} DEFAULT 0 NOT NULL",
    "ALTER TABLE accounts ADD COLUMN spent_micros {big} DEFAULT 0 NOT NULL",
    "ALTER TABLE accounts ADD COLUMN budget_micros {big}",
    "ALTER TABLE calls ADD COLUMN upper_micros {big} DEFAULT 0 NOT NULL",
    _BILLS,
    "CREATE INDEX bills_by_request ON bills (request_id)",
    "DROP INDEX one_call_per_input",
    _ONE_CALL,
)
STEPS = {2: _TO_3}


def bring_forward(connection: sa.Connection, version: int) -> None:
    """Make of a ledger's tables those of the current schema, inside a transaction of the caller's."""
    is_file = connection.dialect.name == "sqlite"
    words = {"big": "INTEGER" if is_file else "BIGINT", "strict": " STRICT" if is_file else ""}
    for step in range(version, SCHEMA_VERSION):
        for statement in STEPS[step]:
            connection.exec_driver_sql(statement.format(**words))


def recorded_schema(connection: sa.Connection) -> object:
    """What the chain says of the schema, in its newest `schema` entry or in the genesis; None if that is unreadable."""
    entries = current.entries
    newest: sa.Select[Any] = sa.select(entries.c.payload).order_by(entries.c.seq.desc()).limit(1)
    brought = connection.execute(newest.where(entries.c.kind == "schema")).scalar()
    begun = connection.execute(newest.where(entries.c.seq == 1)).scalar() if brought is None else None
    with suppress(ValueError, KeyError, TypeError, RecursionError):
        return json.loads(begun or "{}")["schema"] if brought is None else json.loads(brought)["to"]
    return None


def tables_of(version: object) -> Tables:
    """The tables of a ledger of some schema; the current ones for what no release knows."""
    return _TABLES.get(version, _CURRENT) if type(version) is int else _CURRENT


def _with_zeros(table: sa.Table, wanted: sa.Table) -> sa.FromClause:
    """A table as if it had all columns of another, each its default in every row."""
    missing = [column for column in wanted.columns if column.name not in table.columns]
    values = [
        (sa.null() if column.nullable else sa.literal_column("0")).cast(column.type).label(column.name)
        for column in missing
    ]
    return sa.select(table, *values).subquery(table.name)


def _without_rows(wanted: sa.Table) -> sa.FromClause:
    columns = [sa.null().cast(column.type).label(column.name) for column in wanted.columns]
    return sa.select(*columns).where(sa.false()).subquery(wanted.name)


_CURRENT = Tables(current.metadata, current.accounts, current.calls, current.bills)
_TABLES = {
    SCHEMA_VERSION: _CURRENT,
    2: Tables(
        _schema_2,
        _with_zeros(_accounts_2, current.accounts),
        _with_zeros(_calls_2, current.calls),
        _without_rows(current.bills),
    ),
}
