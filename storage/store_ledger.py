"""Which ledger a store's calls are recorded in: its own, in its folder, or one that stores share."""

from __future__ import annotations

import shlex
from contextlib import closing
from pathlib import Path

from ground.errors import IdentityMismatch, StoreUnreadable
from storage.database import shown_url
from storage.ledger import Ledger
from storage.sqlite_file import require_own
from storage.store import LEDGER_FILE, Store
from storage.witness import Witness


def own_ledger(folder: Path, *, create: bool = False, patience_seconds: float = 0.0) -> Ledger:
    """The ledger in a store's folder; raises `StoreUnreadable` for a link to somewhere else."""
    path = folder / LEDGER_FILE
    if path.is_symlink():
        raise StoreUnreadable(f"{path} is a link to another place; name that as the ledger of a new store instead")
    return Ledger(path, create=create, patience_seconds=patience_seconds)


def recorded_as(url: str | None) -> str | None:
    """How a manifest names the ledger that was asked for; None is the store's own."""
    return None if url is None else shown_url(url)


def witness_of(store: Store, ledger: Ledger) -> Witness:
    """What was seen before of the ledger of a store."""
    return Witness(ledger, own=store.manifest.ledger is None, store=store.folder)


def open_ledger_of(
    store: Store,
    url: str | None,
    *,
    create: bool = False,
    patience_seconds: float = 0.0,
    accept_rollback: bool = False,
) -> Ledger:
    """The ledger that a store's calls are recorded in, after checking that it is the same one as ever.

    Args:
        url: of a shared ledger. The manifest names it too, but a store may come from anybody: what it names is not
            opened unless the user names it as well.
        create: begin it if the store was only just made.
        accept_rollback: do not compare it with its witness; who records in it then has the witness accept it.

    Raises:
        IdentityMismatch: another ledger is asked for.
        StoreUnreadable: the ledger lacks what the store's calls were recorded in.
        RolledBack: it is older than its witness, or a fork.
    """
    recorded, asked = store.manifest.ledger, recorded_as(url)
    if asked != recorded:
        remedy = f"give --ledger {shlex.quote(recorded)}" if recorded else "leave --ledger out"
        raise IdentityMismatch(
            f"the calls of {store.folder} are recorded in {recorded or 'its own ledger'}, not in "
            f"{asked or 'its own'}; {remedy}, or another --store"
        )
    is_new = store.manifest.ledger_head is None
    if url is None:
        ledger = own_ledger(store.folder, create=create and is_new, patience_seconds=patience_seconds)
    else:
        ledger = Ledger(url, create=create and is_new, patience_seconds=patience_seconds)
    try:
        if is_new and create:
            store.record_ledger_head(ledger.head())
        if store.manifest.ledger_head is not None:
            ledger.require_entry(store.manifest.ledger_head, store.folder)
        if not accept_rollback:
            witness_of(store, ledger).require_newest()
    except BaseException:
        ledger.close()
        raise
    return ledger


def newest_head(store: Store, *, witnessed: bool = False) -> str | None:
    """Newest hash of the store's own ledger, or the one noted when the last build ended.

    Entries of finished runs do not count: the same training from the same answers says the same of itself again.

    Args:
        witnessed: raise `RolledBack` if the store's own ledger is older than its witness, or a fork.

    Raises:
        StoreUnreadable: beside the ledger lies what SQLite would act on, or nothing is noted and it cannot be read.
    """
    noted = store.manifest.ledger_head
    if store.manifest.ledger is not None or not (store.folder / LEDGER_FILE).is_file():
        return noted
    # Unlike a disk that cannot be written to, this is no reason to go on without the calls.
    require_own(store.folder / LEDGER_FILE)
    try:
        with closing(own_ledger(store.folder)) as ledger:
            if witnessed:
                witness_of(store, ledger).require_newest()
            return ledger.head_of_calls()
    except StoreUnreadable:
        # Who only reads the answers does without the calls, for instance on a disk that cannot be written to.
        if noted is None:
            raise
        return noted
