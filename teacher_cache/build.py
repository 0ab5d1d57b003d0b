"""Build a store: reserve, call, write, commit, batch by batch, alone or together with other builders.

While the teacher answers one batch, a second thread writes the one before it. The order of events for each batch
never changes: its calls are charged before the teacher runs, its cells are on the disk before the calls are
committed. A build that is stopped anywhere is finished by running it again.

Builders of one store, or of several that share a ledger, divide the work by reserving: what one has reserved, the
others leave to it, and wait for at the end. If it dies, its lease ends, and they settle and finish what it left.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ground.durable import remove_partials
from ground.errors import Interrupted, InvalidInput, StoreBusy, StoreUnreadable, store_command
from ground.terminal import StopRequest, graceful_stop
from ground.views import apply_views
from storage.ledger import Ledger, check_budget, lease_lost
from storage.ledger_records import Session
from storage.locks import CellLocks, FileLock
from storage.store import BUILD_LOCK, CELL_LOCK, Store, prepare_folder, runs_of
from teacher_cache.lease import Heartbeat, Watch, this_host
from teacher_cache.plan import BuildPlan, open_ledger_of, open_matching_store, shared_ledger
from teacher_cache.reuse import PaidAnswers
from teacher_cache.settle import Leftovers, require_only_place, settle_session, settle_store
from teacher_cache.teacher import to_arrays
from teacher_cache.worklist import WorkList

log = logging.getLogger(__name__)

# A teacher's answers in hand are worth waiting for a server that is started again.
PATIENCE_SECONDS = 300.0
_POLL_SECONDS = 0.1


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
        BudgetRefused: before the first call, if the budget does not allow all that are needed; or later, if other
            builders spent it meanwhile.
        Interrupted: the user asked to stop; everything called so far is kept.
        StoreBusy: a build of fewer rows, or a repair, is at work on the store; or our lease was taken away.
        DiskFull, StoreUnreadable: nothing that was finished is lost.
    """
    folder = plan.config.store
    prepare_folder(folder)
    with ExitStack() as stack:
        lock = stack.enter_context(FileLock(folder / BUILD_LOCK))
        locks = stack.enter_context(CellLocks(folder / CELL_LOCK))
        found = _enter(plan, lock, locks)
        store = _joined_store(plan)
        ledger = stack.enter_context(closing(_open_ledger(plan, store)))
        builder = Builder(plan, store, ledger, locks, on_progress)
        builder.report.adopted_calls, builder.report.lost_calls = len(found.adopted), len(found.lost)
        report = builder.run()
        store.record_ledger_head(ledger.head())
    return report


def _enter(plan: BuildPlan, lock: FileLock, locks: CellLocks) -> Leftovers:
    """Share a store's build lock; who finds nobody else there first makes, settles or grows the store."""
    told = False
    while not lock.try_exclusive():
        if lock.try_shared():
            store = open_matching_store(plan.config, plan.identity)
            if store is not None and store.manifest.n >= plan.n:
                return Leftovers()
            lock.release()
            if store is not None:
                raise StoreBusy(
                    f"a build of {store.manifest.n} rows is writing to {plan.config.store}; wait until it ends, or "
                    f"ask for --n {store.manifest.n} or fewer"
                )
        elif not told:
            log.warning("%s is being made, grown or repaired; waiting until that ends", plan.config.store)
            told = True
        time.sleep(_POLL_SECONDS * (1 + random.random()))
    found = _prepare(plan, locks)
    lock.share()
    return found


def _prepare(plan: BuildPlan, locks: CellLocks) -> Leftovers:
    """What has to be done alone: make the store and its ledger, settle what was left, grow."""
    remove_partials(plan.config.store)
    store = open_matching_store(plan.config, plan.identity) or _create_store(plan)
    with closing(_open_ledger(plan, store)) as ledger:
        require_only_place(store, ledger)
        found = settle_store(store, ledger, locks, this_host())
        _require_known(plan, store, ledger)
        if found.adopted or found.lost:
            log.info("an earlier build stopped: %d calls adopted, %d lost", len(found.adopted), len(found.lost))
        if plan.n > store.manifest.n:
            store.grow(plan.samples())
        record_store(store, ledger, "build")
    return found


def _require_known(plan: BuildPlan, store: Store, ledger: Ledger) -> None:
    """Refuse a ledger without calls for cells that are whole: it is an older one, and would have them paid again."""
    missing = set(store.missing_cells(plan.n).tolist())
    cells = range(min(plan.n, store.manifest.n) * plan.identity.views)
    inputs = {plan.input_of(cell) for cell in cells if cell not in missing}
    unknown = inputs - ledger.known_calls(plan.identity.teacher.fingerprint, sorted(inputs)).keys()
    if unknown:
        raise StoreUnreadable(
            f"the ledger knows no call for {len(unknown)} answers that {store.folder} holds: it was replaced or rolled "
            f"back; bring back the right one, and see with: {store_command('verify', store.folder)}"
        )


