"""The ledger's journal: entries that follow each other without a gap, each hashed together with the one before it.

Who appends is inside a transaction that has the journal's lock, so there is one newest entry. What is asked of an entry
is its number, its hash or its kind; an entry whose content was damaged is passed over here, since its hash finds it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Set
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa

from storage.ledger_chain import GENESIS, Seal
from storage.ledger_tables import entries

# Chains an entry of a kind, with its content; returns its number.
Append = Callable[[sa.Connection, str, Mapping[str, Any]], int]

# Of every batch: to put a query together takes SQLAlchemy longer than SQLite takes to answer it.
_NEWEST: sa.Select[Any] = sa.select(entries.c.seq, entries.c.hash).order_by(entries.c.seq.desc()).limit(1)
_CHAIN = sa.insert(entries)


def append_entry(connection: sa.Connection, seal: Seal, kind: str, content: Mapping[str, Any]) -> int:
    """Chain an entry to the newest; returns its number."""
    seq, previous = newest(connection)
    seq, at, payload = seq + 1, now(), _text(content)
    hash_ = seal.hash(seq, kind, at, payload, previous)
    row = {"seq": seq, "kind": kind, "at": at, "payload": payload, "previous": previous, "hash": hash_}
    connection.execute(_CHAIN, row)
    return seq


def now() -> str:
    """The time as entries have it, in UTC."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def newest(connection: sa.Connection) -> tuple[int, str]:
    """Number and hash of the newest entry; before the first, what that follows."""
    row = connection.execute(_NEWEST).first()
    return (0, GENESIS) if row is None else (row.seq, row.hash)


def newest_time(connection: sa.Connection) -> str | None:
    """When the newest entry was chained, as its machine's clock said."""
    return connection.execute(sa.select(entries.c.at).order_by(entries.c.seq.desc()).limit(1)).scalar()


def first_hash(connection: sa.Connection) -> str | None:
    """Hash of entry 1."""
    return connection.execute(sa.select(entries.c.hash).where(entries.c.seq == 1)).scalar()


def entry_number(connection: sa.Connection, hash_: str) -> int | None:
    """Number of the entry with this hash, or None."""
    # The newest first: what a store or a run noted of its ledger is mostly near its end.
    query = sa.select(entries.c.seq).where(entries.c.hash == hash_).order_by(entries.c.seq.desc()).limit(1)
    return connection.execute(query).scalar()


def newest_of_calls(connection: sa.Connection) -> str:
    """Hash of the newest entry that is not of a finished run."""
    query = sa.select(entries.c.hash).where(entries.c.kind != "run").order_by(entries.c.seq.desc()).limit(1)
    return connection.execute(query).scalar() or GENESIS


def store_record(connection: sa.Connection, store: str) -> dict[str, Any] | None:
    """What was last recorded of a store."""
    query = sa.select(entries.c.payload).where(entries.c.kind == "store").order_by(entries.c.seq.desc())
    return next((content for content in _readable(connection, query) if content.get("store") == store), None)


def record_store(connection: sa.Connection, append: Append, store: str, content: Mapping[str, Any]) -> None:
    """Chain what a store is, unless that is what was recorded last."""
    said = {"store": store, **content}
    if store_record(connection, store) != said:
        append(connection, "store", said)


def record_run(connection: sa.Connection, append: Append, content: Mapping[str, Any]) -> None:
    """Chain the digests of a finished run, unless an entry says the same already."""
    same = sa.select(entries.c.seq).where(entries.c.kind == "run", entries.c.payload == _text(content))
    if connection.execute(same).first() is None:
        append(connection, "run", content)


def hosts_of_sessions(connection: sa.Connection, stores: Set[str]) -> dict[int, str]:
    """Session -> its host, of every session of stores with these ids."""
    found: dict[int, str] = {}
    for content in _readable(connection, sa.select(entries.c.payload).where(entries.c.kind == "session")):
        with suppress(ValueError, KeyError, TypeError):
            if content["store"] in stores:
                found[int(content["id"])] = str(content["host"])
    return found


def _text(content: Mapping[str, Any]) -> str:
    return json.dumps(content, sort_keys=True, separators=(",", ":"))


def _readable(connection: sa.Connection, query: sa.Select[Any]) -> Iterator[dict[str, Any]]:
    """Contents that can be read; the others are damaged."""
    for payload in connection.execute(query).scalars():
        with suppress(ValueError, RecursionError):
            content = json.loads(payload)
            if isinstance(content, dict):
                yield content
