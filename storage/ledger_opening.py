"""What is in a database that is opened as a ledger: nothing yet, a ledger of some schema and key, or something else."""

from __future__ import annotations

import json
from pathlib import Path

import sqlalchemy as sa

from ground.errors import StoreUnreadable
from storage.database import Database, parse_url, sqlite_path
from storage.ledger_chain import KEY_VARIABLE, Seal
from storage.ledger_migrations import OLDEST_SCHEMA, SCHEMA_VERSION
from storage.ledger_schema import Schema, look_at_schema
from storage.ledger_tables import entries


def ledger_exists(url: str | Path) -> bool:
    """Whether there is a ledger at a URL.

    Raises:
        StoreUnreadable: a server does not answer, or what is there is something else's.
    """
    file = sqlite_path(parse_url(url))
    if file is not None and not file.is_file():
        return False
    database = Database(url, create=False, patience_seconds=0.0)
    try:
        return not look_at(database).is_empty
    finally:
        database.close()


def look_at(database: Database) -> Schema:
    """What is in a database; raises `StoreUnreadable` unless that is nothing, or tables that can be read as ours."""
    schema = database.read(look_at_schema)
    if type(schema.version) is int and schema.version > SCHEMA_VERSION:
        raise StoreUnreadable(
            f"the ledger at {database.shown_url} is of schema {schema.version}, written by a newer release than this "
            f"one, which reads {OLDEST_SCHEMA} to {SCHEMA_VERSION}; upgrade this one, with: pip install --upgrade "
            "teacher-cache"
        )
    if not schema.is_empty and (obstacles := schema.obstacles()):
        raise StoreUnreadable(
            f"what is at {database.shown_url} is damaged, or another program's, and no ledger that any release made: "
            f"{obstacles[0]}; nothing was changed in it; name another place, or bring the ledger back from a copy"
        )
    return schema


def key_problem(database: Database, version: int, seal: Seal) -> str | None:
    """What is wrong with the key that is set, or with none being set, for a ledger of a schema; None if nothing is.

    Raises:
        StoreUnreadable: no release wrote how it begins.
    """
    columns = (entries.c.seq, entries.c.kind, entries.c.at, entries.c.payload, entries.c.previous)
    query = sa.select(*columns, entries.c.hash).where(entries.c.seq == 1)
    first = database.read(lambda connection: connection.execute(query).first())
    try:
        sealed_as = json.loads(first.payload if first else "{}").get("seal")
    except (ValueError, TypeError, AttributeError, RecursionError):
        sealed_as = None
    is_known = OLDEST_SCHEMA <= version <= SCHEMA_VERSION
    if first is None or not is_known or not isinstance(sealed_as, str):
        raise StoreUnreadable(
            f"the ledger at {database.shown_url} is not of schema {OLDEST_SCHEMA} to {SCHEMA_VERSION}; use the release "
            "that made it"
        )
    if sealed_as != seal.name:
        if seal.name == "sha256":
            return f"the ledger at {database.shown_url} is sealed with a key; set it in {KEY_VARIABLE}"
        return (
            f"{KEY_VARIABLE} is set, and the ledger at {database.shown_url} is sealed without a key: it was begun "
            f"without one, or forged; unset {KEY_VARIABLE} to go on with it"
        )
    if seal.name != "sha256" and first.hash != seal.hash(*first[:5]):
        return f"the ledger at {database.shown_url} is sealed with another key than the one in {KEY_VARIABLE}"
    return None
