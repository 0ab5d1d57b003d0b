"""Check a store against itself and against its ledger, in both directions; nothing is changed."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ground.documents import Malformed
from ground.errors import CKDError, StoreUnreadable
from ground.threads import in_threads
from storage.canaries import CANARIES_FILE, CANARY_ROW
from storage.inspection import Inspection, inspect_in_blocks, row_blocks
from storage.ledger import Ledger
from storage.ledger_check import ledger_problems
from storage.manifest import EXTENSION, FILE_NAME, Manifest
from storage.rows import Rows
from storage.schema import DIGEST, IMAGES, UNLABELLED, VALID
from storage.spool import SPOOL, is_file, read_spool, spool_files, spooled_store
from storage.sqlite_file import SIDE_FILES
from storage.store import Store
from storage.store_folder import BUILD_LOCK, CELL_LOCK, LEDGER_FILE
from storage.store_ledger import witness_of

# Of a store's folder, beside its arrays.
_FILES = {
    *(FILE_NAME, EXTENSION, CANARIES_FILE, BUILD_LOCK, CELL_LOCK),
    *(f"{LEDGER_FILE}{end}" for end in ("", *SIDE_FILES)),
}
MOST_LISTED = 1000
_PARTIAL = re.compile(r"\..*\.partial")


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that is wrong: where, what, and what to do about it."""

    what: str
    remedy: str
    array: str | None = None
    row: int | None = None
    view: int | None = None

    def __str__(self) -> str:
        place = "" if self.row is None else f"row {self.row} view {self.view} "
        where = "" if self.array is None else f"{self.array}: "
        return f"{where}{place}{self.what}" + (f"; {self.remedy}" if self.remedy else "")


def store_problems(store: Store, ledger: Ledger) -> list[Problem]:
    """Everything that is wrong; empty when the store can be trusted.

    Raises:
        InvalidInput: the ledger is sealed with a key that is not set.
    """
    found = [Problem(text, "") for text in ledger_problems(ledger)]
    if found:
        # A store is compared with a ledger that holds, or not at all.
        return [*found, *_samples_problems(store)]
    for check in _CHECKS:
        try:
            found += check(store, ledger)
        except CKDError as error:
            found.append(Problem(str(error), ""))
    return found


def published_problems(store: Store, ledger: Ledger | None) -> list[Problem]:
    """Everything that is wrong with a store in object storage; calls are compared where there is a ledger for that.

    Raises:
        StorageFailed: the service does not give what has to be looked at.
    """
    found = [*_file_problems(store, None)]
    if ledger is None:
        return [*found, *_samples_problems(store), *_missing_problems(store), *answer_problems(store)]
    chain = [Problem(text, "") for text in ledger_problems(ledger)]
    return [*found, *([*_samples_problems(store), *chain] if chain else _published_call_problems(store, ledger))]


def _published_call_problems(store: Store, ledger: Ledger) -> Iterator[Problem]:
    yield from _manifest_problems(store, ledger)
    yield from _row_problems(store, ledger)
    if store.manifest.aligned_chunks:
        yield from _witness_problems(store, ledger)
        yield from _reserved_problems(store.manifest, ledger, "build", {})


def answer_problems(store: Store) -> Iterator[Problem]:
    """Cells that are said to be whole and are not what was written, by the digests beside them alone."""
    blocks, look = row_blocks(store, store.manifest.n), partial(_unlike_their_digests, store)
    for found in in_threads(look, blocks, at_least=store.arrays.in_flight):
        yield from found


def _unlike_their_digests(store: Store, block: tuple[int, int]) -> list[Problem]:
    (first, last), problems = block, list[Problem]()
    valid = store.arrays.read_what_is_there(VALID, first, last).view(np.uint8) == 1
    written = store.arrays.read_what_is_there(DIGEST, first, last)
    for place, output in enumerate(store.outputs):
        found, readable = store.found_digests(output, first, last)
        matches = (found == written[:, :, place]).all(axis=2)
        for row, view in np.argwhere(valid & ~(matches & readable)).tolist():
            what = "does not match its digest" if readable[row, view] else "cannot be read"
            problems.append(Problem(what, _repair(store), store.array_of(output.name), first + row, view))
    return problems


