"""How a builder asks: what is charged when, and what comes back of it as answers that can be written.

A strategy hands out finished answers, in groups; the builder writes and commits them, whoever the teacher is.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from ground.terminal import StopRequest
from storage.bill import Bill, Billed
from storage.ledger import Ledger
from teacher_cache.answered import Answered, Assembly, Copies
from teacher_cache.answers import Conversion
from teacher_cache.build_report import BuildReport
from teacher_cache.in_hand import AnswersInHand, Batch
from teacher_cache.plan import BuildPlan
from teacher_cache.remote.billing import Rates
from teacher_cache.shown import Shown
from teacher_cache.teachers import Teacher
from teacher_cache.worklist import WorkList


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Workplace:
    """What any way of asking works with.

    Args:
        session: of the ledger, that calls are charged to.
        advance: told of cells that others made whole.
    """

    plan: BuildPlan
    shown: Shown
    ledger: Ledger
    work: WorkList
    assembly: Assembly
    in_hand: AnswersInHand
    report: BuildReport
    stop: StopRequest
    session: int
    advance: Callable[[int], None]


class Asking(Protocol):
    """Takes inputs from a work list, and answers them."""

    @property
    def is_busy(self) -> bool:
        """Whether something is charged, or waits to be charged again, that `next` has not handed out."""

    @property
    def is_winding_down(self) -> bool:
        """Whether nothing is charged any more."""

    def next(self) -> Answered | None:
        """Answers that are finished; None if there are none yet, or, where it is not busy, nothing was asked for."""

    def wind_down(self) -> None:
        """Charge nothing more; what is under way is still handed out by `next`."""

    def salvage(self, *, wait: bool) -> None:
        """Put in hand, for the spool, what was answered and not handed out.

        Args:
            wait: for what is under way, too.
        """

    def finish(self) -> None:
        """Raise what ended the work early, if something did."""


class LocalAsking:
    """Asks a teacher that runs here: one batch at a time, which is answered when the call returns."""

    def __init__(self, place: Workplace, teacher: Teacher) -> None:
        self._place, self._teacher, self.is_winding_down = place, teacher, False
        self._conversion = Conversion.into(place.plan.identity, teacher.card)
        self._rates = Rates(place.plan.config.asking.price)

    @property
    def is_busy(self) -> bool:
        """See `Asking`; nothing is under way between two batches."""
        return False

    def next(self) -> Answered | None:
        """See `Asking`: outputs for the next inputs, new ones from the teacher, others from where they are kept."""
        place, work = self._place, self._place.work
        if not work.todo:
            return None
        batch = work.next_batch()
        # Before anything is charged: what is to be copied has to be there, or a call would be paid for nothing.
        copies = place.assembly.copies(batch)
        new = [digest for digest in batch if not work.is_answered(digest)]
        if new:
            place.in_hand.take_room(place.session)
        requests, upper = [work.request(digest) for digest in new], self._rates.upper_micros
        reservation = place.ledger.reserve(place.session, requests, place.plan.required, upper_micros=upper)
        # Nothing that could fail comes between the charge and the call.
        called, seconds = self.call(reservation.ids, copies) if reservation.ids else (None, 0.0)
        place.advance(work.give_up(reservation.known))
        left_out = {*reservation.known, *reservation.ids} - ({*called.ids} if called else set())
        inputs = [digest for digest in batch if digest not in left_out and work.cells_of[digest]]
        place.report.cost_micros += sum(bill.cost_micros for bill in called.bills.values()) if called else 0
        return place.assembly.answered(inputs, called, copies, seconds)

    def call(self, ids: Mapping[bytes, int], copies: Copies) -> tuple[Batch, float]:
        """Call the teacher on inputs that are charged; what can be stored of its answers, and the seconds it took."""
        place = self._place
        cells = [place.work.cells_of[digest][0] for digest in ids]
        pixels = place.shown.pixels(cells)
        started = time.perf_counter()
        # Who stops at once waits for the answer that is being paid for, unless he asks again.
        with place.stop.held(1):
            said = self._teacher.call(pixels, self._conversion.asked(place.plan.called_names))
            said = self._conversion.convert(said, list(ids))
            bills = self._bills(ids.values())
            batch = Batch(ids, cells, [copies[digest] for digest in ids], said, bills=bills)
            place.in_hand.take(batch)
        place.report.new_calls += len(ids)
        return place.assembly.storable(batch, said), time.perf_counter() - started

    def _bills(self, ids: Iterable[int]) -> Mapping[int, Bill]:
        """Of calls that cost something, as the user says."""
        if self._rates.price is None:
            return {}
        return dict.fromkeys(ids, Bill(billed=Billed.YES, cost_micros=self._rates.upper_micros))

    def wind_down(self) -> None:
        """See `Asking`."""
        self.is_winding_down = True

    def salvage(self, *, wait: bool) -> None:
        """See `Asking`; what was answered is in hand already."""

    def finish(self) -> None:
        """See `Asking`; what goes wrong is raised where it does."""
