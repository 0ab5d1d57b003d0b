"""The line to a teacher: how a builder comes to ask it, here or elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from ground.terminal import StopRequest
from storage.canaries import CanaryRecord
from storage.ledger import Ledger
from storage.store import Store
from teacher_cache.asking import Asking, LocalAsking, Workplace
from teacher_cache.build_report import BuildReport
from teacher_cache.plan import BuildPlan
from teacher_cache.remote.asking import RemoteAsking, most_charged
from teacher_cache.remote.attempts import Attempts, ModelWatch
from teacher_cache.remote.canaries import Canaries
from teacher_cache.remote.flight import Flight
from teacher_cache.teachers import Teacher
from teacher_cache.teachers.attempts import RemoteTeacher


class Line(Protocol):
    """Open for as long as one builder asks."""

    def check(self, session: Callable[[], AbstractContextManager[int]], report: BuildReport, stop: StopRequest) -> None:
        """Ask whatever is asked before the work begins.

        Args:
            session: opens one of the ledger for it.

        Raises:
            TeacherChanged: it is not the teacher that the store is of.
            TeacherFailed, BudgetRefused: it could not be asked.
        """

    def asking(self, place: Workplace) -> Asking:
        """A way to ask, for one session."""


class LocalLine:
    """To a teacher that runs here."""

    def __init__(self, teacher: Teacher) -> None:
        self._teacher = teacher

    def check(self, session: Callable[[], AbstractContextManager[int]], report: BuildReport, stop: StopRequest) -> None:
        """See `Line`; its weights are known, so there is nothing to ask."""

    def asking(self, place: Workplace) -> Asking:
        """See `Line`."""
        return LocalAsking(place, self._teacher)


class RemoteLine:
    """To a teacher that is elsewhere."""

    def __init__(self, teacher: RemoteTeacher, flight: Flight, plan: BuildPlan, store: Store, ledger: Ledger) -> None:
        self._teacher, self._config, self._flight = teacher, plan.config.asking, flight
        self._plan, self._store, self._ledger, self._watch = plan, store, ledger, ModelWatch()

    def check(self, session: Callable[[], AbstractContextManager[int]], report: BuildReport, stop: StopRequest) -> None:
        """See `Line`: the canaries."""
        canaries = Canaries(self._plan, self._store, self._ledger, self._teacher)
        with session() as number:
            attempts = self._attempts()
            try:
                canaries.ask(number, attempts, stop)
            finally:
                report.canary_calls += attempts.answered
                attempts.add_to(report)

    def asking(self, place: Workplace) -> Asking:
        """See `Line`; also where nothing was to be asked, and others left something: then without a `check`."""
        recorded = CanaryRecord.load(self._store.folder)
        if self._watch.expected is None and recorded is not None:
            self._watch.expected = recorded.model
        return RemoteAsking(place, self._teacher, self._attempts(), self._config.in_flight)

    def _attempts(self) -> Attempts:
        return Attempts(self._teacher, self._config, self._ledger, self._flight, self._watch)


@contextmanager
def line_to(teacher: Teacher | RemoteTeacher, plan: BuildPlan, store: Store, ledger: Ledger) -> Iterator[Line]:
    """The line to a teacher; at the end of the block one to a teacher that is elsewhere is closed."""
    if not isinstance(teacher, RemoteTeacher):
        yield LocalLine(teacher)
        return
    with Flight(teacher, plan.config.asking) as flight:
        yield RemoteLine(teacher, flight, plan, store, ledger)


def most_in_hand(plan: BuildPlan, teacher: Teacher | RemoteTeacher) -> int:
    """Answers that are handed out together at most."""
    if not isinstance(teacher, RemoteTeacher):
        return plan.config.batch_size
    return max(plan.config.batch_size, most_charged(plan.config.asking.in_flight, teacher.max_batch))
