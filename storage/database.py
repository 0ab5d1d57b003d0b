"""Opening the ledger's database: SQLite made durable and patient, or PostgreSQL, and its errors as sentences."""

from __future__ import annotations

import logging
import os
import re
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import parse_qsl

import sqlalchemy as sa
from sqlalchemy.dialects.sqlite.pysqlite import SQLiteDialect_pysqlite
from sqlalchemy.util import LRUCache

from ground.errors import DiskFull, InvalidInput, StoreBusy, StoreUnreadable
from storage import sqlite_file
from storage.foreign import what_it_is

log = logging.getLogger(__name__)

_Result = TypeVar("_Result")
_MAX_WAIT_SECONDS = 5.0
_URL_ADVICE = "the ledger URL cannot be used; give sqlite:///FILE or postgresql://USER@HOST/DATABASE"
# A path that looks so may be a URL with a slip in it, and hold a password.
_LIKE_A_URL = re.compile(r"@|^[A-Za-z][A-Za-z0-9+]*:|^//")
_QUERY_OPTIONS = {"sslmode", "sslrootcert", "connect_timeout", "application_name", "host", "port"}
# Any number will do, as long as every release takes the same.
_CREATION_LOCK = 0x636B64
# Our transactions take milliseconds: one that stands still is of a process that is stopped or a machine that is gone,
# and the server rolls it back, since everybody else waits for it.
IDLE_SECONDS = 30.0
# How long SQLite itself waits for whoever writes.
BUSY_SECONDS = 60.0
# A network that falls silent is noticed on our side too.
_POSTGRESQL_ARGUMENTS = {"connect_timeout": 10, "keepalives_idle": 30, "tcp_user_timeout": 30_000}


class Database:
    """Transactions on one database; those that write take turns.

    Args:
        url: an SQLAlchemy URL, or the path of an SQLite file.
        create: make the file of an SQLite database.
        patience_seconds: how long to wait for a server that went away before giving up.
    """

    def __init__(self, url: str | Path, *, create: bool, patience_seconds: float) -> None:
        self.url = parse_url(url)
        self.shown_url = self.url.render_as_string(hide_password=True)
        self.file = sqlite_path(self.url)
        if self.file is not None and not create and not self.file.is_file():
            raise StoreUnreadable(
                f"there is no ledger at {self.file}; build a store first with: "
                "ckd-cache build --teacher NAME --dataset DATASET --n N"
            )
        self._engine = make_engine(self.url, create=create)
        self._patience = patience_seconds
        self._file_id: tuple[int, int] | None = None

    def close(self) -> None:
        """Release it; an SQLite database is then a single file again."""
        self._engine.dispose()

    @contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """A connection that sees one consistent state."""
        with self._explained(), self._engine.connect() as connection:
            yield connection

    def write(
        self, work: Callable[[sa.Connection], _Result], *, lock: sa.Table | None = None, patient: bool = True
    ) -> _Result:
        """Do some work in one transaction; if the server goes away, wait for it and do it again.

        Args:
            work: must have the same effect done twice as once, since an answer can be lost on its way back.
            lock: a table that nobody else may write to meanwhile.
            patient: wait for a server that went away; otherwise that is an error at once.
        """
        return self._patiently(lambda: self._attempt(work, lock), self._patience if patient else 0.0)

    def read(self, work: Callable[[sa.Connection], _Result]) -> _Result:
        """Look at one consistent state; if the server goes away, wait for it and look again."""

        def attempt() -> _Result:
            with self._engine.connect() as connection:
                return work(connection)

        return self._patiently(attempt, self._patience)

    def _patiently(self, attempt: Callable[[], _Result], patience: float) -> _Result:
        started, wait = time.monotonic(), 0.1
        while True:
            try:
                with self._explained():
                    return attempt()
            except _ServerGone as gone:
                left = patience - (time.monotonic() - started)
                if left <= 0:
                    kind = StoreBusy if isinstance(gone, _Locked) else StoreUnreadable
                    raise kind(f"{gone}; nothing was charged by this step") from gone
                log.warning("%s; trying again for %.0f s", gone, left)
                time.sleep(min(wait, left))
                wait = min(2 * wait, _MAX_WAIT_SECONDS)

    def copy_to(self, path: Path) -> None:
        """Copy an SQLite database into a new file, as it is at one moment."""
        with self.reading() as connection, closing(sqlite3.connect(path)) as copy:
            source = connection.connection.driver_connection
            assert isinstance(source, sqlite3.Connection), "a server's database is not copied"
            source.backup(copy)

    def create_tables(self, work: Callable[[sa.Connection], None]) -> None:
        """Do what makes tables that are not there, in one transaction, while nobody else does."""

        def create(connection: sa.Connection) -> None:
            if connection.dialect.name == "postgresql":
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_CREATION_LOCK)))
            work(connection)

        self.write(create)

    def _attempt(self, work: Callable[[sa.Connection], _Result], lock: sa.Table | None) -> _Result:
        self._require_same_file()
        engine = self._engine.execution_options(writes=True)
        if self.file is None:
            engine = engine.execution_options(isolation_level="READ COMMITTED")
        with engine.begin() as connection:
            if lock is not None and connection.dialect.name == "postgresql":
                connection.execute(sa.text(f"LOCK TABLE {lock.name} IN EXCLUSIVE MODE"))
            return work(connection)

    def _require_same_file(self) -> None:
        """SQLite goes on writing to a file that was deleted or replaced: all it records would be lost."""
        if self.file is None:
            return
        try:
            found = self.file.stat()
        except FileNotFoundError:
            if self._file_id is None:
                return
            raise StoreUnreadable(f"the ledger {self.file} was deleted; bring it back before going on") from None
        if self._file_id is not None and self._file_id != (found.st_dev, found.st_ino):
            raise StoreUnreadable(f"the ledger {self.file} was replaced by another file; bring back the right one")
        self._file_id = (found.st_dev, found.st_ino)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sa.exc.IntegrityError:
            raise  # what our own indexes refuse is our own affair
        except (sa.exc.DatabaseError, sa.exc.InterfaceError) as error:
            reason = " ".join(str(error.orig).split())
            if self.file is not None and "file is not a database" in reason:
                reason += f", but {what_it_is(self.file)}"
            sentence = f"the ledger at {self.shown_url} cannot be used ({reason})"
            if self.file is not None and ("disk is full" in reason or "disk I/O error" in reason):
                raise DiskFull(
                    f"no room left to write {self.shown_url}, or its disk fails ({reason}); free some space, then run "
                    "the same command again: what is finished is kept"
                ) from error
            if self.file is not None and "database is locked" in reason:
                raise _Locked(
                    f"the ledger at {self.shown_url} is locked by {sqlite_file.writers(self.file)}"
                ) from error
            if self.file is None and isinstance(error, sa.exc.OperationalError | sa.exc.InterfaceError):
                raise _ServerGone(sentence) from error
            raise StoreUnreadable(f"{sentence}; nothing was charged by this step") from error
        except (UnicodeDecodeError, OverflowError) as error:
            # SQLite hands out whatever bytes a damaged file holds.
            raise StoreUnreadable(f"the ledger at {self.shown_url} is damaged ({error})") from error


