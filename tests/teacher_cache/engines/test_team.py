"""A team of builders, from a site that follows a script: who begins when, who is replaced, and what is said."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from ground.errors import BudgetRefused, CKDError, IdentityMismatch, Interrupted, StoreBusy
from ground.terminal import StopRequest
from storage.store import Store
from teacher_cache.build_report import BuildReport
from teacher_cache.engines.team import DEATHS_PER_BUILDER, Died, Ended, Event, Placed, Ready, Team

REPORT = BuildReport(Path("store"), 8, new_calls=4, rows_valid=8)


@pytest.fixture(scope="module")
def identity(built_store):
    return Store.open(built_store).manifest.identity


@dataclass
class Scripted:
    """A site on which builders are ready at once, and become what the script says.

    Args:
        script: number of a builder that began -> what becomes of it; nothing for one that goes on until it is stopped.
        readiness: number -> what it says when it is ready; None for one without room.
    """

    identity: object
    script: Callable[[int], Event | None] = lambda builder: Ended(builder, REPORT)
    readiness: dict[int, object] = field(default_factory=dict)
    log: list[tuple[str, int]] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    started: int = 0

    def start(self) -> int:
        self.started += 1
        self.log.append(("start", self.started))
        said = self.readiness.get(self.started, self.identity)
        if said is not None:
            self.events += [Placed(self.started, f"host, process {self.started}"), Ready(self.started, said)]
        return self.started

    def begin(self, builder: int) -> None:
        self.log.append(("begin", builder))
        event = self.script(builder)
        if event is not None:
            self.events.append(event)

    def wait(self, seconds: float) -> list[Event]:
        events, self.events = self.events, []
        return events

    def stop(self, builder: int) -> None:
        self.log.append(("stop", builder))
        self.events.append(Ended(builder, Interrupted("stopped with 2 of 8 rows whole")))

    def dismiss(self, builder: int) -> None:
        self.log.append(("dismiss", builder))

    def did(self, what: str) -> list[int]:
        return [builder for done, builder in self.log if done == what]


def test_all_are_ready_before_one_begins(identity):
    site = Scripted(identity)
    assert Team(site, 2, identity).build(StopRequest()) == [REPORT, REPORT]
    assert [what for what, _ in site.log] == ["start", "start", "begin", "begin"]


def test_one_that_dies_is_replaced_by_a_new_one_that_begins_by_itself(identity, caplog):
    # The second one builds on until it is asked to stop, which it is once the third has begun.
    site = Scripted(identity)
    site.script = lambda builder: {1: Died(1, "it was killed"), 2: None, 3: Ended(3, REPORT)}[builder]
    stop = StopRequest()
    team = Team(site, 2, identity, on_moment=lambda at_work: setattr(stop, "requested", bool(site.did("begin")[2:])))
    assert team.build(stop) == [REPORT]
    assert site.did("start") == site.did("begin") == [1, 2, 3]
    assert "a builder ended on host, process 1: it was killed; another takes its place, and settles" in caplog.text


def test_one_whose_lease_was_taken_away_is_replaced_too(identity):
    site = Scripted(identity, lambda builder: Ended(builder, StoreBusy("its lease ended") if builder == 1 else REPORT))
    assert Team(site, 1, identity).build(StopRequest()) == [REPORT]
    assert site.did("begin") == [1, 2]


def test_how_often_builders_are_replaced_is_bounded(identity):
    site = Scripted(identity, lambda builder: Died(builder, "its worker process has died"))
    with pytest.raises(CKDError, match=r"builders died 8 times, the last one on host, process \d: its worker process"):
        Team(site, 2, identity).build(StopRequest())
    assert site.started == 2 + 2 * DEATHS_PER_BUILDER


def test_what_one_refuses_stops_the_others_and_is_said(identity):
    site = Scripted(identity, lambda builder: Ended(1, BudgetRefused("no budget")) if builder == 1 else None)
    with pytest.raises(BudgetRefused, match="no budget"):
        Team(site, 2, identity).build(StopRequest())
    assert site.did("stop") == [2]


def test_what_one_lacks_is_said_before_any_begins(identity):
    site = Scripted(identity, readiness={2: BudgetRefused("there are no images")})
    with pytest.raises(CKDError, match="^on host, process 2: there are no images$") as refused:
        Team(site, 2, identity).build(StopRequest())
    assert refused.value.exit_code == BudgetRefused.exit_code
    assert site.did("begin") == []
    assert site.did("dismiss") == [1, 2]


@pytest.mark.parametrize(
    ("part", "change", "said"),
    [
        (
            "teacher",
            {"fingerprint": "ab" * 32},
            r"the teacher is another resnet8 than here \(fingerprint abab",
        ),
        ("dataset", {"digest": "ab" * 32}, "digits holds other images than here"),
    ],
)
def test_one_that_would_build_something_else_is_refused(identity, part, change, said):
    other = replace(identity, **{part: replace(getattr(identity, part), **change)})
    with pytest.raises(IdentityMismatch, match=said):
        Team(Scripted(identity, readiness={1: other}), 1, identity).build(StopRequest())


def test_a_request_to_stop_is_passed_on_and_nobody_is_replaced(identity):
    stop = StopRequest()
    site = Scripted(identity, lambda builder: setattr(stop, "requested", True))
    with pytest.raises(Interrupted, match="2 of 8 rows whole"):
        Team(site, 2, identity).build(stop)
    assert site.did("stop") == [1, 2]
    assert site.started == 2


def test_those_without_room_are_not_waited_for_without_an_end(identity, caplog):
    site = Scripted(identity, readiness={2: None})
    caplog.set_level("INFO")
    assert Team(site, 2, identity, patience_seconds=0.0).build(StopRequest()) == [REPORT]
    assert "no room yet for 1 of 2 builders" in caplog.text
    assert site.did("dismiss") == [2]
