"""Record in a store that the ledger it shares is in another place now; the ledger itself is moved by who keeps it."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from storage.store import Store, open_extension
from storage.store_ledger import open_ledger_of, record_place, witness_of
from storage.verify import require_recorded


@dataclass(frozen=True, slots=True, kw_only=True)
class MoveReport:
    """Where a store's ledger was, and is: URLs without passwords.

    Args:
        genesis: hash of the ledger's entry 1, the same in both places.
    """

    before: str
    after: str
    genesis: str


def move_ledger(folder: Path, url: str) -> MoveReport:
    """Record the place of a store's ledger, in its manifest and as an entry of the ledger.

    An extension that was not finished is told too. Doing it again finishes what was stopped, or does nothing.

    Raises:
        IdentityMismatch: the ledger is another one, or the store's own, whose place is the store.
        StoreBusy: a build is at work.
        StoreUnreadable: the manifest, or the ledger, is not the one that the other knows.
        RolledBack: the ledger is older than its witness, or a fork.
    """
    with Store.alone(folder, clean=False):
        store, extension = Store.open(folder), open_extension(folder)
        with closing(open_ledger_of(store, url, has_moved=True)) as ledger:
            before = store.manifest.ledger or "its own ledger"
            # The extension first: it is nobody's to read yet.
            for each in filter(None, (extension, store)):
                require_recorded(each, ledger)
                if each.manifest.ledger != ledger.shown_url:
                    record_place(each, ledger)
            witness_of(store, ledger).advance()
            return MoveReport(before=before, after=ledger.shown_url, genesis=ledger.genesis())
