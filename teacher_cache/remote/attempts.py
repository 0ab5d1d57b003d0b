"""Attempts that are charged: sent, settled if they failed, and made again by one policy until they end the build.

What the ledger says of an attempt that failed is recorded here, as soon as it has landed. Answers are handed on:
whoever asked commits them, with their bills, once they are on the disk.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from ground.errors import CKDError, TeacherChanged, TeacherFailed
from ground.terminal import plain
from storage.bill import Bill, Billed, FailureKind
from storage.ledger import Ledger
from teacher_cache.build_report import BuildReport
from teacher_cache.remote.billing import bill_of, is_refusal, rates_of
from teacher_cache.remote.flight import Flight, Landed, Request
from teacher_cache.remote.policy import AskingConfig
from teacher_cache.remote.tally import Tally
from teacher_cache.teachers.attempts import Answer, Failure, RemoteTeacher


@dataclass(frozen=True, slots=True, eq=False)
class Finished:
    """An attempt that is paid for and not to be repeated.

    Args:
        digest: of its input.
        call: of the ledger.
        values: output name -> (...), as the teacher said it; None where it refused.
    """

    digest: bytes
    call: int
    values: Mapping[str, np.ndarray] | None = field(repr=False)
    bill: Bill
    seconds: float


class ModelWatch:
    """Which model answers, as the provider resolved it; the first that says so is expected from then on."""

    def __init__(self, expected: str | None = None) -> None:
        self.expected = expected

    def is_another(self, model: str | None) -> bool:
        """Whether an answer is of another model than those before; one that does not say is not."""
        if self.expected is None:
            self.expected = model
        return model is not None and model != self.expected


class Attempts:
    """All attempts of one session of a builder.

    Attributes:
        finished: what was answered and is to be handed on; whoever asks takes it from here.
        is_stopped: whether no attempt is made any more.
        ending: what the build ends with, once it is known that it does.
        cost_micros: of all that was settled or handed on.
        answered, refused: attempts that are finished, and those among them without content.
        returned, lost: attempts that failed, and were not billed, or perhaps were.
    """

    def __init__(
        self,
        teacher: RemoteTeacher,
        config: AskingConfig,
        ledger: Ledger,
        flight: Flight,
        watch: ModelWatch,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._name, self._max_batch, self._config = teacher.card.identity.name, teacher.max_batch, config
        self._ledger, self._flight, self._clock = ledger, flight, clock
        self.watch, self.rates = watch, rates_of(teacher, config.price)
        self._inputs: dict[int, bytes] = {}
        self._tallies: dict[bytes, Tally] = {}
        self._again: list[tuple[float, bytes]] = []
        self.is_stopped = False
        self.finished: list[Finished] = []
        self.ending: CKDError | None = None
        self.answered = self.refused = self.returned = self.lost = self.cost_micros = 0

    @property
    def in_air(self) -> int:
        """Attempts that are charged and neither settled nor handed on."""
        return len(self._inputs)

    @property
    def is_idle(self) -> bool:
        """Whether nothing is under way, and nothing waits to be made again."""
        return not self._inputs and (self.is_stopped or not self._again)

    def send(self, ids: Mapping[bytes, int], images: np.ndarray) -> None:
        """Make attempts that are charged.

        Args:
            ids: input -> call, in the order of the images.
            images: (C, 3, h, w) uint8, as the teacher is shown them.
        """
        self._inputs |= {call: digest for digest, call in ids.items()}
        calls = list(ids.values())
        for first in range(0, len(calls), self._max_batch):
            last = first + self._max_batch
            self._flight.send(Request(calls[first:last], images[first:last]))

    def stop(self) -> None:
        """Make no attempt any more; those under way are still collected."""
        if not self.is_stopped:
            self.is_stopped = True
            self._flight.stop()

    def end(self, error: CKDError) -> None:
        """The same, and the build ends with this error, unless it ends with another already."""
        if self.ending is None:
            self.ending = error
        self.stop()

    def due(self) -> list[bytes]:
        """Inputs that are to be charged and sent again now."""
        now = self._clock()
        found = [digest for at, digest in self._again if at <= now]
        self._again = [(at, digest) for at, digest in self._again if at > now]
        return [] if self.is_stopped else found

    def collect(self, timeout: float) -> None:
        """Take what has landed, or lands within so many seconds; attempts that failed are settled."""
        self._settle(self._sorted_out(self._flight.landed(timeout)))
        if self._flight.error is not None:
            self.stop()
        elif self._flight.why_broken is not None and not self.is_stopped:
            self.end(self._failed(self._flight.why_broken))

    def raise_ending(self) -> None:
        """Raise what ended the attempts early, if something did: an error of ours goes first."""
        if self._flight.error is not None:
            raise self._flight.error
        if self.ending is not None:
            raise self.ending

    def add_to(self, report: BuildReport) -> None:
        """Add what they came to, but for answers, to a report."""
        report.refused_calls += self.refused
        report.returned_calls += self.returned
        report.unanswered_calls += self.lost
        report.cost_micros += self.cost_micros

    def _sorted_out(self, landed: Sequence[Landed]) -> dict[int, Bill]:
        """Bills of those that failed; the others are finished."""
        failed = {}
        for landing in landed:
            # Of a request of several images each has its share, so that they add up to what it took.
            seconds = landing.seconds / len(landing.said)
            for call, said in zip(landing.request.calls, landing.said, strict=True):
                digest, bill = self._inputs.pop(call), bill_of(said, self.rates)
                self.cost_micros += bill.cost_micros
                if not is_refusal(said) and isinstance(said, Failure):
                    failed[call] = bill
                    self._judge(digest, said)
                elif self.watch.is_another(said.model):
                    # It is paid for, and of another teacher: never this one's answer.
                    failed[call] = replace(bill, failure=FailureKind.UNKNOWN)
                    self.end(self._changed(said.model))
                else:
                    values = said.values if isinstance(said, Answer) and said.values else None
                    self.answered, self.refused = self.answered + 1, self.refused + (values is None)
                    self.finished.append(Finished(digest, call, values, bill, seconds))
        return failed

    def _judge(self, digest: bytes, failure: Failure) -> None:
        """Have an input asked for again, or end the build."""
        if self.is_stopped and failure.kind is FailureKind.NOT_SENT:
            return
        tally = self._tallies.setdefault(digest, Tally())
        tally.count(failure)
        verdict = tally.verdict(failure, self._config.retry)
        if verdict is not None:
            self.end(self._failed(verdict))
            return
        # What is put off is held back all together.
        delay = 0.0 if failure.kind is FailureKind.RATE_LIMITED else self._config.retry.delay(tally.failures)
        self._again.append((self._clock() + max(delay, failure.retry_after or 0.0), digest))

    def _settle(self, failed: Mapping[int, Bill]) -> None:
        if failed:
            self._ledger.fail(failed)
            returned = sum(bill.billed is Billed.NO for bill in failed.values())
            self.returned += returned
            self.lost += len(failed) - returned

    def _failed(self, why: str) -> TeacherFailed:
        return TeacherFailed(
            f"{self._name} gives no answer: {plain(why)}; what it answered is kept: see that it does, then run the "
            "same command again to go on"
        )

    def _changed(self, model: str | None) -> TeacherChanged:
        return TeacherChanged(
            f"{self._name} is another model now: it answers as {plain(str(model))}, and answered as "
            f"{plain(str(self.watch.expected))} before; what it answered before is kept: go on with that model, or "
            "build a new --store with this one"
        )
