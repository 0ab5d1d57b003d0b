"""What builders that stopped left: calls that were charged, and neither committed nor lost.

A cell whose outputs all match the digests written last is whole: its call is committed without calling again. So is
a call whose answer was spooled, once it is written into its cell; one that the store's types cannot keep stays
reserved, and in the spool, until the store is widened. Any other call is lost: it stays spent, and the repeat is a new
call. A session is settled only when its lease is gone, so that whoever had it cannot begin to write any more; what it
is in the middle of writing is left to it.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ground.documents import Malformed
from ground.errors import CKDError, InvalidInput, TooNarrow
from storage.bill import Bill
from storage.digest import output_digests, vouches
from storage.float_types import converted
from storage.ledger import Ledger
from storage.ledger_records import Lease, RecordedCall
from storage.ledger_tables import UNANSWERED
from storage.locks import CellLocks
from storage.manifest import FILE_NAME, Manifest
from storage.rows import Rows
from storage.schema import OutputSpec
from storage.spool import SpooledAnswer, is_file, read_spool, spool_files, spooled_store
from storage.store import Store
from storage.store_folder import CELL_LOCK
from teacher_cache.outputs import Misfit, find_misfit
from teacher_cache.place import Place
from teacher_cache.reuse import find_store

log = logging.getLogger(__name__)

# Cell -> what keeps its answer, which is paid for and spooled, out of the store.
Misfits = dict[int, Misfit]


@dataclass(slots=True)
class Leftovers:
    """Unsettled calls: with the digests of their outputs where these are whole, and the others.

    Args:
        held: file of locks -> cells that somebody is writing to, whose calls are left to him.
        bills: of the adopted calls, where they were spooled with their answers.
        spooled: of the adopted cells, those that are still to be written: cell -> name -> (1, ...), as stored.
        misfits: answers that can neither be adopted nor are lost; with their inputs.
        keeper: the store that the calls of one session belong to, if it could be reached.
    """

    adopted: dict[int, bytes] = field(default_factory=dict)
    lost: list[int] = field(default_factory=list)
    adopted_cells: list[int] = field(default_factory=list)
    bills: dict[int, Bill] = field(default_factory=dict)
    held: dict[Path, list[int]] = field(default_factory=dict)
    spooled: dict[int, Mapping[str, np.ndarray]] = field(default_factory=dict)
    misfits: Misfits = field(default_factory=dict)
    misfit_inputs: set[bytes] = field(default_factory=set)
    keeper: Store | None = None

    def __iadd__(self, other: Leftovers) -> Leftovers:
        self.adopted |= other.adopted
        self.lost += other.lost
        self.adopted_cells += other.adopted_cells
        self.bills |= other.bills
        for path, cells in other.held.items():
            self.held[path] = sorted({*self.held.get(path, ()), *cells})
        self.spooled |= other.spooled
        self.misfits |= other.misfits
        self.misfit_inputs |= other.misfit_inputs
        return self


def sort_out(store: Store | None, calls: Iterable[RecordedCall]) -> Leftovers:
    """Look, without changing anything; with no store, nothing is whole."""
    found, calls = Leftovers(), list(calls)
    spooled = {} if store is None else _spooled_answers(store, calls)
    for call in calls:
        digests = None if store is None else _whole_digests(store, call)
        if store is not None and digests is None and call.id in spooled:
            digests = _sort_out_spooled(store, call, spooled[call.id], found)
            if digests is None:
                continue
        if store is None or digests is None:
            found.lost.append(call.id)
        else:
            found.adopted[call.id] = digests
            answer = spooled.get(call.id)
            if answer is not None and answer.bill is not None:
                found.bills[call.id] = answer.bill
            found.adopted_cells.append(cell_of(store, call))
    return found


def _spooled_answers(store: Store, calls: Sequence[RecordedCall]) -> dict[int, SpooledAnswer]:
    """Call -> what was spooled of it, for exactly that call, input and cell of that store."""
    known = {call.id: call for call in calls if call.row < store.manifest.n}
    sessions, found = {call.session for call in calls}, {}
    for path, session in spool_files(store.desk) if sessions else ():
        if session not in sessions:
            continue
        try:
            if spooled_store(path) != store.manifest.store_id:
                continue
            answers = read_spool(path, store.outputs, {id_ for id_, call in known.items() if call.session == session})
        except Malformed as error:
            log.warning("%s is damaged (%s), and the answers that it may have held are lost", path, error)
            continue
        for answer in answers:
            call = known[answer.call]
            if (answer.input_digest, answer.cell) == (call.input_digest, cell_of(store, call)):
                found[call.id] = answer
    return found


def _sort_out_spooled(store: Store, call: RecordedCall, answer: SpooledAnswer, found: Leftovers) -> bytes | None:
    """Digests of what the call kept, with the cell's outputs laid out to be written; None if they do not fit."""
    misfit = find_misfit(answer.values, store.outputs, is_refusal=answer.is_refusal)
    if misfit is not None:
        found.misfits[answer.cell] = misfit
        found.misfit_inputs.add(call.input_digest)
        return None
    values = {output.name: converted(answer.values[output.name], output.dtype) for output in store.outputs}
    found.spooled[answer.cell] = values
    digests = output_digests(store.outputs, values)[0]
    kept = [place for place, output in enumerate(store.outputs) if output.name in call.outputs]
    return bytes(digests[kept].tobytes())