def record_store(store: Store, ledger: Ledger, made_by: str) -> None:
    """Chain what a store is into its ledger, and note in the store how far the ledger has come."""
    ledger.record_store(store.manifest.store_id, {"manifest": store.manifest.digest, "made_by": made_by})
    store.record_ledger_head(ledger.head())


def _joined_store(plan: BuildPlan) -> Store:
    store = open_matching_store(plan.config, plan.identity)
    assert store is not None, "a store is made before its lock is shared"
    return store


def _open_ledger(plan: BuildPlan, store: Store) -> Ledger:
    return open_ledger_of(store, plan.config.ledger, create=True, patience_seconds=PATIENCE_SECONDS)


def _create_store(plan: BuildPlan) -> Store:
    return Store.create(
        plan.config.store,
        plan.identity,
        array_format=plan.config.array_format,
        samples=plan.samples(),
        ledger=shared_ledger(plan.config.ledger),
    )


@dataclass(slots=True)
class _Answers:
    """Outputs of some cells, in increasing order: name -> (C, ...), with the input of each; and the calls for them."""

    cells: list[int]
    inputs: list[bytes]
    values: dict[str, np.ndarray]
    ids: dict[bytes, int]
    seconds: float


class Builder:
    """One run of a build, beside any others.

    Args:
        locks: of the store's cells.
        on_progress: told how many cells were finished, and a note.
    """

    def __init__(
        self,
        plan: BuildPlan,
        store: Store,
        ledger: Ledger,
        locks: CellLocks,
        on_progress: Callable[[int, str], None],
    ) -> None:
        self.plan, self.store, self.ledger, self.locks = plan, store, ledger, locks
        self.report = BuildReport(store.folder, plan.n)
        self._on_progress = on_progress
        self._kept = PaidAnswers(store)
        # Read before what is known: what other builders reserve in between is then counted once, not twice.
        self._before = ledger.summary(plan.identity.teacher.fingerprint)
        self._work = WorkList(plan, store, ledger)
        self._session = 0

    def run(self) -> BuildReport:
        """Fill every missing cell; see `build`."""
        if self._work:
            self._check_budget()
            self._session = self._start_session()
            with (
                Heartbeat(self.ledger, self._session, self.plan.config.lease_seconds) as heartbeat,
                graceful_stop() as stop,
                ThreadPoolExecutor(1, "store-writer") as writer,
            ):
                self._fill(stop, heartbeat, writer)
        torn = {cell // self.plan.identity.views for cell in self.store.missing_cells(self.plan.n).tolist()}
        self.report.rows_valid = self.plan.n - len(torn)
        if torn:
            raise Interrupted(
                f"stopped with {self.report.rows_valid} of {self.plan.n} rows whole; run the same command again to go "
                "on"
            )
        return self.report

    def _check_budget(self) -> None:
        """Refuse before the first call; otherwise record the budget that was given."""
        teacher, budget = self.plan.identity.teacher, self.plan.config.budget
        needed = self._work.num_unpaid
        if needed:
            limit = self._before.budget if budget is None else budget
            check_budget(teacher.name, spent=self._before.spent, budget=limit, wanted=needed)
        if budget is not None and (needed or budget >= self._before.spent):
            self.ledger.set_budget(teacher.fingerprint, teacher.name, budget)

    def _start_session(self) -> int:
        teacher = self.plan.identity.teacher
        return self.ledger.start_session(
            Session(
                teacher=teacher.fingerprint,
                teacher_name=teacher.name,
                store=self.store.manifest.store_id,
                location=str(self.store.folder.absolute()),
                purpose=self.plan.purpose,
                device=self.plan.teacher.compute.describe(),
                precision=teacher.precision,
                outputs=tuple(output.name for output in self.plan.called_outputs),
                host=this_host(),
            )
        )

    def _fill(self, stop: StopRequest, heartbeat: Heartbeat, writer: ThreadPoolExecutor) -> None:
        watch = Watch(self.plan.config.lease_seconds)
        pending: Future[None] | None = None
        while self._work and not stop.requested:
            if heartbeat.lost:
                raise lease_lost()
            answers = self._next_answers() if self._work.todo else None
            if pending is not None:
                pending.result()
            pending = writer.submit(self._keep, answers) if answers is not None and answers.cells else None
            if answers is None:
                self._wait_for_others(watch)
        if pending is not None:
            pending.result()

    def _next_answers(self) -> _Answers:
        """Outputs for the next inputs: new ones from the teacher, the others from where they are kept."""
        batch = self._work.next_batch()
        # Before anything is charged: what is to be copied has to be there, or a call would be paid for nothing.
        copied = {digest: self._read_kept(digest) for digest in batch}
        new = [digest for digest in batch if not self._work.is_answered(digest)]
        reservation = self.ledger.reserve(self._session, [self._work.request(digest) for digest in new])
        self._advance(self._work.give_up(reservation.known))
        called, seconds = self._call(reservation.ids) if reservation.ids else ({}, 0.0)
        inputs = [digest for digest in batch if digest not in reservation.known and self._work.cells_of[digest]]
        values = self._put_together(inputs, list(reservation.ids), called, copied)
        cells = sorted((cell, place) for place, digest in enumerate(inputs) for cell in self._work.cells_of[digest])
        order = [place for _, place in cells]
        if order != list(range(len(inputs))):
            values = {name: array[order] for name, array in values.items()}
        self.report.reused_calls += len(cells) - len(reservation.ids)
        return _Answers(
            [cell for cell, _ in cells], [inputs[place] for place in order], values, reservation.ids, seconds
        )

    def _read_kept(self, digest: bytes) -> dict[str, np.ndarray]:
        """Outputs of an input that are not to come from a new call: name -> (1, ...)."""
        outputs, called = self.plan.identity.outputs, self.plan.called_outputs
        if self._work.is_answered(digest):
            return self._kept.read(self._work.paid[digest], outputs)
        rest = [output for output in outputs if output not in called]
        return self._kept.read(self._work.paid[digest], rest) if rest else {}

    def _call(self, ids: dict[bytes, int]) -> tuple[dict[str, np.ndarray], float]:
        """Call the teacher on inputs that are charged: name -> (C, ...), and the seconds it took."""
        cells = [self._work.cells_of[digest][0] for digest in ids]
        rows, views = np.divmod(np.array(cells), self.plan.identity.views)
        images, chosen = (torch.from_numpy(array) for array in (self.plan.images[rows], self.plan.views[rows, views]))
        pixels = apply_views(images, chosen, self.plan.identity.geometry)
        started = time.perf_counter()
        said = self.plan.teacher.call(pixels, self.plan.called_outputs)
        self.report.new_calls += len(ids)
        try:
            return to_arrays(said, self.plan.called_outputs), time.perf_counter() - started
        except InvalidInput:
            self.ledger.lose(list(ids.values()))  # answered, and nothing that can be kept
            raise

    def _put_together(
        self,
        inputs: list[bytes],
        called_inputs: list[bytes],
        called: dict[str, np.ndarray],
        copied: dict[bytes, dict[str, np.ndarray]],
    ) -> dict[str, np.ndarray]:
        """All outputs of some inputs, name -> (C, ...)."""
        identity = self.plan.identity
        if called_inputs == inputs and len(called) == len(identity.outputs):
            return called
        places = {digest: place for place, digest in enumerate(called_inputs)}
        values = {output.name: np.empty((len(inputs), *output.shape), output.dtype) for output in identity.outputs}
        for place, digest in enumerate(inputs):
            for name, array in copied[digest].items():
                values[name][place] = array[0]
            for name, array in called.items() if digest in places else ():
                values[name][place] = array[places[digest]]
        return values

    def _keep(self, answers: _Answers) -> None:
        """Write cells, make them durable and visible, and commit their calls; runs in the writer thread."""
        with self.locks.held(runs_of(answers.cells)):
            # Under the locks nobody can give our calls up any more; had somebody done so before, the lease is gone.
            if not self.ledger.holds_lease(self._session):
                raise lease_lost()
            digests = self.store.write_outputs(answers.cells, answers.values)
            self.store.publish(answers.cells)
            self.ledger.commit(self._committed(answers, digests), answers.seconds)
        self._advance(len(answers.cells))

    def _committed(self, answers: _Answers, digests: np.ndarray) -> dict[int, bytes]:
        """Call -> digests of what was kept of it."""
        called = {output.name for output in self.plan.called_outputs}
        kept = [place for place, output in enumerate(self.plan.identity.outputs) if output.name in called]
        place_of = dict(zip(answers.inputs, range(len(answers.inputs)), strict=True))
        return {id_: digests[place_of[digest], kept].tobytes() for digest, id_ in answers.ids.items()}

    def _wait_for_others(self, watch: Watch) -> None:
        """Go on with what others had in hand, once it is answered; settle what those left that died."""
        sessions, finished = self._work.take_back()
        self._advance(finished)
        if not sessions:
            return
        leases = self.ledger.leases()
        for lease in watch.silent({session: lease for session, lease in leases.items() if session in sessions}):
            if self.ledger.take_lease(lease):
                log.info("a builder stopped answering; what it left is settled")
                del leases[lease.session]
        for session in sorted(sessions - leases.keys()):
            found = settle_session(session, self.ledger, self.store, self.locks)
            self.report.adopted_calls += len(found.adopted)
            self.report.lost_calls += len(found.lost)
        time.sleep(min(_POLL_SECONDS, self.plan.config.lease_seconds / 20))

    def _advance(self, cells: int) -> None:
        if cells:
            self._on_progress(cells, f"{self.report.new_calls} calls spent")
