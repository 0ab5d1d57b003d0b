"""What is compared takes turns, and as long as it was given."""

from __future__ import annotations

import itertools

import pytest

from benchmarks.measure import Timing, take_turns, take_turns_for


def test_the_round_that_warms_up_does_not_count():
    order: list[str] = []
    subjects = {name: lambda name=name: order.append(name) for name in "ab"}
    timings = take_turns(2, subjects, itertools.count().__next__)
    assert order == list("ababab")
    assert timings == {"a": Timing((1, 1)), "b": Timing((1, 1))}


def test_a_ratio_is_taken_round_by_round():
    assert Timing((2.0, 30.0, 8.0)).over(Timing((1.0, 10.0, 2.0))) == 3.0


@pytest.mark.parametrize(("seconds", "rounds"), [(0.0, 1), (3.0, 2), (10.0, 9)])
def test_as_many_rounds_as_fit_are_made_and_one_at_least(monkeypatch, seconds, rounds):
    clock = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])

    def run() -> None:
        clock[0] += 1.0

    seen: list[int] = []
    timings = take_turns_for(seconds, {"a": run}, lambda: clock[0], lambda found: seen.append(len(found["a"].seconds)))
    assert len(timings["a"].seconds) == rounds
    assert seen == [*range(1, rounds + 1)]
