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
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from storage.durable import remove_partials
from storage.errors import Interrupted, InvalidInput, StoreBusy
from storage.ledger import CallRequest, Ledger, RecordedCall, Session, check_budget, lease_lost
from storage.locks import CellLocks, FileLock
from storage.schema import OutputSpec
from storage.store import BUILD_LOCK, CELL_LOCK, Store, prepare_folder, runs_of
from storage.terminal import StopRequest, graceful_stop
from storage.views import apply_views
from teacher_cache.lease import Heartbeat, Watch, this_host
from teacher_cache.plan import BuildPlan, open_ledger_of, open_matching_store, shared_ledger
from teacher_cache.reuse import PaidAnswers
from teacher_cache.settle import Leftovers, settle_session, settle_store
from teacher_cache.teacher import to_arrays

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
    """What has to be done alone: make the store and its ledger, settle what was left, check the budget, grow."""
    remove_partials(plan.config.store)
    store = open_matching_store(plan.config, plan.identity) or _create_store(plan)
    with closing(_open_ledger(plan, store)) as ledger:
        found = settle_store(store, ledger, locks, this_host())
        if found.adopted or found.lost:
            log.info("an earlier build stopped: %d calls adopted, %d lost", len(found.adopted), len(found.lost))
        check_budget_of(plan, store, ledger)
        if plan.n > store.manifest.n:
            store.grow(plan.samples())
        record_store(store, ledger, "build")
    return found


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


def check_budget_of(plan: BuildPlan, store: Store, ledger: Ledger) -> None:
    """Refuse before anything is called or grown; otherwise record the budget that was given."""
    teacher, budget = plan.identity.teacher, plan.config.budget
    # Read before what is known: what other builders reserve in between is then counted once, not twice.
    summary = ledger.summary(teacher.fingerprint)
    inputs = {plan.input_of(cell) for cell in store.missing_cells(plan.n).tolist()}
    known = ledger.known_calls(teacher.fingerprint, sorted(inputs))
    needed = len(inputs - {digest for digest, calls in known.items() if plan.answered_by(calls)})
    if needed:
        limit = summary.budget if budget is None else budget
        check_budget(teacher.name, spent=summary.spent, budget=limit, wanted=needed)
    if budget is not None and (needed or budget >= summary.spent):
        ledger.set_budget(teacher.fingerprint, teacher.name, budget)


@dataclass(slots=True)
class _Answers:
    """Outputs of some cells, in increasing order: name -> (C, ...); and the calls among them."""

    cells: list[int]
    values: dict[str, np.ndarray]
    inputs: list[bytes]
    ids: dict[bytes, int]
    seconds: float


