"""An SQLite file as a ledger is kept in: opened so that only it, and what SQLite keeps beside it, is touched.

SQLite acts on what lies beside its file. A rollback journal, `FILE-journal`, may name a further file, a super-journal,
which SQLite deletes when it has rolled back: in a folder from somebody else, any file of the user's. Our files are in
WAL mode from their first byte, so there is no journal that could be ours, and none is shown to SQLite.
"""

from __future__ import annotations

import os
import sqlite3
import stat
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

from ground.durable import create
from ground.errors import StoreUnreadable, suggested
from storage.holders import advice, lock_holders, named

SIDE_FILES = ("-wal", "-shm")
JOURNAL = "-journal"
# Of the header: which way of writing the file is in, for writers and for readers; 2 is WAL.
_VERSIONS = slice(18, 20)
_WAL = b"\2\2"
# First byte and number of the bytes that SQLite locks for writers: WAL_WRITE_LOCK and on, PENDING_BYTE and on.
_WAL_LOCKS = (120, 3)
_FILE_LOCKS = (0x40000000, 512)


def require_own(path: Path) -> None:
    """Refuse to have SQLite open a file beside which lies what is not the ledger's.

    Raises:
        StoreUnreadable: there is a rollback journal; or one of the files is a link, a folder, a pipe, or, beside the
            ledger itself, known by a second name elsewhere.
    """
    for suffix in ("", *SIDE_FILES, JOURNAL):
        file = path.with_name(path.name + suffix)
        # In one look: whoever closes the ledger last deletes what lies beside it.
        try:
            status = file.lstat()
        except FileNotFoundError:
            continue
        if not stat.S_ISREG(status.st_mode) or (suffix and status.st_nlink > 1):
            raise StoreUnreadable(f"{file} is no file of its own, but a link, a folder or a pipe; move it away")
        if suffix == JOURNAL:
            raise StoreUnreadable(
                f"{file} is a rollback journal, which can name any file for SQLite to delete, and no ledger of ours "
                "has one; move it away, then look at the ledger with: "
                f"{suggested('ckd-cache ledger verify', ledger=f'sqlite:///{path.absolute()}')}"
            )


def make(path: Path) -> None:
    """Make an empty database in WAL mode, if there is no file; it never has a rollback journal, not even now."""
    if os.path.lexists(path):
        return
    with closing(sqlite3.connect(":memory:")) as database:
        for version in (1, 0):  # without a change there would be no header
            database.execute(f"PRAGMA user_version = {version}")
        content = bytearray(database.serialize())
    content[_VERSIONS] = _WAL
    create(path, bytes(content))


def writers(path: Path) -> str:
    """Who holds the lock that all writers take turns with, and what to do, for a message."""
    # In WAL mode it is a byte of the -shm file, next to those of who checkpoints and who recovers.
    holders = lock_holders(path.with_name(f"{path.name}-shm"), *_WAL_LOCKS) or lock_holders(path, *_FILE_LOCKS)
    return f"{named(holders)}; {advice(holders)}"


def connect(path: Path, options: str) -> sqlite3.Connection:
    """A connection to a file that is there; see `require_own`.

    Args:
        options: of the URI, for instance "mode=rw".
    """
    # Before each connection, since SQLite looks for a journal at each.
    require_own(path)
    connection = sqlite3.connect(f"file:{quote(str(path))}?{options}", uri=True, check_same_thread=False)
    # No other file can be opened through this one.
    connection.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)
    return connection
