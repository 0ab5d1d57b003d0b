"""The ledger's tables, as SQLAlchemy Core: SQLite and PostgreSQL alike.

`entries` is the journal: append-only, each entry hashed together with the one before it. `calls` holds one row per
teacher call; which entries reserved, settled and revoked it is part of the row, and each entry's payload holds a
digest of the rows it wrote, so a changed row no longer matches its entry. `bills` says what a call cost, of those that
cost something or were billed elsewhere; one that is decided later gets another row, and the first says so. `sessions`
says who called, once per builder run. `accounts` are running totals per teacher, so that a budget check does not count
rows. `leases` says which sessions are alive; it is the only table whose rows go, and nothing that was spent depends on
it. Money is in micros (`storage/price.py`).

These are the tables of schema 3; those of older schemas are in `storage/ledger_migrations.py`.
"""

from __future__ import annotations

import sqlalchemy as sa

metadata = sa.MetaData()

# SQLite only makes INTEGER keys fast; PostgreSQL needs BIGINT for more than 2**31 calls.
_BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def _sum(name: str) -> sa.Column[int]:
    """A number that is 0 where nothing says otherwise: such a column can be added to a table that has rows."""
    return sa.Column(name, _BIG, nullable=False, server_default=sa.text("0"))


# Strict tables: SQLite refuses values of another type than the column's, and finds them when it checks the file.

entries = sa.Table(
    "entries",
    metadata,
    sa.Column("seq", _BIG, primary_key=True, autoincrement=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("at", sa.Text, nullable=False),
    sa.Column("payload", sa.Text, nullable=False),
    sa.Column("previous", sa.Text, nullable=False),
    sa.Column("hash", sa.Text, nullable=False),
    sqlite_strict=True,
)
sa.Index("entries_by_kind", entries.c.kind)

accounts = sa.Table(
    "accounts",
    metadata,
    sa.Column("id", _BIG, primary_key=True, autoincrement=False),
    sa.Column("teacher", sa.Text, nullable=False, unique=True),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("reserved", _BIG, nullable=False),
    sa.Column("committed", _BIG, nullable=False),
    sa.Column("lost", _BIG, nullable=False),
    sa.Column("budget", _BIG),
    _sum("returned"),
    _sum("reserved_micros"),
    _sum("spent_micros"),
    sa.Column("budget_micros", _BIG),
    sqlite_strict=True,
)

sessions = sa.Table(
    "sessions",
    metadata,
    sa.Column("id", _BIG, primary_key=True, autoincrement=False),
    sa.Column("account", _BIG, sa.ForeignKey("accounts.id"), nullable=False),
    sa.Column("store", sa.Text, nullable=False),
    sa.Column("location", sa.Text, nullable=False),
    sa.Column("purpose", sa.Text, nullable=False),
    sa.Column("device", sa.Text, nullable=False),
    sa.Column("precision", sa.Text, nullable=False),
    sa.Column("outputs", sa.Text, nullable=False),
    sqlite_strict=True,
)

calls = sa.Table(
    "calls",
    metadata,
    sa.Column("id", _BIG, primary_key=True, autoincrement=False),
    sa.Column("session", _BIG, sa.ForeignKey("sessions.id"), nullable=False),
    sa.Column("account", _BIG, sa.ForeignKey("accounts.id"), nullable=False),
    sa.Column("input_digest", sa.LargeBinary, nullable=False),
    sa.Column("repeat", sa.Integer, nullable=False),
    sa.Column("sample", _BIG, nullable=False),
    sa.Column("row", _BIG, nullable=False),
    sa.Column("view", sa.Integer, nullable=False),
    sa.Column("status", sa.Text, nullable=False),
    sa.Column("output_digest", sa.LargeBinary),
    sa.Column("reserved_in", _BIG, sa.ForeignKey("entries.seq"), nullable=False),
    sa.Column("settled_in", _BIG, sa.ForeignKey("entries.seq")),
    sa.Column("revoked_in", _BIG, sa.ForeignKey("entries.seq")),
    _sum("upper_micros"),
    sqlite_strict=True,
)
# Statuses of calls that do not answer their input: it may be asked again.
UNANSWERED = ("lost", "returned")
_stands = sa.and_(*(calls.c.status != status for status in UNANSWERED))
_reserved = calls.c.status == "reserved"
sa.Index(
    "one_call_per_input",
    calls.c.account,
    calls.c.input_digest,
    calls.c.repeat,
    unique=True,
    sqlite_where=_stands,
    postgresql_where=_stands,
)
sa.Index("unsettled_calls", calls.c.session, sqlite_where=_reserved, postgresql_where=_reserved)
sa.Index("calls_by_session", calls.c.session)

bills = sa.Table(
    "bills",
    metadata,
    sa.Column("call", _BIG, sa.ForeignKey("calls.id"), primary_key=True, autoincrement=False),
    sa.Column("settled_in", _BIG, sa.ForeignKey("entries.seq"), primary_key=True, autoincrement=False),
    sa.Column("billed", sa.Text, nullable=False),
    sa.Column("cost_micros", _BIG, nullable=False),
    sa.Column("tokens_in", _BIG),
    sa.Column("tokens_out", _BIG),
    sa.Column("model", sa.Text),
    sa.Column("request_id", sa.Text),
    sa.Column("failure", sa.Text),
    sa.Column("replaced_in", _BIG, sa.ForeignKey("entries.seq")),
    sqlite_strict=True,
)
sa.Index("bills_by_request", bills.c.request_id)

leases = sa.Table(
    "leases",
    metadata,
    sa.Column("session", _BIG, sa.ForeignKey("sessions.id"), primary_key=True, autoincrement=False),
    sa.Column("host", sa.Text, nullable=False),
    sa.Column("beat", _BIG, nullable=False),
    sqlite_strict=True,
)
