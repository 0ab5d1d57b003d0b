"""Build a store: reserve, call, write, commit, batch by batch.

While the teacher answers one batch, a second thread writes the one before it. The order of events for each batch
never changes: its calls are charged before the teacher runs, its rows are on the disk before the calls are
committed. A build that is stopped anywhere is finished by running it again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

from storage.digest import output_digests
from storage.errors import Interrupted, InvalidInput, StoreUnreadable
from storage.ledger import CallRequest, Ledger, RecordedCall, Session
from storage.manifest import require_same
from storage.schema import DIGEST, OutputSpec, output_array
from storage.store import Store
from storage.terminal import StopRequest, graceful_stop
from storage.views import apply_views
from teacher_cache.plan import BuildPlan, ledger_location, open_matching_store
from teacher_cache.teacher import to_arrays

log = logging.getLogger(__name__)


@dataclass(slots=True)
class BuildReport:
    """What a build did, in teacher calls; rows are (image, all its views)."""

    store: Path
    new_calls: int = 0
    reused_calls: int = 0
    adopted_calls: int = 0
    lost_calls: int = 0
    rows_valid: int = 0
    n: int = 0


def build(plan: BuildPlan, on_progress: Callable[[int, str], None] = lambda steps, note: None) -> BuildReport:
    """Make the store whole, calling the teacher on what nobody has paid for.

    Raises:
        BudgetRefused: before the first call, if the budget does not allow all that are needed.
        Interrupted: the user asked to stop; everything called so far is kept.
        StoreBusy, DiskFull, StoreUnreadable: nothing that was finished is lost.
    """
    store = _open_store(plan)
    with store.locked():
        # What the plan saw may have changed before the lock was ours.
        store = Store.open(plan.config.store)
        require_same(store.manifest.identity, plan.identity, store.folder)
        if len(plan.sample.train) > store.manifest.n:
            store.grow(_sample_values(plan))
        ledger = Ledger(ledger_location(plan.config), create=True)
        try:
            return _Builder(plan, store, ledger, on_progress).run()
        finally:
            store.record_ledger_head(ledger.head())
            ledger.close()


def _open_store(plan: BuildPlan) -> Store:
    store = open_matching_store(plan.config, plan.identity)
    if store is not None:
        return store
    shared = None if plan.config.ledger is None else _shown(plan.config.ledger)
    return Store.create(
        plan.config.store,
        plan.identity,
        array_format=plan.config.array_format,
        samples=_sample_values(plan),
        ledger=shared,
    )


def _shown(url: str) -> str:
    ledger = Ledger(url, create=True)
    try:
        return ledger.shown_url
    finally:
        ledger.close()


def _sample_values(plan: BuildPlan) -> dict[str, np.ndarray]:
    """Every sample array of the store, whole."""
    pool, test = plan.dataset.train, plan.dataset.test
    test_index = np.arange(len(test), dtype=np.int64)
    return {
        "train/images": plan.images,
        "train/labels": pool.labels[plan.sample.train],
        "train/source_index": plan.sample.train,
        "train/views": plan.views,
        "val/images": pool.read(plan.sample.val),
        "val/labels": pool.labels[plan.sample.val],
        "val/source_index": plan.sample.val,
        "test/images": test.read(test_index),
        "test/labels": test.labels,
        "test/source_index": test_index,
    }


@dataclass
class _Builder:
    """One run of a build, under the store's lock."""

    plan: BuildPlan
    store: Store
    ledger: Ledger
    on_progress: Callable[[int, str], None]
    report: BuildReport = field(init=False)
    paid: dict[bytes, RecordedCall] = field(init=False)
    session: str = field(init=False)

    def __post_init__(self) -> None:
        self.report = BuildReport(self.store.folder, n=self.store.manifest.n)

    def run(self) -> BuildReport:
        self._settle_interrupted()
        missing = np.flatnonzero(~self.store.whole_rows())
        if len(missing):
            self._fill(missing)
        self.report.rows_valid = int(self.store.whole_rows().sum())
        return self.report

    def _fill(self, missing: np.ndarray) -> None:
        teacher = self.plan.identity.teacher
        inputs = {digest for row in missing.tolist() for digest in self.plan.input_digests[row]}
        self.paid = self.ledger.known_calls(teacher.fingerprint, sorted(inputs))
        if self.plan.config.budget is not None:
            self.ledger.set_budget(teacher.fingerprint, teacher.name, self.plan.config.budget)
        self.ledger.require_budget(teacher.fingerprint, len(inputs - self.paid.keys()))
        self.session = self.ledger.start_session(
            Session(
                teacher=teacher.fingerprint,
                teacher_name=teacher.name,
                store=self.store.manifest.store_id,
                location=str(self.store.folder.absolute()),
                purpose="train",
                device=self.plan.teacher.compute.describe(),
                precision=teacher.precision,
                outputs=tuple(output.name for output in self.plan.identity.outputs),
            )
        )
        with graceful_stop() as stop, ThreadPoolExecutor(1, "store-writer") as writer:
            self._fill_batches(missing, stop, writer)

    def _fill_batches(self, missing: np.ndarray, stop: StopRequest, writer: ThreadPoolExecutor) -> None:
        rows_per_batch = max(1, self.plan.config.batch_size // self.plan.identity.views)
        pending: Future[None] | None = None
        unwritten: set[bytes] = set()
        for first in range(0, len(missing), rows_per_batch):
            if stop.requested:
                break
            rows = missing[first : first + rows_per_batch].tolist()
            inputs = [digest for row in rows for digest in self.plan.input_digests[row]]
            if pending is not None and not unwritten.isdisjoint(inputs):
                pending.result()
            answered = self._answer(rows, inputs)
            if pending is not None:
                pending.result()
            unwritten = set(inputs)
            pending = writer.submit(self._keep, rows, *answered)
        if pending is not None:
            pending.result()
        whole = int(self.store.whole_rows().sum())
        if whole < self.store.manifest.n:
            raise Interrupted(
                f"stopped with {whole} of {self.store.manifest.n} rows whole; run the same command again to go on"
            )

    def _answer(self, rows: list[int], inputs: list[bytes]) -> tuple[dict[str, np.ndarray], list[int], list[bytes]]:
        """Outputs of all views of some rows: the new inputs from the teacher, the others from where they are kept.

        Returns:
            Name -> (R * V, ...) values; ids of the calls made; and their inputs.
        """
        views = self.plan.identity.views
        new = [place for place, digest in enumerate(inputs) if digest not in self.paid]
        first_places = list({inputs[place]: place for place in reversed(new)}.values())[::-1]
        called, ids = self._call(rows, first_places, inputs) if first_places else ({}, [])
        if len(first_places) == len(inputs):
            return called, ids, [inputs[place] for place in first_places]
        source = {inputs[place]: index for index, place in enumerate(first_places)}
        kept = _SourceRows(self.store)
        values = {
            output.name: np.empty((len(inputs), *output.shape), dtype=output.dtype)
            for output in self.plan.identity.outputs
        }
        for place, digest in enumerate(inputs):
            answer = (
                {name: array[source[digest]] for name, array in called.items()}
                if digest in source
                else kept.read(self.paid[digest])
            )
            for name, array in values.items():
                array[place] = answer[name]
        self.report.reused_calls += len(inputs) - len(first_places)
        assert len(inputs) == len(rows) * views
        return values, ids, [inputs[place] for place in first_places]

    def _call(self, rows: list[int], places: list[int], inputs: list[bytes]) -> tuple[dict[str, np.ndarray], list[int]]:
        """Charge, then call the teacher on the views at `places` (row-major over rows and views)."""
        source, geometry = self.plan.sample.train, self.plan.identity.geometry
        at = [(rows[place // self.plan.identity.views], place % self.plan.identity.views) for place in places]
        requests = [
            CallRequest(inputs[place], int(source[row]), row, view)
            for place, (row, view) in zip(places, at, strict=True)
        ]
        row_index, view_index = (np.array(index) for index in zip(*at, strict=True))
        images = torch.from_numpy(self.plan.images[row_index])
        views = torch.from_numpy(self.plan.views[row_index, view_index])
        pixels = apply_views(images, views, geometry)
        ids = self.ledger.reserve(self.session, requests)
        said = self.plan.teacher.call(pixels)
        self.report.new_calls += len(ids)
        return to_arrays(said, self.plan.identity.outputs), ids

    def _keep(self, rows: list[int], values: dict[str, np.ndarray], ids: list[int], inputs: list[bytes]) -> None:
        """Write rows, make them durable and visible, and commit their calls; runs in the writer thread."""
        manifest, views = self.store.manifest, self.plan.identity.views
        blocks = {name: array.reshape(len(rows), views, *array.shape[1:]) for name, array in values.items()}
        runs = _runs(rows)
        digests: dict[bytes, bytes] = {}
        for first, count in runs:
            start = rows.index(first)
            block = {name: array[start : start + count] for name, array in blocks.items()}
            written = self.store.write_outputs(first, block).reshape(count * views, -1)
            keys = [digest for row in range(first, first + count) for digest in self.plan.input_digests[row]]
            digests.update(zip(keys, (digest.tobytes() for digest in written), strict=True))
        self.store.publish(runs)
        self.ledger.commit(ids, [digests[digest] for digest in inputs])
        self._remember(rows, ids, inputs, digests, manifest.store_id)
        self.on_progress(len(rows) * views, f"{self.report.new_calls} calls spent")

    def _remember(
        self, rows: list[int], ids: list[int], inputs: list[bytes], digests: dict[bytes, bytes], store_id: str
    ) -> None:
        """Let later batches with the same input copy from these rows."""
        location, id_of = str(self.store.folder), dict(zip(inputs, ids, strict=True))
        for row in rows:
            for view, digest in enumerate(self.plan.input_digests[row]):
                if digest in id_of and digest not in self.paid:
                    self.paid[digest] = RecordedCall(
                        id_of[digest], store_id, location, digest, row, view, "committed", digests[digest]
                    )

    def _settle_interrupted(self) -> None:
        """Commit what an interrupted build had paid for and kept whole; mark the rest lost."""
        reserved = self.ledger.calls_of_store(self.store.manifest.store_id, "reserved")
        whole = {
            row: digests
            for row in sorted({call.row for call in reserved})
            if (digests := self._whole_digests(row)) is not None
        }
        adopted = [call for call in reserved if call.row in whole]
        lost = [call.id for call in reserved if call.row not in whole]
        self.store.publish([(row, 1) for row in whole])
        self.ledger.commit([call.id for call in adopted], [whole[call.row][call.view] for call in adopted])
        self.ledger.lose(lost)
        self.report.adopted_calls, self.report.lost_calls = len(adopted), len(lost)
        if reserved:
            log.info("an earlier build stopped: %d of its calls adopted, %d lost", len(adopted), len(lost))

    def _whole_digests(self, row: int) -> list[bytes] | None:
        """Digests of a row's outputs if all of them match what was written last, else None."""
        if row >= self.store.manifest.n:
            return None
        outputs = self.plan.identity.outputs
        try:
            values = {
                output.name: self.store.arrays.read(output_array(output.name), row, row + 1)[0] for output in outputs
            }
            stored = self.store.arrays.read(DIGEST, row, row + 1)[0]
        except StoreUnreadable:
            return None  # a torn row: the call is lost, and made again
        computed = output_digests(outputs, values)
        return [digest.tobytes() for digest in stored] if np.array_equal(computed, stored) else None


class _SourceRows:
    """Rows that were paid for already, in this store or in another one that shares the ledger."""

    def __init__(self, store: Store) -> None:
        self._own = store
        self._stores = {store.manifest.store_id: store}

    def read(self, call: RecordedCall) -> dict[str, np.ndarray]:
        """What the teacher answered to a call, checked by digest: name -> (...) values."""
        store = self._open(call)
        outputs: Sequence[OutputSpec] = self._own.manifest.identity.outputs
        values = {
            output.name: store.arrays.read(output_array(output.name), call.row, call.row + 1)[0, call.view]
            for output in outputs
        }
        digest = output_digests(outputs, {name: value[None] for name, value in values.items()})[0].tobytes()
        if digest != call.output_digest:
            raise StoreUnreadable(
                f"row {call.row} of {store.folder} is not what call {call.id} of the ledger returned; "
                f"see the damage with: ckd-cache verify --store {store.folder}"
            )
        return values

    def _open(self, call: RecordedCall) -> Store:
        if call.store not in self._stores:
            try:
                store = Store.open(Path(call.location))
            except StoreUnreadable as error:
                raise InvalidInput(
                    f"call {call.id} is paid for and kept in a store at {call.location} that cannot be read; "
                    "bring it back, or use another --ledger"
                ) from error
            if store.manifest.identity.outputs != self._own.manifest.identity.outputs:
                raise InvalidInput(
                    f"call {call.id} is paid for, and the store at {call.location} kept other outputs of it; "
                    "give the same --features and --feature-dtype, or use another --ledger"
                )
            self._stores[call.store] = store
        return self._stores[call.store]


def _runs(rows: list[int]) -> list[tuple[int, int]]:
    """Sorted rows as (first, count) runs of neighbours."""
    cuts = [
        0,
        *(place + 1 for place, (row, after) in enumerate(pairwise(rows)) if after != row + 1),
        len(rows),
    ]
    return [(rows[start], stop - start) for start, stop in pairwise(cuts)]