class _ServerGone(StoreUnreadable):
    """A server does not answer, or stopped doing so."""


class _Locked(_ServerGone):
    """Somebody holds an SQLite file for longer than SQLite waits."""


def parse_url(url: str | Path) -> sa.URL:
    """A URL from a URL or the path of an SQLite file; raises `InvalidInput` if no driver can open it.

    What could hold a password in a place where it would not be hidden is refused, and not repeated.
    """
    if not str(url).isprintable():
        # Undecodable bytes of a file name, or control characters: no database or terminal takes them.
        raise InvalidInput(f"the ledger's place {str(url)!a} is no printable text; use another name")
    if isinstance(url, Path) or not _LIKE_A_URL.search(url):
        if not str(url):
            raise InvalidInput("an empty ledger URL names no ledger; give sqlite:///FILE or postgresql://...")
        if not isinstance(url, Path) and "?" in url:
            raise InvalidInput(
                f"the ledger {url} has a ? in its name, where options of a URL begin, and SQLite takes none; use "
                "another name"
            )
        return sa.URL.create("sqlite", database=str(Path(url).absolute()))
    try:
        parsed = sa.make_url(url)
    except (sa.exc.ArgumentError, ValueError) as error:
        raise InvalidInput(_URL_ADVICE) from error
    if parsed.drivername == "sqlite" and "://" in url:
        if "?" in url or parsed.host or parsed.username or (parsed.database or "").startswith("file:"):
            # Not repeated: what stands where a server's user and host do may hold a password.
            raise InvalidInput(
                "a ledger in SQLite takes no host, user or options; give sqlite:///FILE, where FILE has no ? in its "
                "name and is no URI"
            )
        if not parsed.database or parsed.database == ":memory:":
            raise InvalidInput("a ledger in memory would be lost; give sqlite:///FILE")
        return parsed.set(database=str(Path(parsed.database).absolute()))
    if parsed.drivername not in ("postgresql", "postgresql+psycopg") or "://" not in url:
        raise InvalidInput(_URL_ADVICE)
    if "@" in (parsed.host or "") or "=" in (parsed.database or "") or not _can_be_obeyed(url, parsed):
        raise InvalidInput(
            "the ledger URL cannot be used; give postgresql://USER:PASSWORD@HOST/DATABASE, where @ in a password is "
            f"%40, with no options but {', '.join(sorted(_QUERY_OPTIONS))}, each with a value; or the password in "
            "PGPASSWORD"
        )
    parsed = parsed.set(drivername="postgresql+psycopg")
    try:
        parsed.get_dialect().import_dbapi()
    except ImportError as error:
        raise InvalidInput(
            f"this ledger needs the package {error.name}; install it with: pip install 'teacher-cache[postgresql]'"
        ) from error
    return parsed


