"""From a student's run to the teacher calls it drew on, and back.

A run says which store it was trained from, how many rows of it, and how far the ledger had come. The exact inputs of
those rows are computed again from the store's images and views, and the ledger knows which calls were made on them.
Nothing is written, and `run.json` is taken from anybody: of what it says, only a store folder is opened.

A row drew on the committed calls on its input. One that repeats an earlier call, for more outputs, counts only if it
was charged before the run looked at the ledger.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated

import numpy as np
from msgspec import UNSET, Meta, UnsetType, structs

from ground.documents import Hex32, Hex64, Malformed
from ground.errors import CKDError, IdentityMismatch, InvalidInput
from ground.places import ObjectUrl, Place, parse_place
from storage.digest import input_digests
from storage.identity import TeacherIdentity
from storage.inspection import is_answer_narrower, row_blocks
from storage.ledger import Ledger
from storage.ledger_records import RecordedCall
from storage.ledger_report import CallHistory, call_histories, calls_revoked_after
from storage.manifest import FILE_NAME
from storage.rows import Rows
from storage.run_proof import Proof, RunProofs
from storage.run_record import RUN_FILE, RunRecord, RunTeacher
from storage.schema import DIGEST, IMAGES, VIEWS
from storage.store import Store

_Place = Annotated[str, Meta(pattern=r"\A(/|[a-z0-9]{2,5}://)[^\0]*\Z", description="an absolute path or a URL")]


class TraceableTeacher(RunTeacher, frozen=True, kw_only=True):
    """One of several teachers that a run learned from, with where its answers come from."""

    store: _Place
    store_id: Hex32
    teacher_fingerprint: Hex64
    ledger_head: Hex64


class TraceableRecord(RunRecord, frozen=True, kw_only=True):
    """A run's record that says where it comes from: what tables can do without."""

    store: _Place
    store_id: Hex32
    teacher_fingerprint: Hex64
    ledger_head: Hex64
    teacher_outputs: tuple[str, ...]
    teachers: Annotated[tuple[TraceableTeacher, ...], Meta(min_length=2)] | UnsetType = UNSET


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A finished run, with what it says of where it comes from."""

    folder: Path
    record: TraceableRecord

    @classmethod
    def load(cls, folder: Path) -> Run:
        """Read and check it; raises `InvalidInput` when it is not what `ckd-train` writes."""
        if not (folder / RUN_FILE).is_file():
            raise InvalidInput(f"{folder} holds no finished run (no {RUN_FILE}); give the folder of one")
        try:
            return cls(folder=folder, record=TraceableRecord.read(folder))
        except Malformed as error:
            raise InvalidInput(
                f"{folder / RUN_FILE} is not the result of a run this release can read ({error}); bring it back from a "
                "copy, or train again"
            ) from error

    @property
    def store(self) -> Place:
        """Absolute folder of the store when the run was made, or its URL."""
        return parse_place(self.record.store)

    @property
    def outputs(self) -> frozenset[str]:
        """What the run read of its calls."""
        return frozenset(self.record.teacher_outputs)

    @property
    def parts(self) -> tuple[Run, ...]:
        """What the run would say of itself had it one teacher, for each that it has."""
        if isinstance(self.record.teachers, UnsetType):
            return (self,)
        return tuple(Run(folder=self.folder, record=_as_of(self.record, teacher)) for teacher in self.record.teachers)

    @property
    def sum_problems(self) -> list[str]:
        """Where what the run says of all of its teachers is not what it says of each."""
        records = [part.record for part in self.parts]
        calls, rows = sum(record.teacher_calls for record in records), max(record.n for record in records)
        said = self.record
        problems = []
        if calls != said.teacher_calls:
            problems.append(f"the run says that it drew on {said.teacher_calls} calls, and its stores come to {calls}")
        if rows != said.n:
            problems.append(f"the run was trained on {said.n} rows, and its stores answered {rows} of them")
        if said.store_id not in [record.store_id for record in records]:
            problems.append(f"the run's images are of store {said.store_id[:12]}, which is none of those that answered")
        return problems


def _as_of(record: TraceableRecord, teacher: TraceableTeacher) -> TraceableRecord:
    return structs.replace(
        record,
        store=teacher.store,
        store_id=teacher.store_id,
        teacher=teacher.teacher,
        teacher_fingerprint=teacher.teacher_fingerprint,
        ledger_head=teacher.ledger_head,
        n=teacher.rows,
        teacher_calls=teacher.teacher_calls,
        teachers=UNSET,
    )


def store_of(run: Run, place: Place | None = None) -> Store:
    """The store a run was trained from, or what was made of it by converting or extending.

    Args:
        place: where it is now; None for where it was then, in object storage only where the user names it.

    Raises:
        InvalidInput: there is no store.
        IdentityMismatch: there is another one.
        StoreUnreadable: it cannot be read.
    """
    where = run.store if place is None else place
    if isinstance(where, ObjectUrl):
        if place is None:
            raise InvalidInput(
                f"{run.folder} was trained from {where}, and object storage is asked only where you say so; add "
                f"--store {where}"
            )
    # Some things in the place of a manifest, a pipe for one, would be waited for.
    elif not (where / FILE_NAME).is_file():
        raise InvalidInput(
            f"{run.folder} was trained from the store at {where}, and there is none; if it was moved, give --store DIR"
        )
    store = Store.open(where)
    if run.record.store_id not in store.manifest.ids:
        raise IdentityMismatch(
            f"{run.folder} was trained from store {run.record.store_id[:12]}, and {where} is store "
            f"{store.manifest.store_id[:12]}; give the one it was trained from as --store"
        )
    return store


def stores_of(run: Run, place: Place | None = None) -> list[Store]:
    """The store of each of a run's parts; arguments and errors as for `store_of`.

    Args:
        place: where one of them is now, if it was moved.
    """
    if len(run.parts) == 1:
        return [store_of(run, place)]
    moved = frozenset() if place is None else Store.open(place).manifest.ids
    if place is not None and moved.isdisjoint(part.record.store_id for part in run.parts):
        raise IdentityMismatch(
            f"{place} is none of the stores that {run.folder} was trained from; give the one that was moved"
        )
    return [store_of(part, place if part.record.store_id in moved else None) for part in run.parts]


@dataclass(frozen=True)
class StoreInputs:
    """What the teacher was shown of a store's first rows."""

    store: Store
    rows: int

    @cached_property
    def digests(self) -> list[list[bytes]]:
        """Digest of each row's views; raises `StoreUnreadable` if the images or views are not what was written."""
        digests, geometry = list[list[bytes]](), self.store.manifest.identity.geometry
        for first, last in row_blocks(self.store, self.rows):
            images, views = (self.store.read_sample(name, Rows.between(first, last)) for name in (IMAGES, VIEWS))
            digests += input_digests(images, views, geometry)
        return digests

    @cached_property
    def first_row(self) -> dict[bytes, int]:
        """Input -> the first row that has it."""
        found: dict[bytes, int] = {}
        for row, digests in enumerate(self.digests):
            for digest in digests:
                found.setdefault(digest, row)
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """The calls a run drew on, in the order they were charged, and what is wrong with them.

    Args:
        store: None for a run without a teacher.
        proof: whether the run's results are what they were when it ended.
        problems: why the ledger does not vouch for all rows; empty when it does.
    """

    run: Run
    store: Store | None
    proof: Proof
    calls: list[RecordedCall] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def vouched(self) -> bool:
        """Whether every row is what a committed call returned."""
        return not self.problems

    @property
    def builder_runs(self) -> list[int]:
        """Sessions of the builders that made the calls."""
        return sorted({call.session for call in self.calls})


