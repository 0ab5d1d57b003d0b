"""Put right what can be put right without a call, and give up, openly, what cannot.

A cell that is whole is never touched. A damaged answer is looked for in the store's other rows and in a copy of the
store; one that is nowhere is given up: its call, which was paid for, is marked lost, and the next build makes it again.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from pathlib import Path

import numpy as np

from ground.errors import CKDError, InvalidInput, StoreUnreadable
from storage.arrays import ArrayFile
from storage.formats import FORMATS
from storage.inspection import Inspection, inputs_of, inspect, inspect_in_blocks
from storage.ledger import Ledger
from storage.ledger_check import ledger_problems
from storage.ledger_records import RecordedCall
from storage.locks import CellLocks
from storage.manifest import ARRAYS_NAME, EXTENSION, FILE_NAME, Manifest
from storage.rows import Rows
from storage.schema import DIGEST
from storage.store import Store
from storage.store_folder import CELL_LOCK
from storage.store_ledger import open_ledger_of, witness_of
from teacher_cache.extend import finish_command
from teacher_cache.place import Place
from teacher_cache.settle import (
    dead_leases,
    is_answer,
    require_only_place,
    require_storable,
    settle_store,
    sort_out,
)


@dataclass(slots=True)
class RepairReport:
    """What a repair does, or would do; cells are row * V + view.

    Args:
        left_open: arrays that a program was killed over, marked as open for writing: the rest is looked at after that.
        files: partial files, and arrays that no manifest names, to be deleted.
        made_again: array files that are missing or cut short: made again, empty.
        adopted, lost: unsettled calls whose outputs are whole, and the others.
        leases: sessions of builders on this machine that are no more.
        restored: cells whose answers are there, or in a copy: flags, digests and outputs are put right.
        dropped: cells made invisible, because what they hold is not what the teacher said.
        revoked: committed calls of this very folder whose answers are nowhere: the next build makes them again.
        rollback: what the ledger's witness says against it, where that is to be accepted.
        left: what a repair cannot help.
    """

    left_open: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    made_again: list[str] = field(default_factory=list)
    adopted: int = 0
    lost: int = 0
    leases: list[int] = field(default_factory=list)
    restored: list[int] = field(default_factory=list)
    dropped: list[int] = field(default_factory=list)
    revoked: list[int] = field(default_factory=list)
    rollback: str | None = None
    left: list[str] = field(default_factory=list)

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to do; what cannot be helped aside."""
        lists = (self.left_open, self.files, self.made_again, self.leases, self.restored, self.dropped, self.revoked)
        return not (self.adopted or self.lost or self.rollback or any(lists))


def repair(
    folder: Path,
    *,
    ledger_url: str | None = None,
    copy: Path | None = None,
    accept_rollback: bool = False,
    only_copy: bool = False,
    act: bool,
) -> RepairReport:
    """Look for damage, and with `act` put it right.

    Args:
        copy: another folder with the same store, whole, to take answers from.
        accept_rollback: go on with a ledger that is older than its witness, or a fork.
        only_copy: the user says that no other folder holds the store: calls that it made from another one, or from an
            unknown one, are given up like its own.

    Raises:
        StoreBusy: a build is at work.
        RolledBack: the ledger is older than its witness, or a fork, and that is not accepted.
        StoreUnreadable: the ledger, or what ties rows to their calls, is damaged itself.
    """
    with Store.alone(folder, clean=False):
        marked = _left_open(folder)
        left_open = [path.name for path in marked]
        if left_open and not act:
            return RepairReport(left_open=left_open)
        for path, kind in marked.items():
            kind.close_left_open(path)
        store = Store.open(folder)
        source = None if copy is None else Store.open(copy)
        with closing(open_ledger_of(store, ledger_url, accept_rollback=accept_rollback)) as ledger:
            _require_sound_ledger(ledger)
            witness = witness_of(store, ledger)
            disagreement = witness.disagreement() if accept_rollback else None
            is_original = _is_original(store, ledger, copy)
            _require_inputs(store)
            report = RepairReport(left_open=left_open, files=_stale_files(store), left=list(_beyond_repair(store)))
            report.made_again = [
                str(file.relative_to(folder)) for file in store.arrays.missing_files(store.manifest.array_rows)
            ]
            if disagreement is not None:
                report.rollback = witness.explain(disagreement)
            if act and accept_rollback:
                witness.accept()
            if is_original:
                _look_at_leftovers(store, ledger, report)
            if act:
                store.arrays.make_missing(store.manifest.array_rows)
            if act and is_original:
                with CellLocks(folder / CELL_LOCK) as locks:
                    settle_store(store, ledger, locks)
            made_here = MadeHere(store, ledger, only_copy=only_copy)
            _repair_cells(store, ledger, source, made_here, report, act=act)
            if act:
                _delete(folder, report.files)
                store.record_ledger_head(ledger.head(), ledger.genesis())
                witness.advance()
    return report