def require_storable(store: Store, misfits: Misfits, rows: Rows) -> None:
    """Refuse where answers to some of these rows are paid for, and the store's types cannot keep them.

    Raises:
        TooNarrow: a wider type could.
        InvalidInput: no type could.
    """
    views = store.manifest.identity.views
    wanted = {cell: misfit for cell, misfit in misfits.items() if cell in rows.cells(views)}
    if not wanted:
        return
    cell, misfit = min(wanted.items(), key=lambda item: item[0])
    row, view = divmod(cell, views)
    image = int(store.read_sample("train/source_index", Rows.between(row, row + 1))[0])
    what = f"{len(wanted)} answers that are paid for" if len(wanted) > 1 else "an answer that is paid for"
    where = f"of image {image} (row {row}, view {view}) the teacher's {misfit.output.name} holds {misfit.value:.6g}"
    if misfit.is_too_large and store.is_published:
        raise InvalidInput(
            f"{what} cannot be kept in {store.place}: {where}, which {misfit.output.dtype} cannot hold; fetch it into "
            f"a folder, keep features in float32 there, and finish it there, with: {store.command('widen')}"
        )
    if misfit.is_too_large:
        why = f"{where}, which {misfit.output.dtype} cannot hold"
        raise TooNarrow(
            f"{what} cannot be kept in {store.place}: {why}; keep features in float32, which costs no call, with: "
            f"{store.command('widen')}; then run the same command with --feature-dtype float32",
            why,
            store.folder,
        )
    without = f", or go without it: --n {row} or fewer" if row > 1 else ""
    remedy = "check the teacher's weights, and build a new store with other ones"
    if store.manifest.identity.teacher.precision == "fp16":
        remedy = "fp16 ends at 65504, so build a new store with --precision bf16 or fp32"
    raise InvalidInput(f"{what} cannot be kept in {store.place}: {where}, which is no number; {remedy}{without}")


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
        found.keeper = store
        if store is not None and found.adopted_cells:
            cells = sorted(set(found.adopted_cells))
            store.adopt(cells, found.spooled)
        ledger.commit(found.adopted, bills=found.bills)
        ledger.lose(found.lost)
    found.held = held
    if store is not None and locks is not None:
        remove_spools(store.desk, ledger, {session})
    return found


def remove_spools(folder: Path, ledger: Ledger, sessions: set[int] | None = None) -> None:
    """Delete spools of sessions that ended and have nothing unsettled; all sessions if none are named.

    What holds answers of another ledger, as after this one was replaced or rolled back, is left, and so is what is
    damaged or cannot be read; `verify` names it.
    """
    for path, session in spool_files(folder):
        if sessions is not None and session not in sessions:
            continue
        if session in ledger.leases() or ledger.unsettled_calls(session) or not is_file(path):
            continue
        known = ledger.store_of_session(session)
        try:
            holds = spooled_store(path) or known
        except (Malformed, CKDError):  # whatever it may hold stays
            continue
        if known is not None and holds == known:
            path.unlink(missing_ok=True)


def _reach(
    call: RecordedCall, own: Store, own_locks: CellLocks, stack: ExitStack
) -> tuple[Store | None, CellLocks | None]:
    """The store that a call's outputs were to go into, and its locks; none if it cannot be written to from here."""
    if call.store == own.manifest.store_id:
        return own, own_locks
    store = None if own.manifest.ledger is None else find_store(call)
    if store is None or not os.access(store.desk, os.W_OK):
        return None, None
    try:
        return store, stack.enter_context(CellLocks(store.desk / CELL_LOCK))
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
    remove_spools(store.desk, ledger)
    _retract_disowned(store, ledger)
    return found


def dead_leases(store: Store, ledger: Ledger) -> list[Lease]:
    """Leases of builders that share this folder's build lock; for who has that alone, they are dead."""
    here, leases = Place.of(store.desk), ledger.leases().values()
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
    cell = cell_of(store, call)
    # In object storage, and in what is on its way there, nobody sets the flag of what another one wrote.
    if store.is_published and not store.is_whole(cell):
        return None
    digests = store.cell_digests(cell)
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
        for status in UNANSWERED
        for call in ledger.calls_of_store(store.manifest.store_id, status)
        if call.row < len(valid) and valid[call.row, call.view]
    ]
    teacher = store.manifest.identity.teacher
    known = ledger.known_calls(teacher.fingerprint, teacher.precision, [call.input_digest for call in lost])
    disowned = set()
    for call in lost:
        cell = cell_of(store, call)
        answers = [other for other in known.get(call.input_digest, ()) if other.status == "committed"]
        if store.cell_digests(cell) is None or not is_answer(
            store.outputs, *store.read_cell(cell, store.outputs), answers
        ):
            disowned.add(cell)
    if disowned:
        store.retract(sorted(disowned))


def is_answer(
    outputs: Sequence[OutputSpec], values: Mapping[str, np.ndarray], digests: np.ndarray, calls: Iterable[RecordedCall]
) -> bool:
    """Whether every output of a cell, name -> (1, ...), with these digests, is what some of the calls returned."""
    return all(
        any(vouches(call.digest_of(output.name), output, values[output.name], digest.tobytes()) for call in calls)
        for output, digest in zip(outputs, digests, strict=True)
    )
