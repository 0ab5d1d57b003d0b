"""Which ledger a store's calls are recorded in: its own, in its folder, or one that stores share.

A ledger is known by the hash of its entry 1, its genesis, wherever it is and however its place is written; the manifest
notes both. Manifests from before they noted it are held to the newest entry that they know, which only that ledger has.
"""

from __future__ import annotations

import logging
import shlex
from collections.abc import Iterator
from contextlib import closing, contextmanager
from contextvars import ContextVar
from dataclasses import replace
from pathlib import Path

from ground.errors import IdentityMismatch, InvalidInput, StoreBusy, StoreUnreadable, store_command
from ground.places import ObjectUrl, Place
from storage.database import parse_url, shown_url, sqlite_path
from storage.ledger import Ledger, ledger_exists
from storage.manifest import Manifest
from storage.sqlite_file import require_own
from storage.store import Store
from storage.store_folder import LEDGER_FILE
from storage.witness import Witness

log = logging.getLogger(__name__)

_told: set[str] = set()
_left_alone: ContextVar[str | None] = ContextVar("left_alone", default=None)


@contextmanager
def leaving_own_ledgers(why: str | None) -> Iterator[None]:
    """Open no ledger in a store's folder in this block: SQLite needs all who use it on one machine.

    Args:
        why: for the message; None for no reason, and then they are opened.
    """
    token = _left_alone.set(why)
    try:
        yield
    finally:
        _left_alone.reset(token)


def own_ledger(folder: Path, *, create: bool = False, patience_seconds: float = 0.0) -> Ledger:
    """The ledger in a store's folder.

    Raises:
        StoreUnreadable: it is a link to somewhere else, or this process leaves it alone.
    """
    path, why = folder / LEDGER_FILE, _left_alone.get()
    if why is not None:
        raise StoreUnreadable(f"{path} is left alone here: {why}; run this on the machine that built it")
    if path.is_symlink():
        raise StoreUnreadable(f"{path} is a link to another place; name that as the ledger of a new store instead")
    return Ledger(path, create=create, patience_seconds=patience_seconds, store=folder)


def recorded_as(url: str | None) -> str | None:
    """How a manifest names the ledger that was asked for; None is the store's own."""
    return None if url is None else shown_url(url)


def witness_of(store: Store, ledger: Ledger) -> Witness:
    """What was seen before of the ledger of a store."""
    return Witness(ledger, own=store.manifest.ledger is None, store=None if store.is_published else store.folder)


def open_ledger_of(
    store: Store,
    url: str | None,
    *,
    create: bool = False,
    patience_seconds: float = 0.0,
    accept_rollback: bool = False,
    has_moved: bool = False,
) -> Ledger:
    """The ledger that a store's calls are recorded in, after checking that it is the same one as ever.

    Args:
        url: of a shared ledger. The manifest names it too, but a store may come from anybody: what it names is not
            opened unless the user names it as well. It may be in another place than the manifest says.
        create: begin it if the store was only just made.
        accept_rollback: do not compare it with its witness; who records in it then has the witness accept it.
        has_moved: the user says that another place is the new one, whatever is still at the old one.

    Raises:
        IdentityMismatch: another ledger is asked for, or a copy of the one that is still in its place.
        StoreUnreadable: the ledger lacks what the store's calls were recorded in.
        RolledBack: it is older than its witness, or a fork.
    """
    is_new = store.manifest.ledger_head is None
    if recorded_as(url) != store.manifest.ledger:
        _require_moved(store, url, is_said=has_moved)
    if url is None:
        ledger = own_ledger(store.folder, create=create and is_new, patience_seconds=patience_seconds)
    else:
        ledger = Ledger(url, create=create and is_new, patience_seconds=patience_seconds)
    try:
        if is_new and create:
            store.record_ledger_head(ledger.head(), ledger.genesis())
        _require_same(store.place, store.manifest, ledger)
        if not accept_rollback:
            witness_of(store, ledger).require_newest()
    except BaseException:
        ledger.close()
        raise
    if not has_moved:
        _tell_of_move(store, ledger)
    return ledger


def require_named(place: Place, manifest: Manifest, ledger: Ledger) -> None:
    """Raise `IdentityMismatch` for another ledger than that of a store at `place`, in another place than recorded."""
    differs = _difference(manifest, ledger)
    is_elsewhere = isinstance(place, ObjectUrl) if manifest.ledger is None else manifest.ledger != ledger.shown_url
    if differs is not None and is_elsewhere:
        where = manifest.ledger or "the ledger of its folder"
        raise IdentityMismatch(
            f"the calls of {place} are recorded in {where}, and {ledger.shown_url} is another ledger: "
            f"{differs}; give the right --ledger"
        )