def _missing_problems(store: Store) -> Iterator[Problem]:
    gap = _Gap(store)
    for cell in store.missing_cells().tolist():
        yield from gap.add(cell)
    yield from gap.end()


def unknown_files(store: Store) -> list[Path]:
    """What lies in a store's folder and belongs to no store: no command reads, writes or follows it."""
    if store.is_published:
        return store.arrays.unknown_files()
    ours = _FILES | {store.manifest.arrays}
    with suppress(StoreUnreadable):  # no extension is unfinished, or `store_problems` speaks of it
        ours.add(Manifest.load(store.folder, EXTENSION).arrays)
    named = (_PARTIAL, SPOOL)
    found = [
        item
        for item in store.folder.iterdir()
        if item.name not in ours and not any(pattern.fullmatch(item.name) for pattern in named)
    ]
    return sorted(found) + store.arrays.unknown_files()


def is_recorded(manifest: Manifest, record: Mapping[str, Any]) -> bool:
    """Whether a manifest is the one that a ledger's entry of kind `store` is about."""
    # An upgrade is chained before it replaces the manifest: until then, and in a copy from before, the old one holds.
    return manifest.digest in (record.get("manifest"), record.get("replaces"))


def require_recorded(store: Store, ledger: Ledger) -> None:
    """Refuse to chain a change of a manifest that is not the one the ledger knows: nobody could tell afterwards.

    Raises:
        StoreUnreadable: it is another one.
    """
    record = ledger.store_record(store.manifest.store_id)
    if record is not None and not is_recorded(store.manifest, record):
        raise StoreUnreadable(
            f"{store.folder / store.file_name} is not what its ledger recorded: it was replaced, or a build stopped "
            "while it grew; bring it back from a copy, or finish the build with the release that began it"
        )


def _manifest_problems(store: Store, ledger: Ledger) -> Iterator[Problem]:
    """A manifest that the ledger does not know, and a ledger that was replaced or rolled back."""
    manifest = store.manifest
    if manifest.ledger_head is not None:
        ledger.require_entry(manifest.ledger_head, store.place)
    recorded = ledger.store_record(manifest.store_id)
    if recorded is None or not is_recorded(manifest, recorded):
        what = "is not what the ledger recorded of this store: it was replaced, or a build stopped while it grew"
        yield Problem(what, _finish(store), "manifest.json")


def _witness_problems(store: Store, ledger: Ledger) -> Iterator[Problem]:
    """A ledger that is older than what was seen of it, or a fork."""
    witness = witness_of(store, ledger)
    found = witness.disagreement()
    if found is not None:
        yield Problem(witness.explain(found), "")


def _file_problems(store: Store, _: Ledger | None) -> Iterator[Problem]:
    """Files of the arrays that are missing or too short, though what they lack may be no row's."""
    for file in store.arrays.missing_files(store.manifest.array_rows):
        yield Problem(f"{file.relative_to(store.arrays.path.parent)} is missing or cut short", _repair(store))


def _link_problems(store: Store, ledger: Ledger) -> Iterator[Problem]:
    """Links and pipes in place of a file of ours, or anywhere among the arrays, which others read by a library."""
    for item in sorted(store.folder.iterdir()):
        if (item.name in _FILES or SPOOL.fullmatch(item.name)) and os.path.lexists(item) and not is_file(item):
            yield Problem("is no file of its own, but a link, a folder or a pipe", "move it away", item.name)
    for item in store.arrays.unknown_files():
        if not (stat.S_ISREG(item.lstat().st_mode) or stat.S_ISDIR(item.lstat().st_mode)):
            name = str(item.relative_to(store.folder))
            yield Problem("is no file of its own, but a link or a pipe", "move it away", name)


def _samples_problems(store: Store) -> Iterator[Problem]:
    for name in store.manifest.samples:
        yield from _sample_problems(store, name)


def _sample_problems(store: Store, name: str) -> Iterator[Problem]:
    for error in store.sample_problems(name):
        yield _not_written(name, error)


def _not_written(name: str, error: StoreUnreadable) -> Problem:
    """Of images, labels, views, indices or parameters of the teacher that are not what the build wrote."""
    return Problem(str(error), "bring the file back from a copy", name)


