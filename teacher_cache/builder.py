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
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ground.errors import Interrupted, StoreBusy
from ground.terminal import StopRequest, graceful_stop
from storage.float_types import stored_type
from storage.ledger import Ledger, check_budget, lease_lost
from storage.ledger_records import Session
from storage.locks import CellLocks, locked_cells
from storage.rows import Rows
from storage.store import Store, runs_of
from teacher_cache.answers import Conversion
from teacher_cache.in_hand import AnswersInHand, Batch
from teacher_cache.lease import Heartbeat, Watch
from teacher_cache.outputs import as_said, find_misfit, rows_that_fit, to_arrays
from teacher_cache.place import Place
from teacher_cache.plan import BuildPlan
from teacher_cache.reuse import PaidAnswers
from teacher_cache.sanity import is_past_gate, require_sane
from teacher_cache.settle import Leftovers, Misfits, require_storable, settle_session
from teacher_cache.shown import Shown
from teacher_cache.teachers import Answers, Teacher
from teacher_cache.worklist import WorkList

log = logging.getLogger(__name__)

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


@dataclass(slots=True)
class Answered:
    """Outputs of some cells, in increasing order: name -> (C, ...), with the input of each; and the calls for them."""

    cells: list[int]
    inputs: list[bytes]
    values: dict[str, np.ndarray]
    called: Batch | None
    seconds: float


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
        teacher: Teacher,
        shown: Shown,
        store: Store,
        ledger: Ledger,
        locks: CellLocks,
        on_progress: Callable[[int, str], None],
        report: BuildReport | None = None,
    ) -> None:
        self.plan, self.store, self.ledger, self.locks = plan, store, ledger, locks
        self._teacher, self._shown = teacher, shown
        self.report = BuildReport(store.folder, plan.n) if report is None else report
        self._on_progress = on_progress
        self._kept = PaidAnswers(store)
        self._conversion = Conversion.into(plan.identity, teacher.card)
        # Read before what is known: what other builders reserve in between is then counted once, not twice.
        self._before = ledger.summary(plan.identity.teacher.fingerprint)
        self._work = WorkList(plan, store, ledger)
        if not is_past_gate(plan, store):
            self._work.hold({plan.input_of(cell) for cell in plan.gate})
        self._session = 0
        self._held: tuple[dict[Path, list[int]], float] = ({}, 0.0)
        self._stop = StopRequest()
        self._in_hand = AnswersInHand(store, min(plan.config.batch_size, len(self._work.cells_of)))
        self._misfits: Misfits = {}

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
            self._session = self._start_session()
            with (
                Heartbeat(self.ledger, self._session, self.plan.config.lease_seconds) as heartbeat,
                graceful_stop() as self._stop,
                ThreadPoolExecutor(1, "store-writer") as writer,
                self._nothing_dropped(writer),
            ):
                self._fill(heartbeat, writer)
        torn = {cell // self.plan.identity.views for cell in self.store.missing_cells(self.plan.rows).tolist()}
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
                device=self._teacher.card.device,
                precision=teacher.precision,
                outputs=self.plan.called_names,
                host=Place.of(self.store.folder).text,
            )
        )

    @contextmanager
    def _nothing_dropped(self, writer: ThreadPoolExecutor) -> Iterator[None]:
        """However the work ends, answers in hand are kept, while the session still has its lease."""
        try:
            yield
        except BaseException as error:
            try:
                if isinstance(error, Exception):
                    writer.shutdown()  # it may still commit what it has; who stops at once does not wait for that
            finally:
                with self._stop.held():
                    self._in_hand.keep()
            raise
        finally:
            writer.shutdown()
            self._in_hand.close()

    def _fill(self, heartbeat: Heartbeat, writer: ThreadPoolExecutor) -> None:
        watch = Watch(self.plan.config.lease_seconds)
        pending: Future[None] | None = None
        while self._work and not self._stop.requested and not self._misfits:
            if heartbeat.lost:
                raise lease_lost()
            answers = self._next_answers() if self._work.todo else None
            if pending is not None:
                pending.result()
            pending = writer.submit(self._keep, answers) if answers is not None and answers.cells else None
            if self._work.waits_for_verdict and answers is None:
                self._pass_gate()
            elif answers is None:
                self._wait_for_others(watch, heartbeat)
        if pending is not None:
            pending.result()
        require_storable(self.store, self._misfits, self.plan.rows)

    def _pass_gate(self) -> None:
        """Judge the first answers, all of which are whole, and go on; raises `TeacherDoubted`."""
        require_sane(self.plan, self.store)
        self._advance(self._work.release())

    def _next_answers(self) -> Answered:
        """Outputs for the next inputs: new ones from the teacher, the others from where they are kept."""
        batch = self._work.next_batch()
        # Before anything is charged: what is to be copied has to be there, or a call would be paid for nothing.
        copied = {digest: self._read_kept(digest) for digest in batch}
        new = [digest for digest in batch if not self._work.is_answered(digest)]
        if new:
            self._in_hand.take_room(self._session)
        reservation = self.ledger.reserve(
            self._session, [self._work.request(digest) for digest in new], self.plan.required
        )
        # Nothing that could fail comes between the charge and the call.
        called, seconds = self._call(reservation.ids, copied) if reservation.ids else (None, 0.0)
        self._advance(self._work.give_up(reservation.known))
        left_out = {*reservation.known, *reservation.ids} - ({*called.ids} if called else set())
        inputs = [digest for digest in batch if digest not in left_out and self._work.cells_of[digest]]
        values = self._put_together(inputs, called, copied)
        cells = sorted((cell, place) for place, digest in enumerate(inputs) for cell in self._work.cells_of[digest])
        order = [place for _, place in cells]
        if order != list(range(len(inputs))):
            values = {name: array[order] for name, array in values.items()}
        self.report.reused_calls += len(cells) - (len(called.ids) if called else 0)
        return Answered([cell for cell, _ in cells], [inputs[place] for place in order], values, called, seconds)

    def _read_kept(self, digest: bytes) -> dict[str, np.ndarray]:
        """Outputs of an input that are not to come from a new call: name -> (1, ...)."""
        outputs, called = self.plan.identity.outputs, self.plan.called_outputs
        if self._work.is_answered(digest):
            return self._kept.read(self._work.paid[digest], outputs)
        rest = [output for output in outputs if output not in called]
        return self._kept.read(self._work.paid[digest], rest) if rest else {}

    def _call(self, ids: dict[bytes, int], copied: dict[bytes, dict[str, np.ndarray]]) -> tuple[Batch, float]:
        """Call the teacher on inputs that are charged; what can be stored of its answers, and the seconds it took."""
        cells = [self._work.cells_of[digest][0] for digest in ids]
        pixels = self._shown.pixels(cells)
        started = time.perf_counter()
        # Who stops at once waits for the answer that is being paid for, unless he asks again.
        with self._stop.held(1):
            said = self._teacher.call(pixels, self._conversion.asked(self.plan.called_names))
            said = self._conversion.convert(said, list(ids))
            batch = Batch(ids, cells, [copied[digest] for digest in ids], said)
            self._in_hand.take(batch)
        self.report.new_calls += len(ids)
        return self._storable(batch, said), time.perf_counter() - started

    def _storable(self, batch: Batch, said: Answers) -> Batch:
        """The answers that the store's types can keep, in these types; the others stay in hand as they were said."""
        outputs = self.plan.called_outputs
        fits = rows_that_fit(said, outputs)
        parts = [batch.part(fits, to_arrays(said, outputs, fits))]
        if not fits.all():
            parts.append(batch.part(~fits, as_said(said, outputs, ~fits)))
            for place, cell in enumerate(parts[1].cells):
                misfit = find_misfit({name: values[place] for name, values in parts[1].values.items()}, outputs)
                assert misfit is not None, "it does not fit"
                self._misfits[cell] = misfit
        for part in parts:
            self._in_hand.take(part)
        self._in_hand.lay_down(batch)
        return parts[0]

    def _put_together(
        self, inputs: list[bytes], called: Batch | None, copied: dict[bytes, dict[str, np.ndarray]]
    ) -> dict[str, np.ndarray]:
        """All outputs of some inputs, name -> (C, ...)."""
        identity, said = self.plan.identity, called.values if called else {}
        places = {digest: place for place, digest in enumerate(called.ids if called else ())}
        if list(places) == inputs and len(said) == len(identity.outputs):
            return dict(said)
        values = {
            output.name: np.empty((len(inputs), *output.shape), stored_type(output.dtype))
            for output in identity.outputs
        }
        for place, digest in enumerate(inputs):
            for name, array in copied[digest].items():
                values[name][place] = array[0]
            for name, array in said.items() if digest in places else ():
                values[name][place] = array[places[digest]]
        return values

    def _keep(self, answers: Answered) -> None:
        """Write cells, make them durable and visible, and commit their calls; runs in the writer thread."""
        with self.locks.held(runs_of(answers.cells)):
            # Under the locks nobody can give our calls up any more; had somebody done so before, the lease is gone.
            if not self.ledger.holds_lease(self._session):
                raise lease_lost()
            digests = self.store.write_outputs(answers.cells, answers.values)
            self.store.publish(answers.cells)
            self.ledger.commit(self._committed(answers, digests), answers.seconds)
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
        if not sessions:
            return
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