def trace_run(run: Run, store: Store, ledger: Ledger) -> Trace:
    """Find the calls that a run with a teacher drew on, and compare run, store and ledger.

    Raises:
        StoreUnreadable: the store's images, views or digests cannot be read.
    """
    manifest = store.manifest
    rows = min(run.record.n, manifest.n)
    inputs = StoreInputs(store, rows).digests
    teacher = manifest.identity.teacher
    answers = _answers(ledger, teacher, sorted({digest for row in inputs for digest in row}))
    head = ledger.entry_number(run.record.ledger_head)
    # A call that repeats an earlier one, for outputs that the run did not read, is none of its calls.
    calls = {call.id: call for found in answers.values() for call in found if run.outputs.intersection(call.outputs)}
    histories = {} if head is None else call_histories(ledger, sorted(calls))
    drawn_on = [id_ for id_ in sorted(calls) if head is None or histories[id_].answered_by(head)]
    problems = [
        *_run_problems(run, store, ledger, head),
        *_row_problems(store, inputs, answers),
        *_revoked_problems(ledger, teacher, head, inputs),
    ]
    return Trace(
        run=run,
        store=store,
        proof=RunProofs().of(run.folder, None if store.is_published else store.folder),
        calls=[calls[id_] for id_ in drawn_on],
        problems=problems,
    )


def _answers(ledger: Ledger, teacher: TeacherIdentity, digests: Sequence[bytes]) -> dict[bytes, list[RecordedCall]]:
    known = ledger.known_calls(teacher.fingerprint, teacher.precision, digests)
    return {digest: [call for call in calls if call.status == "committed"] for digest, calls in known.items()}


def _run_problems(run: Run, store: Store, ledger: Ledger, head: int | None) -> Iterator[str]:
    """Where the run's own words do not fit the store and the ledger."""
    record, manifest = run.record, store.manifest
    if head is None:
        yield (
            f"the run saw the ledger at entry {record.ledger_head[:12]}, which {ledger.shown_url} lacks: it was "
            "replaced or rolled back, or is not the one"
        )
    if record.teacher_fingerprint != manifest.identity.teacher.fingerprint:
        yield (
            f"the run names teacher {record.teacher_fingerprint[:12]}, its store has the answers of "
            f"{manifest.identity.teacher.fingerprint[:12]}"
        )
    if record.n > manifest.n:
        yield f"the run was trained on {record.n} rows, the store has {manifest.n}"
    cells = record.n * manifest.identity.views
    if record.teacher_calls != cells:
        yield (
            f"the run says that it drew on {record.teacher_calls} calls, and {record.n} rows of "
            f"{manifest.identity.views} views are {cells}"
        )


