"""Builders of one store, started somewhere else and watched from here.

None begins before all are ready: what a machine lacks is said before the first call. One that dies is replaced by a
new builder, which settles what it left like any builder; so is one whose lease was taken away. How often is bounded:
what kills every builder is not mended by more of them. Whatever happens to this process, the ledger and the store are
the truth, and the same command goes on.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

from ground.errors import CKDError, IdentityMismatch, Interrupted, InvalidInput, StoreBusy
from ground.terminal import StopRequest
from storage.identity import Identity
from teacher_cache.build_report import BuildReport

log = logging.getLogger(__name__)

DEATHS_PER_BUILDER = 3
_POLL_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Placed:
    """There was room for a builder, and its process has begun."""

    builder: int
    where: str


@dataclass(frozen=True, slots=True)
class Ready:
    """A builder could begin, with what it would build, or says why it cannot."""

    builder: int
    outcome: Identity | CKDError


@dataclass(frozen=True, slots=True)
class Ended:
    """A builder ended by itself."""

    builder: int
    outcome: BuildReport | CKDError


@dataclass(frozen=True, slots=True)
class Died:
    """A builder is gone; `why` is the rest of a sentence."""

    builder: int
    why: str


Event = Placed | Ready | Ended | Died


class Site(Protocol):
    """Where builders run; each is known by its number."""

    def start(self) -> int:
        """Have a builder started, as soon as there is room, and made ready."""

    def begin(self, builder: int) -> None:
        """Have one that is ready build."""

    def wait(self, seconds: float) -> list[Event]:
        """What happened meanwhile; returns when something does, and after that time at the latest."""

    def stop(self, builder: int) -> None:
        """Ask one to finish the step in hand and end."""

    def dismiss(self, builder: int) -> None:
        """End one at once, or before it was started."""


class _Stage(Enum):
    WAITING = "waits for room"
    PREPARING = "loads, and checks"
    READY = "could begin"
    AT_WORK = "builds"


@dataclass(slots=True)
class _Member:
    stage: _Stage = _Stage.WAITING
    where: str = "a node"


@dataclass(slots=True)
class Team:
    """One run of a build by several builders.

    Args:
        identity: what they build.
        on_moment: told a few times a second how many are at work.
        patience_seconds: how long those that are ready wait for room for the others.
    """

    site: Site
    size: int
    identity: Identity
    on_moment: Callable[[int], None] = lambda at_work: None
    patience_seconds: float = 60.0
    _members: dict[int, _Member] = field(default_factory=dict)
    _reports: list[BuildReport] = field(default_factory=list)
    _errors: list[CKDError] = field(default_factory=list)
    _deaths: int = 0
    _last_death: str = ""
    _has_begun: bool = False

    def build(self, stop: StopRequest) -> list[BuildReport]:
        """Have the store built; returns what those did that ended well.

        Raises:
            CKDError: what a builder said, once all have ended; or builders died too often.
            Interrupted: it was asked to stop.
        """
        for _ in range(self.size):
            self._start()
        deadline, is_ending, is_stopping = time.monotonic() + self.patience_seconds, False, False
        while self._members:
            if not is_ending and (stop.requested or self._errors or self._reports):
                is_ending = True
                self._dismiss_idle()
            elif not is_stopping and (stop.requested or self._errors):
                is_stopping = True
                self._stop_all()
            elif not is_ending:
                self._begin(is_late=time.monotonic() >= deadline)
            for event in self.site.wait(_POLL_SECONDS if self._members else 0.0):
                self._take(event, is_ending=is_ending)
            self.on_moment(len(self._at(_Stage.AT_WORK)))
        return self._outcome(stop)

    def _outcome(self, stop: StopRequest) -> list[BuildReport]:
        errors = [error for error in self._errors if not isinstance(error, Interrupted)]
        if self._reports:
            # The store is whole, whatever another one met with at its end.
            for error in errors:
                log.warning("%s", error)
            return self._reports
        if errors or self._errors:
            raise (errors or self._errors)[0]
        if stop.requested:
            raise Interrupted("stopped; run the same command again to go on")
        raise CKDError(
            f"builders died {self._deaths} times, the last one {self._last_death}; what is finished is kept: find out "
            "why, then run the same command again"
        )

    def _at(self, *stages: _Stage) -> list[int]:
        return [builder for builder, member in self._members.items() if member.stage in stages]

    def _start(self) -> None:
        self._members[self.site.start()] = _Member()

    def _begin(self, *, is_late: bool) -> None:
        """Let those begin that are ready, once all are, or those that are not have waited for room too long."""
        waiting, ready = self._at(_Stage.WAITING), self._at(_Stage.READY)
        if not self._has_begun:
            if not ready or self._at(_Stage.PREPARING) or (waiting and not is_late):
                return
            if waiting:
                log.info("the cluster has no room yet for %d of %d builders; the others begin", len(waiting), self.size)
            self._has_begun = True
        for builder in ready:
            self._members[builder].stage = _Stage.AT_WORK
            self.site.begin(builder)

    def _dismiss_idle(self) -> None:
        """Nobody begins any more."""
        for builder in self._at(_Stage.WAITING, _Stage.PREPARING, _Stage.READY):
            del self._members[builder]
            self.site.dismiss(builder)

    def _stop_all(self) -> None:
        for builder in self._members:
            self.site.stop(builder)

    def _take(self, event: Event, *, is_ending: bool) -> None:
        member = self._members.get(event.builder)
        if member is None:  # it was dismissed
            return
        if isinstance(event, Placed):
            member.where = event.where
            if member.stage is _Stage.WAITING:
                member.stage = _Stage.PREPARING
        elif isinstance(event, Ready):
            member.stage = _Stage.READY
            refusal = _refusal(member.where, event.outcome, self.identity)
            if refusal is not None:
                self._errors.append(refusal)
        else:
            del self._members[event.builder]
            outcome = CKDError(event.why) if isinstance(event, Died) else event.outcome
            if isinstance(outcome, BuildReport):
                self._reports.append(outcome)
            elif not isinstance(event, Died) and not isinstance(outcome, StoreBusy):
                self._errors.append(outcome)
            elif not is_ending:
                # Nobody else ends as busy than one that was stopped, or cut off, for longer than its lease.
                self._replace(f"on {member.where}: {outcome}")

    def _replace(self, how: str) -> None:
        self._deaths, self._last_death = self._deaths + 1, how
        if self._deaths > DEATHS_PER_BUILDER * self.size:
            log.warning("a builder ended %s; builders died %d times, and no other takes its place", how, self._deaths)
            return
        log.warning("a builder ended %s; another takes its place, and settles what it left", how)
        self._start()


def _refusal(where: str, found: Identity | CKDError, wanted: Identity) -> CKDError | None:
    """Why a builder cannot begin; None if it can."""
    if isinstance(found, CKDError):
        refusal = CKDError(f"on {where}: {found}")
        refusal.exit_code = found.exit_code
        return refusal
    if found == wanted:
        return None
    if found.teacher != wanted.teacher:
        return IdentityMismatch(
            f"on {where} the teacher is another {wanted.teacher.name} than here (fingerprint "
            f"{found.teacher.fingerprint[:12]}, here {wanted.teacher.fingerprint[:12]}); give all nodes the same "
            "weights and packages"
        )
    if found.dataset != wanted.dataset:
        return IdentityMismatch(
            f"on {where} {wanted.dataset.name} holds other images than here; give all nodes the same files"
        )
    return InvalidInput(f"on {where} another store would be built than here; give all nodes the same packages")
