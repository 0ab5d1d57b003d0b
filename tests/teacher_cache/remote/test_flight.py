"""Requests under way: as many as may be, one in the other's place, and none lost."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from itertools import chain, repeat

import numpy as np

from benchmarks.stand_ins import scripted_teacher as scripted
from storage.bill import Billed, FailureKind
from teacher_cache.remote.flight import Flight, Request
from teacher_cache.teachers.attempts import Failure
from tests.teacher_cache.remote.conftest import asking


def image(number: int) -> np.ndarray:
    return np.full((1, 3, 8, 8), number, np.uint8)


def landed(flight: Flight, count: int) -> list:
    found = []
    until = time.monotonic() + 20
    while len(found) < count and time.monotonic() < until:
        found += flight.landed(0.2)
    return found


def test_every_request_lands_with_its_own_answer(runs):
    with Flight(runs.teacher(latency=0.001), asking(in_flight=5)) as flight:
        for number in range(40):
            flight.send(Request([number], image(number)))
        found = landed(flight, 40)
    assert sorted(landing.request.calls[0] for landing in found) == list(range(40))
    for landing in found:
        expected = scripted.logits_of(image(landing.request.calls[0]))[0]
        np.testing.assert_array_equal(landing.said[0].values["logits"], expected)


def test_what_waits_when_it_is_stopped_lands_as_not_sent_and_what_is_under_way_is_waited_for(runs):
    teacher = runs.teacher(latency=0.2)
    with Flight(teacher, asking(in_flight=3)) as flight:
        for number in range(10):
            flight.send(Request([number], image(number)))
        while teacher.attempts.total() < 3:
            time.sleep(0.01)
        flight.stop()
        said = [landing.said[0] for landing in landed(flight, 10)]
    kinds = [one.kind for one in said if isinstance(one, Failure)]
    assert kinds == [FailureKind.NOT_SENT] * 7
    assert teacher.attempts.total() == 3


def test_a_teacher_that_does_not_keep_its_deadline_is_cut_off(runs, monkeypatch):
    monkeypatch.setattr("teacher_cache.remote.flight.GRACE_SECONDS", 0.05)
    teacher = runs.teacher(latency=30)
    with Flight(teacher, asking(deadline_seconds=0.05)) as flight:
        flight.send(Request([1], image(1)))
        (landing,) = landed(flight, 1)
    assert (landing.said[0].kind, landing.said[0].billed) == (FailureKind.UNKNOWN, Billed.UNKNOWN)


def test_leaving_it_gives_up_what_is_under_way(runs):
    teacher = runs.teacher(latency=30)
    started = time.monotonic()
    with Flight(teacher, asking()) as flight:
        flight.send(Request([1], image(1)))
        while not teacher.attempts:
            time.sleep(0.01)
    assert time.monotonic() - started < 10
    assert teacher.is_closed


def test_requests_are_spaced_by_the_limit(runs):
    at = []
    teacher = runs.teacher(on_attempt=lambda _: at.append(time.monotonic()))
    with Flight(teacher, asking(in_flight=8, max_rpm=60 * 50)) as flight:
        for number in range(12):
            flight.send(Request([number], image(number)))
        landed(flight, 12)
    assert at[-1] - at[0] >= 11 / 50 * 0.95


def test_a_stop_ends_the_wait_for_a_limit(runs):
    with Flight(runs.teacher(), asking(max_rpm=1)) as flight:
        for number in range(3):
            flight.send(Request([number], image(number)))
        landed(flight, 1)
        started = time.monotonic()
        flight.stop()
        assert len(landed(flight, 2)) == 2
        assert time.monotonic() - started < 5


def test_a_long_wait_that_the_server_asks_for_is_said_once_and_ended_by_a_stop(runs, caplog):
    later = replace(scripted.RATE_LIMITED, retry_after=3600.0)
    # Late enough that all three are under way before the first lands.
    with Flight(runs.teacher(faults=repeat(later), latency=0.5), asking(in_flight=3)) as flight:
        for number in range(5):
            flight.send(Request([number], image(number)))
        assert len(landed(flight, 3)) == 3
        flight.stop()
        assert len(landed(flight, 2)) == 2
    assert [record.getMessage() for record in caplog.records] == [
        "openai:scripted asks to be left alone for 3600 s, and is; stop with Ctrl-C to go on later"
    ]


def test_an_error_while_asking_is_kept_and_nothing_more_is_sent(runs):
    class Broken(type(runs.teacher())):
        async def ask(self, images, deadline):
            await asyncio.sleep(0)
            raise ZeroDivisionError

    with Flight(Broken(runs.teacher().card), asking(in_flight=1)) as flight:
        for number in range(3):
            flight.send(Request([number], image(number)))
        found = landed(flight, 3)
    assert isinstance(flight.error, ZeroDivisionError)
    assert [landing.said[0].billed for landing in found] == [Billed.UNKNOWN, Billed.NO, Billed.NO]


def test_why_nothing_is_sent_any_more_is_said(runs):
    teacher = runs.teacher(faults=chain(repeat(scripted.NOT_SENT)))
    with Flight(teacher, asking()) as flight:
        for number in range(20):
            flight.send(Request([number], image(number)))
        assert len(landed(flight, 20)) == 20
        assert "8 times in a row" in flight.why_broken