def _row_problems(store: Store, inputs: list[list[bytes]], answers: dict[bytes, list[RecordedCall]]) -> Iterator[str]:
    """Rows that are not whole, or not what any of their calls returned."""
    rows = len(inputs)
    written, valid = store.read(DIGEST, rows), store.valid()
    for row, view in np.ndindex(rows, store.manifest.identity.views):
        calls = answers.get(inputs[row][view], [])
        if not calls:
            yield f"row {row} view {view}: the ledger knows no committed call on it"
        elif not valid[row, view]:
            yield f"row {row} view {view}: it is not whole in the store, though call {calls[-1].id} is committed"
        else:
            for place, output in enumerate(store.outputs):
                keepers = [call for call in calls if output.name in call.outputs]
                here = written[row, view, place].tobytes()
                if not keepers:
                    yield f"row {row} view {view}: the ledger knows no call that kept its {output.name}"
                elif here not in (known := [call.digest_of(output.name) for call in keepers]) and not (
                    is_answer_narrower(store, row * store.manifest.identity.views + view, output, here, known)
                ):
                    yield f"row {row} view {view}: its {output.name} is not what call {keepers[-1].id} returned"


def _revoked_problems(
    ledger: Ledger, teacher: TeacherIdentity, head: int | None, inputs: list[list[bytes]]
) -> Iterator[str]:
    """Calls that the run drew on, and whose outputs were found damaged since."""
    if head is None:
        return
    row_of = {digest: (row, view) for row, views in enumerate(inputs) for view, digest in enumerate(views)}
    for call in calls_revoked_after(ledger, teacher.fingerprint, head):
        if call.precision == teacher.precision and call.input_digest in row_of and call.answered_by(head):
            row, view = row_of[call.input_digest]
            yield f"row {row} view {view}: call {call.id} answered it, and was given up for damaged after the run"


# The way back


@dataclass(slots=True)
class Students:
    """Runs that drew on a call, and folders of which it could not be found out: folder -> why."""

    runs: list[Run] = field(default_factory=list)
    unclear: dict[Path, str] = field(default_factory=dict)


def runs_of_call(call: CallHistory, ledger: Ledger, folders: Sequence[Path], moved: Place | None = None) -> Students:
    """Which of the runs below some folders drew on a call.

    Args:
        moved: a store that is not where its runs say.
    """
    found, search = Students(), _Search(call, ledger, moved)
    for folder in find_runs(folders):
        try:
            run = Run.load(folder)
            if search.drew_on(run):
                found.runs.append(run)
        except (CKDError, OSError) as error:
            found.unclear[folder] = str(error)
    return found


def find_runs(folders: Sequence[Path]) -> Iterator[Path]:
    """Every folder with a `run.json`, at any depth, in order and once."""
    seen = set()
    for folder in folders:
        if not folder.is_dir():
            raise InvalidInput(f"there is no folder {folder}; give one that holds runs")
        for path, inside, files in os.walk(folder, onerror=_refuse):
            # The many folders of a store's arrays hold none.
            inside[:] = sorted(name for name in inside if not name.endswith(".zarr"))
            here = Path(path)
            if RUN_FILE in files and here.resolve() not in seen:
                seen.add(here.resolve())
                yield here


def _refuse(error: OSError) -> None:
    raise error


class _Search:
    """Looks for one call in many runs; each store is read once."""

    def __init__(self, call: CallHistory, ledger: Ledger, moved: Place | None) -> None:
        self._call, self._ledger, self._moved = call, ledger, moved
        self._inputs: dict[Place, StoreInputs] = {}
        self._heads: dict[str, int | None] = {}

    def drew_on(self, run: Run) -> bool:
        """Whether a run learned from what the call returned."""
        return any(self._drew_on(part) for part in run.parts)

    def _drew_on(self, run: Run) -> bool:
        call, record = self._call, run.record
        if not record.teacher_calls or record.teacher_fingerprint != call.teacher:
            return False
        if not run.outputs.intersection(call.outputs):
            return False
        if record.ledger_head not in self._heads:
            self._heads[record.ledger_head] = self._ledger.entry_number(record.ledger_head)
        head = self._heads[record.ledger_head]
        if head is None:  # its calls are in another ledger
            return False
        if not call.answered_by(head):
            return False
        if record.store_id == call.store and call.row < record.n:
            return True
        inputs = self._inputs_of(run)
        if inputs.store.manifest.identity.teacher.precision != call.precision:
            return False
        return inputs.first_row.get(call.input_digest, record.n) < record.n

    def _inputs_of(self, run: Run) -> StoreInputs:
        store = self._open(run)
        if store.place not in self._inputs:
            self._inputs[store.place] = StoreInputs(store, store.manifest.n)
        return self._inputs[store.place]

    def _open(self, run: Run) -> Store:
        if self._moved is not None:
            with suppress(IdentityMismatch):
                return store_of(run, self._moved)
        return store_of(run)