def _require_same(folder: Place, manifest: Manifest, ledger: Ledger) -> None:
    """The same for any place; raises `StoreUnreadable` as well for another ledger, or an older state, where it was."""
    require_named(folder, manifest, ledger)
    differs = _difference(manifest, ledger)
    if differs is not None:
        or_moved = "" if manifest.ledger is None else ", or if it was moved give its new place as --ledger"
        raise StoreUnreadable(
            f"the ledger at {ledger.shown_url} is not the one that {folder} was built with: {differs}; bring back the "
            f"right one{or_moved}"
        )
    if manifest.ledger_head is not None:
        ledger.require_entry(manifest.ledger_head, folder)


def _difference(manifest: Manifest, ledger: Ledger) -> str | None:
    """How a ledger differs from the one that a store was built with; None if it is that one, whole or rolled back."""
    head, noted, found = manifest.ledger_head, manifest.ledger_genesis, ledger.genesis()
    if noted is not None:
        return None if noted == found else f"it begins with entry {found[:12]}, not {noted[:12]}"
    lacks = head is not None and ledger.entry_number(head) is None
    return f"it lacks entry {str(head)[:12]}" if lacks else None


def record_place(store: Store, ledger: Ledger) -> None:
    """Note in a store's manifest where its ledger is now, and chain that.

    The entry holds for the manifest before as well, as that of an upgrade does: whenever it stops, the two agree, and
    doing it again finishes.
    """
    before = store.manifest
    after = replace(before, ledger=ledger.shown_url, ledger_genesis=ledger.genesis())
    content = {"manifest": after.digest, "made_by": "move", "replaces": before.digest}
    ledger.record_store(before.store_id, content)
    store.save(replace(after, ledger_head=ledger.head()))


def _require_moved(store: Store, url: str | None, *, is_said: bool) -> None:
    """Raise `IdentityMismatch` for a place that a store's ledger cannot have been moved to."""
    recorded, asked = store.manifest.ledger, recorded_as(url)
    if recorded is None or url is None or store.manifest.ledger_head is None or not ledger_exists(url):
        named = f"give --ledger {shlex.quote(recorded)}, or its new place" if recorded else "leave --ledger out"
        raise IdentityMismatch(
            f"the calls of {store.place} are recorded in {recorded or 'its own ledger'}, not in {asked or 'its own'}; "
            f"{named}, or another --store"
        )
    if not is_said and _is_another_file(recorded, url):
        raise IdentityMismatch(
            f"the calls of {store.place} are recorded in {recorded}, which is still there, and {asked} is another "
            "file: if one is a copy of the other, both would grow; go on with the first, or if that is given up, "
            f"record the new place with: {store_command('ledger move', store.place, ledger=asked)}"
        )


def _is_another_file(recorded: str, url: str) -> bool:
    """Whether a file is still where an SQLite ledger was recorded, and a URL leads elsewhere; it is not opened."""
    try:
        before, now = sqlite_path(parse_url(recorded)), sqlite_path(parse_url(url))
        return before is not None and before.is_file() and (now is None or not now.samefile(before))
    except (InvalidInput, OSError):  # no release wrote that place, or nothing can be seen there
        return False


def _tell_of_move(store: Store, ledger: Ledger) -> None:
    """Say in one line that the ledger is not where the manifest says; a command opens its ledger several times."""
    recorded, now = store.manifest.ledger, ledger.shown_url
    text = (
        f"the ledger of {store.place} was at {recorded}, and is the same one at {now} (it begins with entry "
        f"{ledger.genesis()[:12]}); the store still names the old place, record the new one with: "
        f"{store_command('ledger move', store.place, ledger=now)}"
    )
    if recorded not in (None, now) and text not in _told:
        _told.add(text)
        log.info("%s", text)


def newest_head(store: Store, *, witnessed: bool = False) -> str | None:
    """Newest hash of the store's own ledger, or the one noted when the last build ended.

    Entries of finished runs do not count: the same training from the same answers says the same of itself again.

    Args:
        witnessed: raise `RolledBack` if the store's own ledger is older than its witness, or a fork.

    Raises:
        StoreUnreadable: beside the ledger lies what SQLite would act on, or nothing is noted and it cannot be read.
    """
    noted = store.manifest.ledger_head
    if store.is_published or store.manifest.ledger is not None or not (store.folder / LEDGER_FILE).is_file():
        return noted
    # Unlike a disk that cannot be written to, this is no reason to go on without the calls.
    require_own(store.folder / LEDGER_FILE)
    try:
        with closing(own_ledger(store.folder)) as ledger:
            if witnessed:
                witness_of(store, ledger).require_newest()
            return ledger.head_of_calls()
    except (StoreUnreadable, StoreBusy):
        # Who only reads the answers does without the calls, for instance on a disk that cannot be written to.
        if noted is None:
            raise
        return noted
