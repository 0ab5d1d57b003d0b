"""Whether a ledger may be shared: one that lies in a store's folder, as its own, is that store's alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import sqlalchemy as sa

from ground.errors import CKDError, InvalidInput
from storage.database import parse_url, sqlite_path
from storage.ledger import Ledger
from storage.ledger_tables import sessions
from storage.manifest import Manifest
from storage.store_folder import LEDGER_FILE


def require_shared(ledger: Ledger, url: str) -> None:
    """Raise `InvalidInput` for the own ledger of a store, or a copy of it while that store is where it was built.

    A store with a ledger of its own is copied, moved and deleted with it; another store's calls would go along.
    """
    file = sqlite_path(parse_url(url))
    if file is None:
        return
    for folder in _whose_own(ledger, file):
        raise InvalidInput(
            f"{file} is the own ledger of the store at {folder}, and no other store's calls belong into it; leave "
            "--ledger out, or name a file that stores share from the beginning"
        )


def _whose_own(ledger: Ledger, file: Path) -> Iterator[Path]:
    beside = _with_own_ledger(file.parent) if file.name == LEDGER_FILE else None
    if beside is not None:
        yield file.parent
    with ledger.reading() as connection:
        rows = connection.execute(sa.select(sessions.c.store, sessions.c.location).distinct()).all()
    for store, location in rows:
        if _with_own_ledger(Path(location)) == store:
            yield Path(location)


def _with_own_ledger(folder: Path) -> str | None:
    """Id of the store in a folder, if there is one that has a ledger of its own."""
    try:
        manifest = Manifest.load(folder)
    except (CKDError, OSError, ValueError):
        return None
    return manifest.store_id if manifest.ledger is None else None
