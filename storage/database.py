"""Opening the ledger's database: SQLite made durable and patient, or whatever else SQLAlchemy reaches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import sqlalchemy as sa

from storage.errors import InvalidInput


def parse_url(url: str | Path) -> sa.URL:
    """A URL from a URL or the path of an SQLite file; raises `InvalidInput` if no driver can open it."""
    if isinstance(url, Path) or "://" not in url:
        return sa.URL.create("sqlite", database=str(url))
    try:
        parsed = sa.make_url(url)
        parsed.get_dialect().import_dbapi()
    except ImportError as error:
        raise InvalidInput(f"this ledger needs the package {error.name}; install it with pip") from error
    except (sa.exc.ArgumentError, sa.exc.NoSuchModuleError) as error:
        raise InvalidInput(
            "the ledger URL cannot be used; give sqlite:///FILE or postgresql://USER@HOST/DATABASE"
        ) from error
    return parsed


def sqlite_path(url: sa.URL) -> Path | None:
    """The file behind an SQLite URL."""
    return Path(url.database) if url.get_backend_name() == "sqlite" and url.database else None


def make_engine(url: sa.URL) -> sa.Engine:
    """An engine whose connections wait for each other; those with the option `writes` take the lock at once."""
    engine = sa.create_engine(url)
    if url.get_backend_name() == "sqlite":
        sa.event.listen(engine, "connect", _prepare_sqlite)
        sa.event.listen(engine, "begin", _begin_sqlite)
    return engine


def _prepare_sqlite(connection: Any, _: object) -> None:
    # The driver must not open transactions on its own: `_begin_sqlite` decides which kind.
    connection.isolation_level = None
    for pragma in ("busy_timeout = 60000", "journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
        connection.execute(f"PRAGMA {pragma}").close()


def _begin_sqlite(connection: sa.Connection) -> None:
    # A writer takes the lock at once, so that two of them queue instead of failing half-way.
    writes = connection.get_execution_options().get("writes")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