@dataclass
class Builder:
    """One run of a build, beside any others, under the store's shared lock."""

    plan: BuildPlan
    store: Store
    ledger: Ledger
    locks: CellLocks
    on_progress: Callable[[int, str], None]
    report: BuildReport = field(init=False)
    answers: PaidAnswers = field(init=False)
    # Cells that are not whole, by the input that they wait for.
    cells_of: dict[bytes, list[int]] = field(init=False)
    waiting: list[bytes] = field(init=False, default_factory=list)
    session: int = field(init=False)

    def __post_init__(self) -> None:
        self.report = BuildReport(self.store.folder, self.plan.n)
        self.answers = PaidAnswers(self.store)
        self.cells_of = {}
        for cell in self._missing():
            self.cells_of.setdefault(self.plan.input_of(cell), []).append(cell)

    def run(self) -> BuildReport:
        """Fill every missing cell; see `build`."""
        if self.cells_of:
            check_budget_of(self.plan, self.store, self.ledger)
            with self._session() as heartbeat, graceful_stop() as stop, ThreadPoolExecutor(1, "writer") as writer:
                self._fill(stop, heartbeat, writer)
        torn = {cell // self.plan.identity.views for cell in self._missing()}
        self.report.rows_valid = self.plan.n - len(torn)
        if torn:
            raise Interrupted(
                f"stopped with {self.report.rows_valid} of {self.plan.n} rows whole; run the same command again to go "
                "on"
            )
        return self.report

    def _missing(self) -> list[int]:
        """Cells of this build that are not whole; those beyond n are another build's concern."""
        return [int(cell) for cell in self.store.missing_cells(self.plan.n)]

    @contextmanager
    def _session(self) -> Iterator[Heartbeat]:
        teacher = self.plan.identity.teacher
        self.session = self.ledger.start_session(
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
        with Heartbeat(self.ledger, self.session, self.plan.config.lease_seconds) as heartbeat:
            yield heartbeat

    def _fill(self, stop: StopRequest, heartbeat: Heartbeat, writer: ThreadPoolExecutor) -> None:
        size, watch = self.plan.config.batch_size, Watch(self.plan.config.lease_seconds)
        todo = list(self.cells_of)
        pending: Future[None] | None = None
        while (todo or self.waiting) and not stop.requested:
            if heartbeat.lost:
                raise lease_lost()
            if not todo:
                _finish(pending)
                pending, todo = None, self._await(watch, stop)
                continue
            batch, todo = todo[:size], todo[size:]
            answers, others = self._answer(batch)
            if others:
                todo = self._leave_to_others(todo)
            _finish(pending)
            pending = writer.submit(self._keep, answers) if answers.cells else None
        _finish(pending)

    def _answer(self, inputs: list[bytes]) -> tuple[_Answers, bool]:
        """Outputs for some inputs: new ones from the teacher, the others from where they are kept.

        Returns:
            The answers, and whether another builder has calls in hand that we asked for.
        """
        reservation = self.ledger.reserve(self.session, [self._request(digest) for digest in inputs])
        reserved, copied = [], {}
        for digest, calls in reservation.known.items():
            if all(call.status == "committed" for call in calls):
                copied[digest] = calls
            else:
                reserved.append(digest)
        self.waiting += reserved
        self._drop_whole(list(copied))
        called, seconds = self._call(reservation.ids) if reservation.ids else ({}, 0.0)
        kept = [digest for digest in inputs if digest in reservation.ids or self.cells_of.get(digest)]
        kept = [digest for digest in kept if digest not in reserved]
        values = self._collect(kept, list(reservation.ids), called, copied)
        self.report.reused_calls += sum(len(self.cells_of[digest]) for digest in kept) - len(reservation.ids)
        cells = [(cell, place) for place, digest in enumerate(kept) for cell in self.cells_of[digest]]
        cells.sort()
        order = [place for _, place in cells]
        if order != list(range(len(kept))):
            values = {name: array[order] for name, array in values.items()}
        answers = _Answers(
            [cell for cell, _ in cells], values, [kept[place] for place in order], reservation.ids, seconds
        )
        return answers, bool(reserved)

    def _request(self, digest: bytes) -> CallRequest:
        row, view = divmod(self.cells_of[digest][0], self.plan.identity.views)
        return CallRequest(digest, int(self.plan.source_index[row]), row, view)

    def _call(self, ids: dict[bytes, int]) -> tuple[dict[str, np.ndarray], float]:
        """Call the teacher on inputs that are charged: name -> (C, ...), and the seconds it took."""
        cells = [self.cells_of[digest][0] for digest in ids]
        rows, views = np.divmod(np.array(cells), self.plan.identity.views)
        images, chosen = (torch.from_numpy(array) for array in (self.plan.images[rows], self.plan.views[rows, views]))
        pixels = apply_views(images, chosen, self.plan.identity.geometry)
        started = time.perf_counter()
        said = self.plan.teacher.call(pixels)
        self.report.new_calls += len(ids)
        try:
            return to_arrays(said, self.plan.called_outputs), time.perf_counter() - started
        except InvalidInput:
            self.ledger.lose(list(ids.values()))  # answered, and nothing that can be kept
            raise

    def _collect(
        self,
        inputs: list[bytes],
        called_inputs: list[bytes],
        called: dict[str, np.ndarray],
        copied: dict[bytes, list[RecordedCall]],
    ) -> dict[str, np.ndarray]:
        """All outputs of some inputs, name -> (C, ...), put together from what was called and what was kept before."""
        identity = self.plan.identity
        if called_inputs == inputs and len(called) == len(identity.outputs):
            return called
        places = {digest: place for place, digest in enumerate(called_inputs)}
        before = copied if self.plan.called_outputs == identity.outputs else self._calls_before(inputs)
        values = {output.name: np.empty((len(inputs), *output.shape), output.dtype) for output in identity.outputs}
        for place, digest in enumerate(inputs):
            from_teacher = called if digest in places else {}
            for name, array in from_teacher.items():
                values[name][place] = array[places[digest]]
            rest: list[OutputSpec] = [output for output in identity.outputs if output.name not in from_teacher]
            if rest:
                for name, array in self.answers.read(before[digest], rest).items():
                    values[name][place] = array[0]
        return values

    def _calls_before(self, inputs: list[bytes]) -> dict[bytes, list[RecordedCall]]:
        """Every committed call on inputs that are called again for more outputs."""
        known = self.ledger.known_calls(self.plan.identity.teacher.fingerprint, inputs)
        return {digest: [call for call in calls if call.status == "committed"] for digest, calls in known.items()}

    def _keep(self, answers: _Answers) -> None:
        """Write cells, make them durable and visible, and commit their calls; runs in the writer thread."""
        with self.locks.held(runs_of(answers.cells)):
            # Under the locks nobody can give our calls up any more; had somebody done so before, the lease is gone.
            if not self.ledger.holds_lease(self.session):
                raise lease_lost()
            digests = self.store.write_outputs(answers.cells, answers.values)
            self.store.publish(answers.cells)
            self.ledger.commit(self._committed(answers, digests), answers.seconds)
        self.on_progress(len(answers.cells), f"{self.report.new_calls} calls spent")

    def _committed(self, answers: _Answers, digests: np.ndarray) -> dict[int, bytes]:
        """Call -> digests of what was kept of it."""
        called = {output.name for output in self.plan.called_outputs}
        kept = [place for place, output in enumerate(self.plan.identity.outputs) if output.name in called]
        first_place: dict[bytes, int] = {}
        for place, digest in enumerate(answers.inputs):
            first_place.setdefault(digest, place)
        return {id_: digests[first_place[digest], kept].tobytes() for digest, id_ in answers.ids.items()}

    # Beside other builders

    def _drop_whole(self, inputs: list[bytes]) -> None:
        """Leave out cells that another builder of this store made whole meanwhile."""
        if not inputs:
            return
        missing = set(self._missing())
        for digest in inputs:
            before = self.cells_of[digest]
            self.cells_of[digest] = [cell for cell in before if cell in missing]
            if len(self.cells_of[digest]) < len(before):
                self.on_progress(len(before) - len(self.cells_of[digest]), f"{self.report.new_calls} calls spent")

    def _leave_to_others(self, todo: list[bytes]) -> list[bytes]:
        """What is left when others are at work: without what they have in hand, from a place where they are not."""
        known = self.ledger.known_calls(self.plan.identity.teacher.fingerprint, todo)
        reserved = {digest for digest, calls in known.items() if any(call.status == "reserved" for call in calls)}
        committed = [digest for digest in known if digest not in reserved and self.plan.answered_by(known[digest])]
        self._drop_whole(committed)
        self.waiting += [digest for digest in todo if digest in reserved]
        left = [digest for digest in todo if digest not in reserved and self.cells_of[digest]]
        size = self.plan.config.batch_size
        start = random.randrange(-(-len(left) // size)) * size if left else 0
        return left[start:] + left[:start]

    def _await(self, watch: Watch, stop: StopRequest) -> list[bytes]:
        """Wait for calls that others have in hand; give up those of builders that died.

        Returns:
            Inputs that can be gone on with: answered by now, or lost.
        """
        while not stop.requested:
            known = self.ledger.known_calls(self.plan.identity.teacher.fingerprint, self.waiting)
            reserved = {digest: call for digest, calls in known.items() for call in calls if call.status == "reserved"}
            ready = [digest for digest in self.waiting if digest not in reserved]
            if ready:
                self.waiting = list(reserved)
                self._drop_whole([digest for digest in ready if digest in known])
                return [digest for digest in ready if self.cells_of[digest]]
            self._bury(watch, {call.session for call in reserved.values()})
            time.sleep(_POLL_SECONDS)
        return []

    def _bury(self, watch: Watch, sessions: set[int]) -> None:
        """Settle what sessions left whose lease is gone or stands still."""
        leases = self.ledger.leases()
        for lease in watch.silent({session: lease for session, lease in leases.items() if session in sessions}):
            if self.ledger.take_lease(lease):
                log.info("a builder stopped answering; what it left is settled")
                del leases[lease.session]
        for session in sessions - leases.keys():
            found = settle_session(session, self.ledger, self.store, self.locks)
            self.report.adopted_calls += len(found.adopted)
            self.report.lost_calls += len(found.lost)


def _finish(pending: Future[None] | None) -> None:
    if pending is not None:
        pending.result()