def _left_open(folder: Path) -> dict[Path, type[ArrayFile]]:
    """Arrays of a store, and of an unfinished extension, that are marked as open by a program that is no more."""
    found = {}
    for file_name in (FILE_NAME, EXTENSION):
        try:
            manifest = Manifest.load(folder, file_name)
        except CKDError:
            if file_name == FILE_NAME:
                raise
            continue
        arrays, known = folder / manifest.arrays, FORMATS.get(manifest.array_format)
        if known is not None and (kind := known.load()).is_left_open(arrays):
            found[arrays] = kind
    return found


def _is_original(store: Store, ledger: Ledger, copy: Path | None) -> bool:
    """Whether the calls are this folder's to settle; a copy may only be repaired from what it was copied from."""
    try:
        require_only_place(store, ledger)
    except InvalidInput:
        if copy is None:
            raise
        return False
    return True


def _require_sound_ledger(ledger: Ledger) -> None:
    problems = ledger_problems(ledger)
    if problems:
        raise StoreUnreadable(f"the ledger itself is damaged, and nothing was changed: {problems[0]}")
    ledger.require_recordable()


def _require_inputs(store: Store) -> None:
    """Images and views tie rows to their calls: without them nothing can be told."""
    for name in ("train/images", "train/views"):
        try:
            store.require_sample(name, store.manifest.n)
        except StoreUnreadable as error:
            raise StoreUnreadable(f"{error}; it cannot be repaired: bring {name} back from a copy") from error


def _beyond_repair(store: Store) -> Iterator[str]:
    for name in store.manifest.samples:
        for error in store.sample_problems(name):
            yield f"{error}; bring {name} back from a copy"
    if isinstance(_extension(store), Manifest):
        staged = Store.open(store.folder, EXTENSION)
        yield f"an extension of {store.folder} is unfinished; finish it with: {finish_command(staged)}"


def _extension(store: Store) -> Manifest | CKDError | None:
    """The manifest of an unfinished extension, or what is wrong with it."""
    if not (store.folder / EXTENSION).exists():
        return None
    try:
        return Manifest.load(store.folder, EXTENSION)
    except CKDError as error:
        return error


def _stale_files(store: Store) -> list[str]:
    """Files that killed writers left, and arrays that an interrupted extension replaced."""
    partial = [str(file.relative_to(store.folder)) for file in store.folder.rglob(".*.partial") if not file.is_dir()]
    named, extension = {store.manifest.arrays}, _extension(store)
    if isinstance(extension, Manifest):
        named.add(extension.arrays)
    elif extension is not None:
        partial.append(EXTENSION)
    arrays = [item.name for item in store.folder.iterdir() if _is_stale(item) and item.name not in named]
    return sorted([*partial, *arrays])


def _is_stale(item: Path) -> bool:
    """Whether it can be arrays that no manifest names, and nothing that somebody else put there."""
    is_ours = re.fullmatch(ARRAYS_NAME, item.name) is not None and not item.is_symlink()
    return is_ours and not (item / FILE_NAME).exists()


def _look_at_leftovers(store: Store, ledger: Ledger, report: RepairReport) -> None:
    leases = ledger.leases()
    dead = {lease.session for lease in dead_leases(store, ledger)}
    calls = ledger.calls_of_store(store.manifest.store_id, "reserved")
    found = sort_out(store, [call for call in calls if call.session in dead or call.session not in leases])
    report.leases, report.adopted, report.lost = sorted(dead), len(found.adopted), len(found.lost)
    if found.misfits:
        try:
            require_storable(store, found.misfits, Rows.first(store.manifest.n))
        except InvalidInput as error:
            report.left.append(str(error))


def _repair_cells(
    store: Store, ledger: Ledger, source: Store | None, made_here: MadeHere, report: RepairReport, *, act: bool
) -> None:
    """Restore each cell that is not whole, from wherever its answer is; give up the others."""
    views, damaged, twins = store.manifest.identity.views, list[tuple[int, int]](), dict[bytes, int]()
    for state in inspect_in_blocks(store, ledger):
        whole = state.whole
        for place in np.flatnonzero(whole).tolist():
            if state.calls[place]:
                twins[state.calls[place][0].input_digest] = state.first * views + place
        if not whole.all():
            damaged.append((state.first, state.first + len(state.valid)))
    elsewhere, given_up, kept = Elsewhere(store, ledger, source, twins), list[int](), list[RecordedCall]()
    # Once more, as an answer may be in a row that comes later; memory does not grow with the store.
    for first, last in damaged:
        state = inspect(store, ledger, first, last)
        for place in np.flatnonzero(~state.whole).tolist():
            (row, view), cell = divmod(place, views), first * views + place
            values = {} if state.is_answer[row, view].all() else elsewhere.find(state, cell)
            if values is not None:
                report.restored.append(cell)
                if act:
                    _restore(store, cell, values)
            elif state.valid[row, view] or state.calls[place]:
                given_up.append(cell)
                report.dropped += [cell] if state.valid[row, view] else []
                kept += [call for call in state.calls[place] if _belongs_in(store, call, cell)]
    report.revoked = sorted({call.id for call in kept if call in made_here})
    report.left += made_here.explain([call for call in kept if call not in made_here])
    if act:
        # First the flag: a cell whose call is given up must not be taken for whole.
        store.retract(given_up)
        ledger.revoke(report.revoked)


