"""Opening the ledger's database: SQLite made durable and patient, or whatever else SQLAlchemy reaches."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from urllib.parse import quote

import sqlalchemy as sa

from storage.errors import InvalidInput, StoreUnreadable


def parse_url(url: str | Path) -> sa.URL:
    """A URL from a URL or the path of an SQLite file; raises `InvalidInput` if no driver can open it."""
    if isinstance(url, Path) or "://" not in url:
        if not str(url):
            raise InvalidInput("an empty ledger URL names no ledger; give sqlite:///FILE or postgresql://...")
        return sa.URL.create("sqlite", database=str(Path(url).absolute()))
    try:
        parsed = sa.make_url(url)
        parsed.get_dialect().import_dbapi()
    except ImportError as error:
        raise InvalidInput(f"this ledger needs the package {error.name}; install it with pip") from error
    except (sa.exc.ArgumentError, sa.exc.NoSuchModuleError) as error:
        raise InvalidInput(
            "the ledger URL cannot be used; give sqlite:///FILE or postgresql://USER@HOST/DATABASE"
        ) from error
    if parsed.get_backend_name() != "sqlite":
        return parsed
    if not parsed.database or parsed.database == ":memory:" or parsed.query:
        raise InvalidInput("a ledger in memory would be lost; give sqlite:///FILE, without options")
    return parsed.set(database=str(Path(parsed.database).absolute()))


def shown_url(url: str) -> str:
    """A ledger's URL without its password, for manifests and messages."""
    return parse_url(url).render_as_string(hide_password=True)


def ledger_exists(url: str) -> bool:
    """False where there is no file; a server is always taken to be there."""
    path = sqlite_path(parse_url(url))
    return path is None or path.is_file()


def sqlite_path(url: sa.URL) -> Path | None:
    """The file behind an SQLite URL."""
    return Path(url.database) if url.get_backend_name() == "sqlite" and url.database else None


def make_engine(url: sa.URL, *, create: bool) -> sa.Engine:
    """An engine whose connections wait for each other; those with the option `writes` take the lock at once."""
    path = sqlite_path(url)
    if path is None:
        # A reader sees one state from its first query to its last.
        return sa.create_engine(url, isolation_level="REPEATABLE READ")
    if path.is_file() and not (os.access(path, os.W_OK) and os.access(path.parent, os.W_OK)):
        return _read_only_engine(path)
    engine = sa.create_engine(url)
    sa.event.listen(engine, "connect", _prepare_sqlite)
    sa.event.listen(engine, "begin", _begin_sqlite)
    if create:
        # Kept in the file: every later connection is in this mode too.
        sa.event.listen(engine, "connect", lambda connection, _: connection.execute("PRAGMA journal_mode = WAL"))
    return engine


def _read_only_engine(path: Path) -> sa.Engine:
    """SQLite from a place where it can make no files: what is there, without locks."""
    waiting = path.with_name(path.name + "-wal")
    if waiting.is_file() and waiting.stat().st_size:
        raise StoreUnreadable(f"{path} was left open by a build and cannot be read where nothing can be written")
    quoted = quote(str(path))
    return sa.create_engine(f"sqlite:///file:{quoted}?mode=ro&immutable=1&uri=true")


def _prepare_sqlite(connection: Any, _: object) -> None:
    # The driver must not open transactions on its own: `_begin_sqlite` decides which kind.
    connection.isolation_level = None
    for pragma in ("busy_timeout = 60000", "synchronous = FULL", "foreign_keys = ON"):
        connection.execute(f"PRAGMA {pragma}").close()


def _begin_sqlite(connection: sa.Connection) -> None:
    # A writer takes the lock at once, so that two of them queue instead of failing half-way.
    writes = connection.get_execution_options().get("writes")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