def _row_problems(store: Store, ledger: Ledger) -> Iterator[Problem]:
    """Sample arrays that are not what the build wrote, and cells."""
    for name in store.manifest.samples:
        if name != IMAGES:
            yield from _sample_problems(store, name)
    yield from _count_problems(store)
    images = _Images(store)
    try:
        yield from _cell_problems(store, ledger, images)
    except CKDError as error:
        yield Problem(str(error), "")
    yield from images.problems()


def _count_problems(store: Store) -> Iterator[Problem]:
    """A manifest that counts the labels of the rest wrongly; damaged ones are another problem."""
    manifest = store.manifest
    if manifest.rest_labelled is None:
        return
    try:
        labels = store.read_sample("train/labels", Rows.between(manifest.n, manifest.num_images))
    except CKDError:
        return
    found = int(np.count_nonzero(labels != UNLABELLED))
    if found != manifest.rest_labelled:
        what = f"counts {manifest.rest_labelled} labels of images that were not asked about, and there are {found}"
        yield Problem(what, "bring the file back from a copy", FILE_NAME)


class _Images:
    """Checks the training images block by block, just before a cell's input is made of the same: a disk reads them
    once.
    """

    def __init__(self, store: Store) -> None:
        self._store, self._found = store, dict[int, StoreUnreadable | None]()

    def check(self, first: int, last: int) -> None:
        """Check those blocks that begin at the places first..last, where these rows lie in most stores."""
        for block in self._store.blocks.starting(IMAGES, first, last):
            self._found[block] = self._store.blocks.problem(IMAGES, block)

    def problems(self) -> Iterator[Problem]:
        """Of all blocks, in order; those that were not come across are checked now."""
        for block in self._store.blocks.all(IMAGES):
            error = self._found[block] if block in self._found else self._store.blocks.problem(IMAGES, block)
            if error is not None:
                yield _not_written(IMAGES, error)


def _cell_problems(store: Store, ledger: Ledger, images: _Images) -> Iterator[Problem]:
    """Cells that are missing, changed, or not as the ledger recorded them."""
    views, gap = store.manifest.identity.views, _Gap(store)
    for state in inspect_in_blocks(store, ledger, images.check):
        for row, view in np.argwhere(~state.whole).tolist():
            cell = (state.first + row) * views + view
            lost = None if state.valid[row, view] else _lost_call(state, row, view)
            if not state.valid[row, view] and lost is None:
                yield from gap.add(cell)
            elif lost is not None:
                what = f"is not there, though call {lost} is committed"
                yield Problem(what, _repair(store), VALID, *divmod(cell, views))
            else:
                yield from _wrong_outputs(state, row, view)
    yield from gap.end()


class _Gap:
    """Cells that were never there: each is listed, or all at once where very many follow each other."""

    def __init__(self, store: Store) -> None:
        self._views, self._remedy = store.manifest.identity.views, _finish(store)
        self._first = self._count = 0

    def add(self, cell: int) -> Iterator[Problem]:
        if cell != self._first + self._count:
            yield from self.end()
            self._first = cell
        self._count += 1

    def end(self) -> Iterator[Problem]:
        listed, what = self._count, "is not there"
        if self._count > MOST_LISTED:
            listed, what = 1, f"is not there, nor are the {self._count - 1} cells after it"
        for cell in range(self._first, self._first + listed):
            yield Problem(what, self._remedy, VALID, *divmod(cell, self._views))
        self._first, self._count = self._first + self._count, 0


def _wrong_outputs(state: Inspection, row: int, view: int) -> Iterator[Problem]:
    calls, place_of = state.calls[row * state.valid.shape[1] + view], (state.first + row, view)
    for place, output in enumerate(state.store.outputs):
        array = state.store.array_of(output.name)
        is_answer, matches = state.is_answer[row, view, place], state.matches[row, view, place]
        if is_answer and not matches:
            yield Problem("is not the digest of what is there", _repair(state.store), DIGEST, *place_of)
        elif not state.readable[row, view, place]:
            yield Problem("cannot be read", _repair(state.store), array, *place_of)
        elif not matches:
            yield Problem("does not match its digest", _repair(state.store), array, *place_of)
        elif not state.answered[row, view, place].any():
            yield Problem(
                "has outputs that the ledger knows no committed call for", _repair(state.store), array, *place_of
            )
        elif not is_answer:
            which = f"is not what call {calls[-1].id} of the ledger returned"
            yield Problem(which, _repair(state.store), array, *place_of)


