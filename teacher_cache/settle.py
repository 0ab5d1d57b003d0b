"""What builders that stopped left: calls that were charged, and neither committed nor lost.

A cell whose outputs all match the digests written last is whole: its call is committed without calling again. Any
other call is lost: it stays spent, and the repeat is a new call. A session is settled only when its lease is gone, so
that whoever had it cannot begin to write any more; what it is in the middle of writing is left to it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from ground.errors import CKDError, InvalidInput
from storage.ledger import Ledger
from storage.ledger_records import Lease, RecordedCall
from storage.locks import CellLocks
from storage.manifest import FILE_NAME, Manifest
from storage.store import CELL_LOCK, Store
from teacher_cache.place import Place
from teacher_cache.reuse import find_store


@dataclass(slots=True)
class Leftovers:
    """Unsettled calls: with the digests of their outputs where these are whole, and the others.

    Args:
        held: file of locks -> cells that somebody is writing to, whose calls are left to him.
    """

    adopted: dict[int, bytes] = field(default_factory=dict)
    lost: list[int] = field(default_factory=list)
    adopted_cells: list[int] = field(default_factory=list)
    held: dict[Path, list[int]] = field(default_factory=dict)

    def __iadd__(self, other: Leftovers) -> Leftovers:
        self.adopted |= other.adopted
        self.lost += other.lost
        self.adopted_cells += other.adopted_cells
        for path, cells in other.held.items():
            self.held[path] = sorted({*self.held.get(path, ()), *cells})
        return self


def sort_out(store: Store | None, calls: Iterable[RecordedCall]) -> Leftovers:
    """Look, without changing anything; with no store, nothing is whole."""
    found = Leftovers()
    for call in calls:
        digests = None if store is None else _whole_digests(store, call)
        if store is None or digests is None:
            found.lost.append(call.id)
        else:
            found.adopted[call.id] = digests
            found.adopted_cells.append(cell_of(store, call))
    return found


def settle_session(session: int, ledger: Ledger, own: Store, own_locks: CellLocks) -> Leftovers:
    """Commit what a session without a lease left whole, and mark the rest lost; cells being written are left alone."""
    calls = ledger.unsettled_calls(session)
    if not calls:
        return Leftovers()
    held: dict[Path, list[int]] = {}
    with ExitStack() as stack:
        store, locks = _reach(calls[0], own, own_locks, stack)
        if store is not None and locks is not None:
            cells_of = {call.id: cell_of(store, call) for call in calls}
            calls = [call for call in calls if locks.take(cells_of[call.id], stack)]
            left_alone = cells_of.keys() - {call.id for call in calls}
            held = {locks.path: sorted(cells_of[id_] for id_ in left_alone)} if left_alone else {}
            # Somebody may have settled them, and called again, before the locks were ours.
            left = {call.id for call in ledger.unsettled_calls(session)}
            calls = [call for call in calls if call.id in left]
        found = sort_out(store, calls)
        if store is not None and found.adopted_cells:
            cells = sorted(set(found.adopted_cells))
            store.rewrite(cells)
            store.publish(cells)
        ledger.commit(found.adopted)
        ledger.lose(found.lost)
    found.held = held
    return found


def _reach(
    call: RecordedCall, own: Store, own_locks: CellLocks, stack: ExitStack
) -> tuple[Store | None, CellLocks | None]:
    """The store that a call's outputs were to go into, and its locks; none if it cannot be written to from here."""
    if call.store == own.manifest.store_id:
        return own, own_locks
    store = None if own.manifest.ledger is None else find_store(call)
    if store is None or not os.access(store.folder, os.W_OK):
        return None, None
    try:
        return store, stack.enter_context(CellLocks(store.folder / CELL_LOCK))
    except OSError:
        return None, None


def settle_store(store: Store, ledger: Ledger, locks: CellLocks) -> Leftovers:
    """Settle what earlier builds of a store left; needs the store's build lock, alone.

    With that lock, no builder that shares it is at work; those of other places have leases of their own.
    """
    found = Leftovers()
    for lease in dead_leases(store, ledger):
        ledger.take_lease(lease)
    gone = {
        call.session for call in ledger.calls_of_store(store.manifest.store_id, "reserved")
    } - ledger.leases().keys()
    for session in sorted(gone):
        found += settle_session(session, ledger, store, locks)
    _retract_disowned(store, ledger)
    return found


def dead_leases(store: Store, ledger: Ledger) -> list[Lease]:
    """Leases of builders that share this folder's build lock; for who has that alone, they are dead."""
    here, leases = Place.of(store.folder), ledger.leases().values()
    ours = [lease for lease in leases if lease.store == store.manifest.store_id]
    return [lease for lease in ours if here.shares_locks(Place.parse(lease.host))]


def require_only_place(store: Store, ledger: Ledger) -> None:
    """Raise `InvalidInput` for a copy of a store that shares a ledger while the original is where it was.

    Both would settle the same calls, each by what it holds itself.
    """
    if store.manifest.ledger is None:
        return
    for location in ledger.locations(store.manifest.store_id):
        folder = Path(location)
        if folder == store.folder.absolute() or not (folder / FILE_NAME).is_file():
            continue
        try:
            same = Manifest.load(folder).store_id == store.manifest.store_id and not folder.samefile(store.folder)
        except (CKDError, OSError):
            continue
        if same:
            raise InvalidInput(
                f"{store.folder} is a copy of the store at {folder}, and both are in the same ledger; go on with that "
                f"one, or repair this one from it with: {store.command('repair', **{'from': folder})}"
            )


def cell_of(store: Store, call: RecordedCall) -> int:
    """Where in a store a call's outputs belong."""
    return call.row * store.manifest.identity.views + call.view


def _whole_digests(store: Store, call: RecordedCall) -> bytes | None:
    """Digests of what the call kept, if all outputs of its cell are what was written last."""
    if call.row >= store.manifest.n:
        return None
    digests = store.cell_digests(cell_of(store, call))
    if digests is None:
        return None
    places = {output.name: place for place, output in enumerate(store.outputs)}
    if not all(name in places for name in call.outputs):
        return None
    return b"".join(digests[places[name]].tobytes() for name in call.outputs)


def _retract_disowned(store: Store, ledger: Ledger) -> None:
    """Make cells invisible whose calls another builder gave up for lost while this store could not be reached."""
    valid = store.valid()
    lost = [
        call
        for call in ledger.calls_of_store(store.manifest.store_id, "lost")
        if call.row < len(valid) and valid[call.row, call.view]
    ]
    known = ledger.known_calls(store.manifest.identity.teacher.fingerprint, [call.input_digest for call in lost])
    disowned = set()
    for call in lost:
        cell = cell_of(store, call)
        digests = store.cell_digests(cell)
        places = [] if digests is None else list(zip(store.outputs, digests, strict=True))
        answers = [other for other in known.get(call.input_digest, ()) if other.status == "committed"]
        if not places or not all(
            any(answer.digest_of(output.name) == digest.tobytes() for answer in answers) for output, digest in places
        ):
            disowned.add(cell)
    if disowned:
        store.retract(sorted(disowned))
