"""Build a store: reserve, call, write, commit, batch by batch.

While the teacher answers one batch, a second thread writes the one before it. The order of events for each batch
never changes: its calls are charged before the teacher runs, its rows are on the disk before the calls are
committed. A build that is stopped anywhere is finished by running it again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

from storage.errors import Interrupted, InvalidInput
from storage.ledger import CallRequest, Ledger, RecordedCall, Session
from storage.store import Store, prepare_folder
from storage.terminal import StopRequest, graceful_stop
from storage.views import apply_views
from teacher_cache.plan import BuildPlan, open_ledger_of, open_matching_store, shared_ledger
from teacher_cache.reuse import PaidAnswers
from teacher_cache.settle import settle
from teacher_cache.teacher import to_arrays

log = logging.getLogger(__name__)


@dataclass(slots=True)
class BuildReport:
    """What a build did, in teacher calls; rows are (image, all its views), the first n of the store."""

    store: Path
    n: int
    new_calls: int = 0
    reused_calls: int = 0
    adopted_calls: int = 0
    lost_calls: int = 0
    rows_valid: int = 0


def build(plan: BuildPlan, on_progress: Callable[[int, str], None] = lambda steps, note: None) -> BuildReport:
    """Make the store's first n rows whole, calling the teacher on what nobody has paid for.

    Raises:
        BudgetRefused: before the first call, if the budget does not allow all that are needed.
        Interrupted: the user asked to stop; everything called so far is kept.
        StoreBusy, DiskFull, StoreUnreadable: nothing that was finished is lost.
    """
    prepare_folder(plan.config.store)
    with Store.locked(plan.config.store):
        store = open_matching_store(plan.config, plan.identity) or _create_store(plan)
        with closing(open_ledger_of(store, plan.config, create=True)) as ledger:
            report = _Builder(plan, store, ledger, on_progress).run()
            store.record_ledger_head(ledger.head())
    return report


def _create_store(plan: BuildPlan) -> Store:
    return Store.create(
        plan.config.store,
        plan.identity,
        array_format=plan.config.array_format,
        samples=_sample_values(plan),
        ledger=shared_ledger(plan.config),
    )


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
    answers: PaidAnswers = field(init=False)
    paid: dict[bytes, RecordedCall] = field(init=False)
    session: str = field(init=False)

    def __post_init__(self) -> None:
        self.report = BuildReport(self.store.folder, self.plan.n)
        self.answers = PaidAnswers(self.store)

    def run(self) -> BuildReport:
        found = settle(self.store, self.ledger)
        self.report.adopted_calls, self.report.lost_calls = len(found.adopted), len(found.lost)
        if found.adopted or found.lost:
            log.info("an earlier build stopped: %d calls adopted, %d lost", len(found.adopted), len(found.lost))
        self._check_budget()
        if self.plan.n > self.store.manifest.n:
            self.store.grow(_sample_values(self.plan))
        missing = self._missing()
        if len(missing):
            self._fill(missing)
        self.report.rows_valid = self.plan.n - len(self._missing())
        return self.report

    def _missing(self) -> np.ndarray:
        """Rows of this build that are not whole; those beyond n are another build's concern."""
        return np.flatnonzero(~self.store.whole_rows(self.plan.n))

    def _check_budget(self) -> None:
        """Refuse before anything is called or grown; otherwise record the budget that was given."""
        teacher = self.plan.identity.teacher
        inputs = {digest for row in self._missing().tolist() for digest in self.plan.input_digests[row]}
        self.paid = self.ledger.known_calls(teacher.fingerprint, sorted(inputs))
        needed = len(inputs - self.paid.keys())
        if self.plan.config.budget is None:
            self.ledger.require_budget(teacher.fingerprint, needed)
        elif needed or self.plan.config.budget >= self.ledger.summary(teacher.fingerprint).spent:
            self.ledger.set_budget(teacher.fingerprint, teacher.name, self.plan.config.budget, needed)

    def _fill(self, missing: np.ndarray) -> None:
        teacher = self.plan.identity.teacher
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
        torn = len(self._missing())
        if torn:
            raise Interrupted(
                f"stopped with {self.plan.n - torn} of {self.plan.n} rows whole; run the same command again to go on"
            )

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
            values, ids, called = self._answer(rows, inputs)
            if pending is not None:
                pending.result()
            unwritten = set(inputs)
            pending = writer.submit(self._keep, rows, values, ids, called)
        if pending is not None:
            pending.result()

    def _answer(self, rows: list[int], inputs: list[bytes]) -> tuple[dict[str, np.ndarray], list[int], list[bytes]]:
        """Outputs of all views of some rows: new inputs from the teacher, the others from where they are kept.

        Returns:
            Name -> (R * V, ...) values; ids of the calls made; and their inputs.
        """
        # The first place of each input that nobody has paid for yet.
        places: dict[bytes, int] = {}
        for place, digest in enumerate(inputs):
            if digest not in self.paid:
                places.setdefault(digest, place)
        called, ids = self._call(rows, list(places.values()), inputs) if places else ({}, [])
        if len(places) == len(inputs):
            return called, ids, inputs
        order = {digest: index for index, digest in enumerate(places)}
        values = {
            output.name: np.empty((len(inputs), *output.shape), dtype=output.dtype)
            for output in self.plan.identity.outputs
        }
        for place, digest in enumerate(inputs):
            answer = (
                {name: array[order[digest]] for name, array in called.items()}
                if digest in order
                else self.answers.read(self.paid[digest])
            )
            for name, array in values.items():
                array[place] = answer[name]
        self.report.reused_calls += len(inputs) - len(places)
        return values, ids, list(places)

    def _call(self, rows: list[int], places: list[int], inputs: list[bytes]) -> tuple[dict[str, np.ndarray], list[int]]:
        """Charge, then call the teacher on the views at `places` (row-major over rows and views)."""
        source, identity = self.plan.sample.train, self.plan.identity
        at = [(rows[place // identity.views], place % identity.views) for place in places]
        requests = [
            CallRequest(inputs[place], int(source[row]), row, view)
            for place, (row, view) in zip(places, at, strict=True)
        ]
        row_index, view_index = (np.array(index) for index in zip(*at, strict=True))
        images = torch.from_numpy(self.plan.images[row_index])
        pixels = apply_views(images, torch.from_numpy(self.plan.views[row_index, view_index]), identity.geometry)
        ids = self.ledger.reserve(self.session, requests)
        said = self.plan.teacher.call(pixels)
        self.report.new_calls += len(ids)
        try:
            return to_arrays(said, identity.outputs), ids
        except InvalidInput:
            self.ledger.lose(ids)  # answered, and nothing that can be kept
            raise

    def _keep(self, rows: list[int], values: dict[str, np.ndarray], ids: list[int], called: list[bytes]) -> None:
        """Write rows, make them durable and visible, and commit their calls; runs in the writer thread."""
        views = self.plan.identity.views
        blocks = {name: array.reshape(len(rows), views, *array.shape[1:]) for name, array in values.items()}
        runs, written, start = _runs(rows), [], 0
        for first, count in runs:
            block = {name: array[start : start + count] for name, array in blocks.items()}
            written += list(self.store.write_outputs(first, block).reshape(count * views, -1))
            start += count
        self.store.publish(runs)
        inputs = [digest for row in rows for digest in self.plan.input_digests[row]]
        outputs = {digest: answer.tobytes() for digest, answer in zip(inputs, written, strict=True)}
        self.ledger.commit(ids, [outputs[digest] for digest in called])
        self._remember(rows, dict(zip(called, ids, strict=True)), outputs)
        self.on_progress(len(inputs), f"{self.report.new_calls} calls spent")

    def _remember(self, rows: list[int], ids: dict[bytes, int], outputs: dict[bytes, bytes]) -> None:
        """Let later batches with the same input copy from these rows."""
        store_id, location = self.store.manifest.store_id, str(self.store.folder)
        for row in rows:
            for view, digest in enumerate(self.plan.input_digests[row]):
                if digest in ids and digest not in self.paid:
                    self.paid[digest] = RecordedCall(
                        ids[digest], store_id, location, digest, row, view, "committed", outputs[digest]
                    )


def _runs(rows: list[int]) -> list[tuple[int, int]]:
    """Sorted rows as (first, count) runs of neighbours."""
    cuts = [0, *(place + 1 for place, (row, after) in enumerate(pairwise(rows)) if after != row + 1), len(rows)]
    return [(rows[start], stop - start) for start, stop in pairwise(cuts)]