def _can_be_obeyed(url: str, parsed: sa.URL) -> bool:
    """Whether all options of a server's URL are known, and have a value: without one they would be left out."""
    place = url.partition("://")[2]
    if parsed.username is not None:
        place = place.partition("@")[2]
    options = parse_qsl(place.partition("?")[2], keep_blank_values=True, separator="&")
    asked = [name for name, value in options if value]
    many = {name for name in asked if asked.count(name) > 1} - {"host", "port"}
    return len(asked) == len(options) and not many and not set(asked) - _QUERY_OPTIONS


def shown_url(url: str) -> str:
    """A ledger's URL without its password, for manifests and messages."""
    return parse_url(url).render_as_string(hide_password=True)


def sqlite_path(url: sa.URL) -> Path | None:
    """The file behind an SQLite URL."""
    return Path(url.database) if url.get_backend_name() == "sqlite" and url.database else None


def make_engine(url: sa.URL, *, create: bool) -> sa.Engine:
    """An engine whose connections wait for each other; those with the option `writes` take the lock at once."""
    path = sqlite_path(url)
    if path is None:
        # A reader sees one state from its first query to its last.
        engine = sa.create_engine(
            url, isolation_level="REPEATABLE READ", pool_pre_ping=True, connect_args=_POSTGRESQL_ARGUMENTS
        )
        sa.event.listen(engine, "connect", _prepare_postgresql)
        return engine
    sqlite_file.require_own(path)
    if create:
        sqlite_file.make(path)
    options = _options(path)
    engine = sa.create_engine(
        url.set(drivername=_SHARED),
        creator=lambda: sqlite_file.connect(path, options),
        execution_options={"compiled_cache": _compiled},
    )
    sa.event.listen(engine, "connect", _prepare_sqlite)
    sa.event.listen(engine, "begin", _begin_sqlite)
    return engine


class _SharedDialect(SQLiteDialect_pysqlite):
    """SQLite's, and equal to that of any other file: a statement is compiled once in a process, not for each ledger."""

    supports_statement_cache = True

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self)

    def __hash__(self) -> int:
        return hash(type(self))


_SHARED = "sqlite+shared"
sa.dialects.registry.register("sqlite.shared", __name__, _SharedDialect.__name__)
# As many as an engine keeps by itself.
_compiled: LRUCache[Any, Any] = LRUCache(500)


def _options(path: Path) -> str:
    """How to open SQLite's file; from a place where it can make no files: what is there, without locks."""
    if os.access(path, os.W_OK) and os.access(path.parent, os.W_OK):
        return "mode=rw"
    waiting = path.with_name(path.name + "-wal")
    try:
        is_waiting = waiting.stat().st_size > 0
    except FileNotFoundError:
        is_waiting = False
    if is_waiting:
        raise StoreUnreadable(f"{path} was left open by a build and cannot be read where nothing can be written")
    return "mode=ro&immutable=1"


def _prepare_postgresql(connection: Any, _: object) -> None:
    settings: dict[str, float | str] = {
        # Whatever the database's own setting is: what was committed must outlive the server.
        "synchronous_commit": "on",
        "idle_in_transaction_session_timeout": 1000 * IDLE_SECONDS,
        "tcp_keepalives_idle": IDLE_SECONDS,
        "tcp_keepalives_interval": IDLE_SECONDS / 3,
        "tcp_keepalives_count": 3,
    }
    for name, value in settings.items():
        connection.execute(f"SET SESSION {name} = {value if isinstance(value, str) else max(1, int(value))}")
    connection.commit()


def _prepare_sqlite(connection: Any, _: object) -> None:
    # The driver must not open transactions on its own: `_begin_sqlite` decides which kind.
    connection.isolation_level = None
    # A file from a stranger runs none of its own functions.
    for pragma in (
        f"busy_timeout = {1000 * BUSY_SECONDS:.0f}",
        "synchronous = FULL",
        "foreign_keys = ON",
        "trusted_schema = OFF",
    ):
        connection.execute(f"PRAGMA {pragma}").close()


def _begin_sqlite(connection: sa.Connection) -> None:
    # A writer takes the lock at once, so that two of them queue instead of failing half-way.
    writes = connection.get_execution_options().get("writes")
    if writes:
        # A copy that a program made row by row may be in another mode, and would be given a journal.
        connection.exec_driver_sql("PRAGMA journal_mode = WAL").close()
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
