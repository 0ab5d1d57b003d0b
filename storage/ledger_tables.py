"""The ledger's tables, as SQLAlchemy Core: SQLite and PostgreSQL alike.

`entries` is the journal: append-only, each entry hashed together with the one before it. `calls` holds one row per
teacher call; which entries reserved and settled it is part of the row, and each entry's payload holds a digest of
the rows it wrote, so a changed row no longer matches its entry. `sessions` says who called, once per builder run.
`accounts` are running totals per teacher, so that a budget check does not count rows.
"""

from __future__ import annotations

import sqlalchemy as sa

metadata = sa.MetaData()

# SQLite only makes INTEGER keys fast; PostgreSQL needs BIGINT for more than 2**31 calls.
_BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")

entries = sa.Table(
    "entries",
    metadata,
    sa.Column("seq", _BIG, primary_key=True, autoincrement=False),
    sa.Column("kind", sa.String(16), nullable=False),
    sa.Column("at", sa.String(32), nullable=False),
    sa.Column("payload", sa.Text, nullable=False),
    sa.Column("previous", sa.String(64), nullable=False),
    sa.Column("hash", sa.String(64), nullable=False),
)

sessions = sa.Table(
    "sessions",
    metadata,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("teacher", sa.String(64), nullable=False),
    sa.Column("teacher_name", sa.String(64), nullable=False),
    sa.Column("store", sa.String(32), nullable=False),
    sa.Column("location", sa.Text, nullable=False),
    sa.Column("purpose", sa.String(16), nullable=False),
    sa.Column("device", sa.String(64), nullable=False),
    sa.Column("precision", sa.String(16), nullable=False),
    sa.Column("outputs", sa.Text, nullable=False),
)

calls = sa.Table(
    "calls",
    metadata,
    sa.Column("id", _BIG, primary_key=True, autoincrement=False),
    sa.Column("session", sa.String(32), sa.ForeignKey("sessions.id"), nullable=False),
    sa.Column("teacher", sa.String(64), nullable=False),
    sa.Column("input_digest", sa.LargeBinary(16), nullable=False),
    sa.Column("sample", _BIG, nullable=False),
    sa.Column("row", _BIG, nullable=False),
    sa.Column("view", sa.Integer, nullable=False),
    sa.Column("status", sa.String(16), nullable=False),
    sa.Column("output_digest", sa.LargeBinary(16)),
    sa.Column("reserved_in", _BIG, sa.ForeignKey("entries.seq"), nullable=False),
    sa.Column("settled_in", _BIG, sa.ForeignKey("entries.seq")),
)
sa.Index(
    "one_call_per_input",
    calls.c.teacher,
    calls.c.input_digest,
    unique=True,
    sqlite_where=calls.c.status != "lost",
    postgresql_where=calls.c.status != "lost",
)
sa.Index(
    "calls_by_status",
    calls.c.status,
    sqlite_where=calls.c.status == "reserved",
    postgresql_where=calls.c.status == "reserved",
)

accounts = sa.Table(
    "accounts",
    metadata,
    sa.Column("teacher", sa.String(64), primary_key=True),
    sa.Column("name", sa.String(64), nullable=False),
    sa.Column("reserved", _BIG, nullable=False),
    sa.Column("committed", _BIG, nullable=False),
    sa.Column("lost", _BIG, nullable=False),
    sa.Column("budget", _BIG),
)
