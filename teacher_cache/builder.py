"""The work of a build: reserve, call, write, commit, batch by batch, alone or together with other builders.

While the teacher answers one batch, a second thread writes the one before it. The order of events for each batch
never changes: its calls are charged before the teacher runs, its cells are on the disk before the calls are
committed. A build that is stopped anywhere is finished by running it again; answers that it had in hand when it could
not go on are spooled, and not asked for again.

Builders of one store, or of several that share a ledger, divide the work by reserving: what one has reserved, the
others leave to it, and wait for at the end. If it dies, its lease ends, and they settle and finish what it left.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Set
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from ground.errors import CKDError, Interrupted, StoreBusy
from ground.terminal import StopRequest, graceful_stop
from storage.canaries import CANARY, CANARY_OUTPUT
from storage.ledger import Ledger, check_budget, lease_lost
from storage.ledger_records import Session
from storage.locks import CellLocks, locked_cells
from storage.rows import Rows
from storage.store import Store, runs_of
from teacher_cache.answered import Answered, Assembly
from teacher_cache.asking import Asking, Workplace
from teacher_cache.build_report import BuildReport
from teacher_cache.in_hand import AnswersInHand
from teacher_cache.lease import Heartbeat, Watch
from teacher_cache.line import line_to, most_in_hand
from teacher_cache.place import Place
from teacher_cache.plan import BuildPlan
from teacher_cache.remote.billing import rates_of, require_bounded
from teacher_cache.sanity import is_past_gate, require_sane
from teacher_cache.settle import Leftovers, require_storable, settle_session
from teacher_cache.shown import Shown
from teacher_cache.teachers import Teacher
from teacher_cache.teachers.attempts import RemoteTeacher
from teacher_cache.worklist import WorkList

log = logging.getLogger(__name__)

_POLL_SECONDS = 0.1


class Builder:
    """One run of a build, beside any others.

    Args:
        shown: the images and views of the plan's rows.
        locks: of the store's cells.
        on_progress: told how many cells were finished, and a note.
        report: to be added to; None for a new one.
    """

    def __init__(
        self,
        plan: BuildPlan,
        teacher: Teacher | RemoteTeacher,
        shown: Shown,
        store: Store,
        ledger: Ledger,
        locks: CellLocks,
        on_progress: Callable[[int, str], None],
        report: BuildReport | None = None,
    ) -> None:
        self.plan, self.store, self.ledger, self.locks = plan, store, ledger, locks
        self._teacher, self._shown = teacher, shown
        self.report = BuildReport(store.place, plan.n) if report is None else report
        self._on_progress = on_progress
        # Read before what is known: what other builders reserve in between is then counted once, not twice.
        self._before = ledger.summary(plan.identity.teacher.fingerprint)
        self._work = WorkList(plan, store, ledger)
        if not is_past_gate(plan, store):
            self._work.hold({plan.input_of(cell) for cell in plan.gate})
        self._session = 0
        self._held: tuple[dict[Path, list[int]], float] = ({}, 0.0)
        self._stop = StopRequest()
        self._in_hand = AnswersInHand(store, min(most_in_hand(plan, teacher), len(self._work.cells_of)))
        self._assembly = Assembly(plan, store, self._work, self._in_hand)

    def note(self, found: Leftovers) -> None:
        """Add what was settled of earlier builds to the report."""
        self.report.adopted_calls += len(found.adopted)
        self.report.lost_calls += len(found.lost)

    def run(self) -> BuildReport:
        """Fill every missing cell; see `build`."""
        if self._work.waits_for_verdict:
            self._pass_gate()
        if self._work:
            self._check_budget()
            with graceful_stop() as self._stop, line_to(self._teacher, self.plan, self.store, self.ledger) as line:
                if self._work.num_unpaid:
                    line.check(self._check_session, self.report, self._stop)
                self._session = self._start_session(self.plan.purpose, self.plan.called_names)
                asking = line.asking(self._workplace())
                with (
                    Heartbeat(self.ledger, self._session, self.plan.config.lease_seconds) as heartbeat,
                    ThreadPoolExecutor(1, "store-writer") as writer,
                    self._nothing_dropped(writer, asking),
                ):
                    self._fill(asking, heartbeat, writer)
        torn = {cell // self.plan.identity.views for cell in self.store.missing_cells(self.plan.rows).tolist()}
        self.report.rows_valid, self.report.rest = self.plan.n - len(torn), self.store.manifest.rest
        if torn:
            raise Interrupted(
                f"stopped with {self.report.rows_valid} of {self.plan.n} rows whole; run the same command again to go "
                "on"
            )
        return self.report

    def _check_budget(self) -> None:
        """Refuse before the first call; otherwise record the budgets that were given.

        One in money is held to each call as it is charged: what calls cost is known afterwards, and at most their upper
        bound, which together may be far more than they come to.
        """
        teacher, budget, micros = self.plan.identity.teacher, self.plan.config.budget, self.plan.config.budget_micros
        needed = self._work.num_unpaid
        if needed:
            needed += self.plan.canaries
            limit = self._before.budget if budget is None else budget
            check_budget(teacher.name, spent=self._before.spent, budget=limit, wanted=needed)
            most = self._before.budget_micros if micros is None else micros
            require_bounded(rates_of(self._teacher, self.plan.config.asking.price), teacher.name, most)
        if not needed:
            # Nothing is bought: a budget below what is spent harms nobody.
            budget = None if budget is None or budget < self._before.spent else budget
            paid = self._before.cost_micros + self._before.reserved_micros
            micros = None if micros is None or micros < paid else micros
        if budget is not None or micros is not None:
            self.ledger.set_budget(teacher.fingerprint, teacher.name, budget, cost_micros=micros)

    @contextmanager
    def _check_session(self) -> Iterator[int]:
        """A session of its own for what is asked before the work begins."""
        session = self._start_session(CANARY, (CANARY_OUTPUT,))
        with Heartbeat(self.ledger, session, self.plan.config.lease_seconds):
            yield session

    def _workplace(self) -> Workplace:
        return Workplace(
            plan=self.plan,
            shown=self._shown,
            ledger=self.ledger,
            work=self._work,
            assembly=self._assembly,
            in_hand=self._in_hand,
            report=self.report,
            stop=self._stop,
            session=self._session,
            advance=self._advance,
        )

    def _start_session(self, purpose: str, outputs: tuple[str, ...]) -> int:
        teacher = self.plan.identity.teacher
        return self.ledger.start_session(
            Session(
                teacher=teacher.fingerprint,
                teacher_name=teacher.name,
                store=self.store.manifest.store_id,
                location=str(self.store.place.absolute()),
                purpose=purpose,
                device=self._teacher.card.device,
                precision=teacher.precision,
                outputs=outputs,
                host=Place.of(self.store.desk).text,
            )
        )

    @contextmanager
    def _nothing_dropped(self, writer: ThreadPoolExecutor, asking: Asking) -> Iterator[None]:
        """However the work ends, answers in hand are kept, while the session still has its lease."""
        try:
            yield
        except BaseException as error:
            try:
                # Who stops at once does not wait: for what is under way, or for what the writer may still commit.
                asking.salvage(wait=isinstance(error, Exception))
                if isinstance(error, Exception):
                    writer.shutdown()
            except CKDError as failure:
                log.warning("%s", failure)
            finally:
                with self._stop.held():
                    self._in_hand.keep()
            raise
        finally:
            writer.shutdown()
            self._in_hand.close()

    def _fill(self, asking: Asking, heartbeat: Heartbeat, writer: ThreadPoolExecutor) -> None:
        watch = Watch(self.plan.config.lease_seconds)
        pending: Future[None] | None = None
        while self._goes_on(asking):
            if heartbeat.lost:
                raise lease_lost()
            answers = asking.next()
            if answers is None and asking.is_busy:
                continue
            if pending is not None:
                pending.result()
            pending = writer.submit(self._keep, answers) if answers is not None and answers.cells else None
            if answers is not None:
                self.report.reused_calls += len(answers.cells) - (len(answers.called.ids) if answers.called else 0)
                continue
            if asking.is_winding_down:
                continue
            if self._work.waits_for_verdict:
                self._pass_gate()
            else:
                self._wait_for_others(watch, heartbeat)
        if pending is not None:
            pending.result()
        require_storable(self.store, self._assembly.misfits, self.plan.rows)
        asking.finish()

    def _goes_on(self, asking: Asking) -> bool:
        """Whether there is something left to do, or, once that is to end, under way."""
        if self._stop.requested or self._assembly.misfits:
            asking.wind_down()
        return asking.is_busy or (bool(self._work) and not asking.is_winding_down)

    def _pass_gate(self) -> None:
        """Judge the first answers, all of which are whole, and go on; raises `TeacherDoubted`."""
        require_sane(self.plan, self.store)
        self._advance(self._work.release())

    def _keep(self, answers: Answered) -> None:
        """Write cells, make them durable and visible, and commit their calls; runs in the writer thread."""
        with self.locks.held(runs_of(answers.cells)):
            # Under the locks nobody can give our calls up any more; had somebody done so before, the lease is gone.
            if not self.ledger.holds_lease(self._session):
                raise lease_lost()
            digests = self.store.write_outputs(answers.cells, answers.values)
            self.store.publish(answers.cells)
            bills = answers.called.bills if answers.called else {}
            self.ledger.commit(self._committed(answers, digests), answers.seconds, bills)
        if answers.called is not None:
            self._in_hand.lay_down(answers.called)
        self._advance(len(answers.cells))

    def _committed(self, answers: Answered, digests: np.ndarray) -> dict[int, bytes]:
        """Call -> digests of what was kept of it."""
        called = set(self.plan.called_names)
        kept = [place for place, output in enumerate(self.plan.identity.outputs) if output.name in called]
        place_of = dict(zip(answers.inputs, range(len(answers.inputs)), strict=True))
        ids = answers.called.ids if answers.called else {}
        return {id_: digests[place_of[digest], kept].tobytes() for digest, id_ in ids.items()}

    def _wait_for_others(self, watch: Watch, heartbeat: Heartbeat) -> None:
        """Go on with what others had in hand, once it is answered; settle what those left that died."""
        sessions, finished = self._work.take_back()
        self._advance(finished)
        sessions |= {call.session for call in self._work.published}
        if sessions:
            self._wait_for(sessions, watch, heartbeat)

    def _wait_for(self, sessions: Set[int], watch: Watch, heartbeat: Heartbeat) -> None:
        """Wait a moment for sessions of others, and settle what those left that died."""
        leases = self.ledger.leases()
        watched = {session: lease for session, lease in leases.items() if session in sessions}
        for lease in watch.silent(watched, heartbeat.landed):
            if self.ledger.take_lease(lease):
                log.info("a builder stopped answering; what it left is settled")
                del leases[lease.session]
        found = Leftovers()
        for session in sorted(sessions - leases.keys()):
            left = settle_session(session, self.ledger, self.store, self.locks)
            if left.keeper is not None and not left.misfit_inputs.isdisjoint(self._work.waiting):
                require_storable(left.keeper, left.misfits, Rows.first(left.keeper.manifest.n))
            found += left
        self.note(found)
        self._require_patience(found)
        self._work.drop_settled(leases.keys(), time.monotonic())
        time.sleep(min(_POLL_SECONDS, self.plan.config.lease_seconds / 20))

    def _require_patience(self, found: Leftovers) -> None:
        """Wait as long as a lease for cells whose writer lost his own, and may be stopped; then say who holds them."""
        (before, since), now = self._held, time.monotonic()
        # Cells that are whole are not waited for, but only the commit of their calls; see `WorkList.drop_settled`.
        ours = [cell for cell in found.held.get(self.locks.path, ()) if not self.store.is_whole(cell)]
        held = {path: cells for path, cells in {**found.held, self.locks.path: ours}.items() if cells}
        if held != before:
            self._held = held, now
        elif held and now - since >= self.locks.patience_seconds:
            path, cells = next(iter(held.items()))
            raise StoreBusy(locked_cells(path, *runs_of(cells)[0], self.locks.patience_seconds))

    def _advance(self, cells: int) -> None:
        if cells:
            self._on_progress(cells, f"{self.report.new_calls} calls spent")
