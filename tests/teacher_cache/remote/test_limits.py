"""Rates, delays and the circuit breaker, by a clock that the test moves."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis.strategies import integers, lists

from ground.errors import InvalidInput
from storage.bill import Billed, FailureKind
from teacher_cache.remote.breaker import Breaker
from teacher_cache.remote.limits import Hold, Limits, Pace
from teacher_cache.remote.policy import AskingConfig, BreakerPolicy, RetryPolicy
from teacher_cache.remote.tally import Tally
from teacher_cache.teachers.attempts import Failure


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def sent_at(limits: Limits, clock: Clock, tokens: list[int]) -> list[float]:
    """When each of some requests is sent, one after the other as early as it may be."""
    times = []
    for amount in tokens:
        clock.now += limits.take(amount)
        times.append(clock.now)
    return times


@given(rpm=integers(1, 600), count=integers(2, 60))
def test_no_minute_holds_more_requests_than_the_limit_and_one(rpm, count):
    clock = Clock()
    times = sent_at(Limits(rpm, None, clock), clock, [0] * count)
    for start in times:
        assert sum(start <= time < start + 60 - 1e-6 for time in times) <= rpm
    assert times[-1] - times[0] == pytest.approx((count - 1) * 60 / rpm)


@given(tokens=lists(integers(1, 500), min_size=2, max_size=40))
def test_no_minute_holds_more_tokens_than_the_limit_and_one_request(tokens):
    clock = Clock()
    times = sent_at(Limits(None, 1000, clock), clock, tokens)
    for start in times:
        inside = [amount for time, amount in zip(times, tokens, strict=True) if start <= time < start + 60 - 1e-6]
        assert sum(inside[:-1]) <= 1000


def test_an_idle_minute_is_not_saved_up():
    clock = Clock()
    pace = Pace(60, clock)
    clock.now += 600
    assert [pace.take(1) for _ in range(3)] == [0, pytest.approx(1), pytest.approx(2)]


def test_tokens_that_were_not_used_are_given_back():
    clock = Clock()
    limits = Limits(None, 600, clock)
    limits.take(100)
    limits.used(100, 40)
    assert limits.take(1) == pytest.approx(4)


def test_no_count_of_a_server_stops_a_build_for_more_than_a_minute():
    clock = Clock()
    limits = Limits(None, 600, clock)
    limits.take(10)
    limits.used(10, 1 << 39)
    assert limits.take(10) == pytest.approx(61)


def test_without_limits_nothing_waits():
    assert Limits(None, None, Clock()).take(10**6) == 0


def test_delays_grow_to_a_cap_and_are_drawn_from_all_of_it():
    policy = RetryPolicy(base_seconds=1, factor=2, cap_seconds=10)
    assert [policy.delay(count, lambda: 1.0) for count in (1, 2, 3, 4, 5, 10_000)] == [1, 2, 4, 8, 10, 10]
    assert policy.delay(3, lambda: 0.25) == 1
    assert 0 <= policy.delay(2) <= 2


def failure(kind: FailureKind, billed: Billed, **settings) -> Failure:
    return Failure(kind=kind, billed=billed, why="so it was", **settings)


def verdicts(policy: RetryPolicy, *failures: Failure) -> list[str | None]:
    tally, found = Tally(), []
    for one in failures:
        tally.count(one)
        found.append(tally.verdict(one, policy))
    return found


def test_an_input_is_asked_again_as_often_as_the_policy_says():
    rejected = failure(FailureKind.REJECTED, Billed.NO)
    found = verdicts(RetryPolicy(attempts=3), rejected, rejected, rejected)
    assert found == [None, None, "3 attempts for one image failed, the last because so it was"]


def test_what_may_have_been_billed_counts_by_itself():
    unknown = failure(FailureKind.UNKNOWN, Billed.UNKNOWN)
    assert [text is None for text in verdicts(RetryPolicy(unknowns=1), unknown, unknown)] == [True, False]
    assert "an attempt for one image may have been billed" in str(verdicts(RetryPolicy(unknowns=0), unknown)[0])


def test_what_is_put_off_does_not_count():
    put_off = failure(FailureKind.RATE_LIMITED, Billed.NO)
    assert verdicts(RetryPolicy(attempts=2), *[put_off] * 10) == [None] * 10


def test_a_final_failure_is_final():
    assert "cannot help" in str(verdicts(RetryPolicy(), failure(FailureKind.REJECTED, Billed.NO, is_final=True))[0])


def test_requests_that_are_put_off_together_are_one_reason_to_wait():
    clock = Clock()
    hold = Hold(RetryPolicy(), clock)
    clock.now += 1
    for _ in range(5):
        hold.put_off(sent_at=clock.now - 0.5, retry_after=2)
    assert hold.in_a_row == 1
    assert hold.wait() == pytest.approx(2)
    clock.now += 3
    hold.put_off(sent_at=clock.now, retry_after=None)
    assert hold.in_a_row == 2
    hold.answered()
    assert hold.in_a_row == 0


def test_the_breaker_opens_lets_one_through_and_closes_with_an_answer():
    clock = Clock()
    breaker = Breaker(BreakerPolicy(failures=3, pause_seconds=10, probes=2), clock)
    for _ in range(2):
        breaker.failed(breaker.epoch)
    breaker.answered()
    for _ in range(2):
        breaker.failed(breaker.epoch)
    assert breaker.wait() == 0, "three in a row, and not three in all"
    breaker.failed(breaker.epoch)
    assert breaker.wait() == pytest.approx(10)
    clock.now += 10
    assert breaker.wait() == 0
    assert breaker.wait() > 0, "one alone"
    breaker.answered()
    assert [breaker.wait() for _ in range(3)] == [0, 0, 0]


def test_the_breaker_gives_up_after_its_probes():
    clock = Clock()
    breaker = Breaker(BreakerPolicy(failures=1, pause_seconds=10, probes=2), clock)
    breaker.failed(breaker.epoch)
    for is_last in (False, True):
        clock.now += 10
        assert breaker.wait() == 0
        breaker.failed(breaker.epoch)
        assert breaker.is_broken is is_last


def test_failures_of_requests_that_were_under_way_when_it_opened_do_not_count():
    clock = Clock()
    breaker = Breaker(BreakerPolicy(failures=2, pause_seconds=10, probes=1), clock)
    epoch = breaker.epoch
    for _ in range(2):
        breaker.failed(epoch)
    clock.now += 10
    assert breaker.wait() == 0
    for _ in range(5):
        breaker.failed(epoch)
    assert not breaker.is_broken
    breaker.failed(breaker.epoch)
    assert breaker.is_broken


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"in_flight": 0}, "--in-flight must be 1 to 1024, got 0"),
        ({"deadline_seconds": 0.0}, "--deadline must be above 0"),
        ({"max_rpm": 0}, "--max-rpm must be at least 1, got 0"),
        ({"max_tpm": -1}, "--max-tpm must be at least 1, got -1"),
    ],
)
def test_what_cannot_be_is_refused(settings, match):
    with pytest.raises(InvalidInput, match=match):
        AskingConfig(**settings)