class MadeHere:
    """Which calls of a store were made from this very folder; others may be whole in the one they were made from.

    Sessions of earlier releases recorded no place, so nobody knows where theirs were made.

    Args:
        only_copy: take all for made here.
    """

    def __init__(self, store: Store, ledger: Ledger, *, only_copy: bool) -> None:
        self._folder, self._here = store.folder, Place.of(store.folder)
        self._are_all = only_copy or store.manifest.ledger is None
        self._hosts = {} if self._are_all else ledger.session_hosts(store.manifest.ids_in_place)

    def __contains__(self, call: RecordedCall) -> bool:
        there = Place.parse(self._hosts.get(call.session, ""))
        return self._are_all or self._here.is_same_folder(there)

    def explain(self, others: Sequence[RecordedCall]) -> list[str]:
        """What can be done about calls that were not made here, and whose answers are not here."""
        if not others:
            return []
        calls, places = len({call.id for call in others}), ", ".join(sorted({call.location for call in others}))
        text = (
            f"the answers of {calls} calls are not in {self._folder}, and may be in the folder that they were made "
            f"from ({places}), which is another one or unknown: take them from there with --from DIR, or if the store "
            "is nowhere else give them up with --only-copy"
        )
        return [text]


class Elsewhere:
    """Finds answers of damaged cells outside of them: in a row with the same input, a copy, or another store.

    Args:
        source: a copy of the store that the user names.
        twins: input -> a whole cell that is about it.
    """

    def __init__(self, store: Store, ledger: Ledger, source: Store | None, twins: Mapping[bytes, int]) -> None:
        self._store, self._ledger, self._source, self._twins = store, ledger, source, twins

    def find(self, state: Inspection, cell: int) -> dict[str, np.ndarray] | None:
        """All outputs of a cell, name -> (1, ...), if they are exactly what committed calls returned."""
        row, view = divmod(cell, self._store.manifest.identity.views)
        row -= state.first
        calls, store = state.calls[row * state.valid.shape[1] + view], self._store
        if not calls or not state.answered[row, view].any(axis=1).all():
            return None
        digest = calls[0].input_digest
        places = [(self._twins.get(digest), store), (cell, self._source)]
        places += [(keeper.place_of(digest), keeper.store) for keeper in self._keepers]
        for place, keeper in places:
            if place is None or keeper is None or not _has(keeper, store, place):
                continue
            try:
                values, digests = keeper.read_cell(place, store.outputs)
            except StoreUnreadable:
                continue
            if is_answer(store.outputs, values, digests, calls):
                return values
        return None

    @cached_property
    def _keepers(self) -> list[_Keeper]:
        """The other stores of a shared ledger, as far as they can be read from here."""
        store, found = self._store, []
        if store.manifest.ledger is None:
            return []
        for location in self._ledger.locations_of_teacher(store.manifest.identity.teacher.fingerprint):
            folder = Path(location)
            if folder == store.folder.absolute():
                continue
            try:
                found.append(_Keeper(Store.open(folder)))
            except (CKDError, OSError):
                continue
        return found


class _Keeper:
    """Another store, and where in it an input's answers are."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def place_of(self, digest: bytes) -> int | None:
        """The cell about an input."""
        return self._cells.get(digest)

    @cached_property
    def _cells(self) -> dict[bytes, int]:
        try:
            return {digest: cell for cell, digest in enumerate(chain.from_iterable(inputs_of(self.store)))}
        except CKDError:
            return {}


def _has(keeper: Store, store: Store, cell: int) -> bool:
    """Whether a store keeps our outputs, and has such a cell."""
    theirs = keeper.manifest
    return set(store.outputs) <= set(theirs.identity.outputs) and cell < theirs.n * theirs.identity.views


def _restore(store: Store, cell: int, values: dict[str, np.ndarray]) -> None:
    if not values:
        values, digests = store.read_cell(cell, store.outputs)
        store.arrays.write_cells(DIGEST, cell, digests[None])
    else:
        store.write_outputs([cell], values)
    store.publish([cell])


def _belongs_in(store: Store, call: RecordedCall, cell: int) -> bool:
    """Whether a call's answer belongs in this very cell of this store: in any other it is only a copy."""
    manifest = store.manifest
    # A store's own ledger went along when it was converted.
    ids = manifest.ids if manifest.ledger is None else manifest.ids_in_place
    return call.row * manifest.identity.views + call.view == cell and call.store in ids


def _delete(folder: Path, files: Sequence[str]) -> None:
    for name in files:
        path = folder / name
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