def _lost_call(state: Inspection, row: int, view: int) -> int | None:
    """A committed call for a cell itself; None if there is none, or only for its input elsewhere."""
    cell = (state.store.manifest.store_id, state.first + row, view)
    calls = state.calls[row * state.valid.shape[1] + view]
    return next((call.id for call in calls if (call.store, call.row, call.view) == cell), None)


def _unsettled_problems(store: Store, ledger: Ledger) -> Iterator[Problem]:
    yield from _reserved_problems(store.manifest, ledger, "build", _spooled_calls(store, ledger))
    for call in ledger.calls_outside(store.manifest.store_id, store.manifest.n):
        if call.row >= store.manifest.n and call.row != CANARY_ROW:
            what = f"call {call.id} is committed, and the store has only {store.manifest.n} rows"
            yield Problem(what, "bring the store back from a copy", VALID, call.row, call.view)


def _extension_problems(store: Store, ledger: Ledger) -> Iterator[Problem]:
    """Calls that an unfinished extension reserved; the store itself does without it."""
    if not (store.folder / EXTENSION).exists():
        return
    try:
        extension = Manifest.load(store.folder, EXTENSION)
    except StoreUnreadable:
        yield Problem("is the manifest of no extension that could be finished", _repair(store), EXTENSION)
    else:
        yield from _reserved_problems(extension, ledger, "extension", {})


def _reserved_problems(manifest: Manifest, ledger: Ledger, made_by: str, kept: Mapping[int, str]) -> Iterator[Problem]:
    """Calls that nobody settled; `kept` is call -> where its answer is."""
    alive = ledger.leases()
    for call in ledger.calls_of_store(manifest.store_id, "reserved"):
        if call.id in kept:
            what = f"call {call.id} is not settled: its answer is kept in {kept[call.id]}"
            remedy = f"run the {made_by} again, which commits it, or says what has to be done first"
        else:
            what = f"call {call.id} is not settled: its {made_by} is at work, or was interrupted"
            remedy = "wait for it" if call.session in alive else f"run the {made_by} again to settle it"
        yield Problem(what, remedy, None, call.row, call.view)


def _spooled_calls(store: Store, ledger: Ledger) -> dict[int, str]:
    """Unsettled call -> name of the spool that holds its answer; one that cannot be read is a problem of its own."""
    alive, found = ledger.leases(), dict[int, str]()
    reserved = ledger.calls_of_store(store.manifest.store_id, "reserved")
    calls = {call.id for call in reserved if call.session not in alive}
    for path, _ in spool_files(store.folder) if calls else ():
        with suppress(CKDError, Malformed):
            if spooled_store(path) == store.manifest.store_id:
                found |= {answer.call: path.name for answer in read_spool(path, store.outputs, calls)}
    return found


def _spool_problems(store: Store, ledger: Ledger) -> Iterator[Problem]:
    """Answers that are kept beside the store, and of which nobody knows, or that nobody can read."""
    alive = ledger.leases()
    for path, session in spool_files(store.folder):
        if session in alive or not is_file(path):
            continue
        try:
            holds = spooled_store(path)
        except Malformed as error:
            what = f"is damaged ({error}): answers that were in hand when a build stopped are lost"
            remedy = "bring it back from a copy, or run the build again to settle their calls"
            settled = "their calls are settled, so delete it once nobody wants to look at it"
            yield Problem(what, remedy if ledger.unsettled_calls(session) else settled, path.name)
        except CKDError as error:
            yield Problem(str(error), "")
        else:
            known = ledger.store_of_session(session)
            if holds is not None and holds != known:
                yield Problem("holds answers that the ledger knows no calls for", "move it away", path.name)
            elif known is None:
                yield Problem("is of a session that the ledger does not know", "move it away", path.name)


_CHECKS = (
    _manifest_problems,
    _link_problems,
    _witness_problems,
    _file_problems,
    _row_problems,
    _unsettled_problems,
    _extension_problems,
    _spool_problems,
)


def _finish(store: Store) -> str:
    return f"finish it with: {store.build_command(store.manifest.n)}"


def _repair(store: Store) -> str:
    return f"see what can be done with: {store.command('repair')}"
