"""The work of a build in object storage: whole chunks of rows, each by one builder, since nothing there is changed.

A builder takes rows that nobody has by charging all calls that they need at once, or none. What the teacher answers is
kept in a stage on the local disk (`storage.stage`), batch by batch, durably; when all rows are whole they are written
as objects, and then the calls are committed together. A builder that dies leaves its stage, and the lease of its
session: the next one on this machine goes on as that session. On another machine, once the lease is over, its calls are
settled: committed where the objects are there, and lost otherwise.

Nobody waits for others while he holds rows: they may be waiting for inputs among these.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping, Set
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace

from ground.errors import BudgetRefused, StoreUnreadable
from storage.bill import Bill, Billed, FailureKind
from storage.ledger import Ledger, lease_lost
from storage.ledger_records import Reservation
from storage.schema import CHUNK_ROWS
from storage.stage import Stage, rows_of
from storage.store import Store
from teacher_cache.answered import Assembly, Copies
from teacher_cache.asking import Asking, LocalAsking, Workplace
from teacher_cache.builder import Builder
from teacher_cache.in_hand import AnswersInHand
from teacher_cache.lease import Heartbeat, Watch
from teacher_cache.remote.billing import Rates
from teacher_cache.sanity import require_sane
from teacher_cache.settle import cell_of, dead_leases, remove_spools, require_storable, settle_session, sort_out
from teacher_cache.teachers.attempts import RemoteTeacher
from teacher_cache.worklist import WorkList


def clear_desk(store: Store, ledger: Ledger) -> None:
    """End the leases of builders that died on this machine with nothing in hand, and delete what others have settled of
    what they had; nobody may be building here.
    """
    left, leases = Stage.find(store.desk, store.manifest.identity.views), ledger.leases()
    for stage in left:
        if stage.session not in leases and not ledger.unsettled_calls(stage.session):
            stage.remove()
    for lease in dead_leases(store, ledger):
        if lease.session not in {stage.session for stage in left}:
            ledger.take_lease(lease)
    remove_spools(store.desk, ledger)


class ChunkBuilder(Builder):
    """One run of a build in object storage, beside any others; see `Builder`."""

    def _fill(self, asking: Asking, heartbeat: Heartbeat, writer: ThreadPoolExecutor) -> None:
        watch, left = Watch(self.plan.config.lease_seconds), self._unanswered(self.plan.missing_cells.tolist())
        while not self._stop.requested:
            if heartbeat.lost:
                raise lease_lost()
            if self._go_on_with_left():
                continue
            busy = self._take_one(left, heartbeat)
            if busy is None:
                continue
            busy |= self._unsettled()
            if not left and not busy:
                return
            self._wait_for(busy, watch, heartbeat)

    def _unanswered(self, cells: Iterable[int]) -> list[int]:
        """Numbers of the chunks of rows that some cells are in, without those that are in object storage by now."""
        numbers = {cell // (CHUNK_ROWS * self.plan.identity.views) for cell in cells}
        return sorted(numbers - self.store.answered_chunks())

    def _unsettled(self) -> set[int]:
        """Sessions of others that have calls of this store in hand."""
        calls = self.ledger.calls_of_store(self.store.manifest.store_id, "reserved")
        return {call.session for call in calls} - {self._session}

    def _take_one(self, left: list[int], heartbeat: Heartbeat) -> set[int] | None:
        """Answer one of the chunks that are left, and take it out; None once that is done, or somebody else did it.

        Returns:
            The sessions that have those in hand that could be taken next.
        """
        wanted = left
        if self._work.held:
            wanted = self._unanswered(self.plan.gate)
            if not wanted:
                require_sane(self.plan, self.store)
                self._work.release()
                return None
        start, busy = random.randrange(len(wanted)) if wanted else 0, set[int]()
        for number in [*wanted[start:], *wanted[:start]]:
            sessions = self._take(number, heartbeat)
            if sessions is None:
                if number in left:
                    left.remove(number)
                return None
            busy |= sessions
        return busy

    def _take(self, number: int, heartbeat: Heartbeat) -> set[int] | None:
        """Answer the rows of a number; None once they are whole, otherwise the sessions that have them in hand."""
        views = self.plan.identity.views
        cells = rows_of(number, self.store.manifest.n).cells(views).tolist()
        busy = self._reserved_by_others({self.plan.input_of(cell) for cell in cells})
        if busy:
            return busy
        # Asked after the ledger: what it says is committed was there before.
        if self.store.is_answered(number):
            self._advance(len(cells))
            return None
        with ExitStack() as stack:
            if not self.locks.take_run(number * CHUNK_ROWS * views, CHUNK_ROWS * views, stack):
                return set()
            stage = Stage.make(self.store.desk, number, self._session, views, self.store.arrays.specs)
            busy = self._answer(stage, heartbeat)
            return busy or None

    def _reserved_by_others(self, inputs: Set[bytes]) -> set[int]:
        teacher = self.plan.identity.teacher
        known = self.ledger.known_calls(teacher.fingerprint, teacher.precision, sorted(inputs))
        calls = (call for found in known.values() for call in found if call.status == "reserved")
        return {call.session for call in calls} - {self._session}

    def _go_on_with_left(self) -> bool:
        """Finish what a builder left that died on this machine, if there is something of that kind."""
        for stage in Stage.find(self.store.desk, self.plan.identity.views):
            with ExitStack() as stack:
                # His locks are free: nobody works on it any more. Nor may it have been finished since we looked.
                if not self.locks.take_run(stage.first_cell, stage.num_cells, stack) or not stage.folder.is_dir():
                    continue
                if stage.session not in self.ledger.leases() or not self.ledger.unsettled_calls(stage.session):
                    # Others have given it up, or all of it is committed.
                    self.note(settle_session(stage.session, self.ledger, self.store, self.locks))
                    stage.remove()
                    self.ledger.end_session(stage.session)
                    return True
                with Heartbeat(self.ledger, stage.session, self.plan.config.lease_seconds) as heartbeat:
                    heartbeat.leaves = True
                    self._settle_asked(stage)
                    if not self._answer(stage, heartbeat):
                        return True
        return False

    def _settle_asked(self, stage: Stage) -> None:
        """Find what is whole of a stage that was left, and mark lost what was asked for and is not there."""
        asked, store = stage.asked(), self.store
        with store.staged(stage):
            calls = [call for call in self.ledger.unsettled_calls(stage.session) if cell_of(store, call) in asked]
            found = sort_out(store, calls)
            require_storable(store, found.misfits, stage.rows(store.manifest.n))
            for cell, values in sorted(found.spooled.items()):
                store.write_outputs([cell], values)
                store.publish([cell])
            # What was copied is copied again: the call that it came from may be lost by now.
            inputs = {call.input_digest for call in calls if call.id in found.adopted}
            cells = stage.rows(store.manifest.n).cells(stage.views).tolist()
            store.retract([cell for cell in cells if store.is_whole(cell) and self.plan.input_of(cell) not in inputs])
        self.ledger.lose(found.lost)
        self.report.adopted_calls += len(found.adopted)
        self.report.lost_calls += len(found.lost)

    def _answer(self, stage: Stage, heartbeat: Heartbeat) -> set[int]:
        """Have all rows of a stage answered, write them, and commit their calls.

        Args:
            heartbeat: of its session, which leaves its lease for as long as there is something in the stage.

        Returns:
            The sessions that were faster to reserve some of the inputs: then nothing is done.
        """
        with self.store.staged(stage), self._in_hand_of(stage) as in_hand:
            place = self._place(stage, in_hand)
            if self.store.is_answered(stage.number) and not self.ledger.unsettled_calls(stage.session):
                # Somebody was faster; what the ledger knows of these rows now is not to be looked for in the stage.
                stage.remove()
                self._advance(place.plan.total_calls)
                return set()
            copies = place.assembly.copies(place.work.todo)
            reservation = self._charge(stage, place, heartbeat)
            if reservation.known:
                return {call.session for calls in reservation.known.values() for call in calls}
            bills, seconds = self._ask(stage, place, reservation.ids, copies)
            self._commit(stage, bills, seconds)
        stage.remove()
        heartbeat.leaves = False
        return set()

    @contextmanager
    def _in_hand_of(self, stage: Stage) -> Iterator[AnswersInHand]:
        """What is between the teacher and a stage, which is kept beside it where it cannot get there."""
        in_hand = AnswersInHand(self.store, self.plan.config.batch_size)
        try:
            in_hand.take_room(stage.session)
            yield in_hand
        except BaseException:
            with self._stop.held():
                in_hand.keep()
            raise
        finally:
            in_hand.close()

    def _place(self, stage: Stage, in_hand: AnswersInHand) -> Workplace:
        """What is worked with on the rows of a stage alone."""
        plan = replace(self.plan, rows=stage.rows(self.store.manifest.n))
        work = WorkList(plan, self.store, self.ledger)
        self._advance(plan.total_calls - sum(map(len, work.cells_of.values())))
        place = replace(self._workplace(), plan=plan, work=work, in_hand=in_hand, session=stage.session)
        return replace(place, assembly=Assembly(plan, self.store, work, in_hand))

    def _charge(self, stage: Stage, place: Workplace, heartbeat: Heartbeat) -> Reservation:
        """Reserve all that has to be asked for; where others were faster with some of it, nothing."""
        before = {call.id for call in self.ledger.unsettled_calls(stage.session)}
        heartbeat.leaves = True
        new = [digest for digest in place.work.todo if not place.work.is_answered(digest)]
        try:
            reservation = self.ledger.reserve(
                stage.session,
                [place.work.request(digest) for digest in new],
                self.plan.required,
                upper_micros=Rates(self.plan.config.asking.price).upper_micros,
            )
        except BudgetRefused:
            self._drop_unless(before, stage, heartbeat)
            raise
        if reservation.known:
            self.ledger.fail(dict.fromkeys(set(reservation.ids.values()) - before, _NOT_SENT))
            self._drop_unless(before, stage, heartbeat)
        return reservation

    @staticmethod
    def _drop_unless(before: Set[int], stage: Stage, heartbeat: Heartbeat) -> None:
        """Delete a stage that nothing was charged for."""
        if not before:
            stage.remove()
            heartbeat.leaves = False

    def _ask(
        self, stage: Stage, place: Workplace, ids: Mapping[bytes, int], copies: Copies
    ) -> tuple[dict[int, Bill], float]:
        """Fill a stage, batch by batch; the bills of what was asked for, and the seconds that took."""
        assert not isinstance(self._teacher, RemoteTeacher), "the configuration says so"
        asking, work, bills, seconds = LocalAsking(place, self._teacher), place.work, dict[int, Bill](), 0.0
        while batch := work.next_batch():
            wanted, called = {digest: ids[digest] for digest in batch if digest in ids}, None
            if wanted:
                stage.note_asked([work.cells_of[digest][0] for digest in wanted])
                called, took = asking.call(wanted, copies)
                bills, seconds = {**bills, **called.bills}, seconds + took
            kept = {*batch} - wanted.keys() | ({*called.ids} if called is not None else set())
            answers = place.assembly.answered([digest for digest in batch if digest in kept], called, copies, 0.0)
            self.store.write_outputs(answers.cells, answers.values)
            self.store.publish(answers.cells)
            if called is not None:
                place.in_hand.lay_down(called)
            require_storable(self.store, place.assembly.misfits, place.plan.rows)
            self.report.reused_calls += len(answers.cells) - (len(called.ids) if called is not None else 0)
            self._advance(len(answers.cells))
        self.report.cost_micros += sum(bill.cost_micros for bill in bills.values())
        return bills, seconds

    def _commit(self, stage: Stage, bills: Mapping[int, Bill], seconds: float) -> None:
        """Write the rows of a stage, all of which are answered, and commit their calls together."""
        found = sort_out(self.store, self.ledger.unsettled_calls(stage.session))
        if found.lost:
            raise StoreUnreadable(
                f"{len(found.lost)} answers in {stage.folder} are not what was written there; run the same command "
                "again, which asks for them anew"
            )
        # Who lost the lease has been given up, and somebody else may be about to write these rows.
        if not self.ledger.holds_lease(stage.session):
            raise lease_lost()
        remedy = (
            f"a builder that stopped on another machine, while it wrote rows {CHUNK_ROWS * stage.number} and those "
            f"after them, has other answers: run this command there, or where that machine is gone, delete the chunk's "
            "objects and run this one again; what was answered here is kept"
        )
        self.store.put_stage(stage, remedy)
        self.ledger.commit(found.adopted, seconds, {id_: bills[id_] for id_ in found.adopted if id_ in bills})


_NOT_SENT = Bill(billed=Billed.NO, failure=FailureKind.NOT_SENT)
