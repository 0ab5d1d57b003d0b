"""Expectations are a least-squares line with its prediction interval, and a verdict follows from whole intervals."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from analysis.expectation import FARTHEST, Decision, Expected, Line, Verdict, candidates, decide

SIZES = [50, 100, 200] * 3


def measured(seed: int, slope: float = 0.03, deviation: float = 0.01) -> np.ndarray:
    return 0.1 + slope * np.log2(SIZES) + np.random.default_rng(seed).normal(0, deviation, len(SIZES))


@given(st.lists(st.floats(0, 1), min_size=9, max_size=9), st.integers(2, 100_000))
def test_the_line_is_numpys_and_its_deviation_that_of_the_residuals(values, n):
    line = Line.through(SIZES, values)
    places = np.log2(SIZES)
    slope, level = np.polyfit(places, values, 1)
    assert line.expected(n).mean == pytest.approx(level + slope * math.log2(n), abs=1e-9)
    residuals = values - (level + slope * places)
    assert line.deviation == pytest.approx(math.sqrt(residuals @ residuals / 7), abs=1e-9)


def test_the_interval_is_that_of_the_normal_equations():
    values = measured(0)
    # y0 = x0' b, and the variance of a new value about it is s^2 (1 + x0' (X'X)^-1 x0).
    design = np.column_stack([np.ones(len(SIZES)), np.log2(SIZES)])
    fitted = stats.linregress(np.log2(SIZES), values)
    residuals = values - fitted.intercept - fitted.slope * np.log2(SIZES)
    for n in (50, 200, 1600):
        place = np.array([1, math.log2(n)])
        variance = residuals @ residuals / 7 * (1 + place @ np.linalg.inv(design.T @ design) @ place)
        low, high = stats.t.interval(0.95, 7, fitted.intercept + fitted.slope * math.log2(n), math.sqrt(variance))
        found = Line.through(SIZES, values).expected(n)
        assert (found.low, found.high) == pytest.approx((low, high), abs=1e-12)


def coverage(n: int, shared: float, trials: int = 4000) -> float:
    """How often the gain of one more pair of students is within, where those of a seed share a part of their noise."""
    rng, places = np.random.default_rng(1), np.log2([50, 100, 200])
    hits = 0
    for _ in range(trials):
        gains = 0.02 * places + rng.normal(0, 0.01, (3, 3)) + rng.normal(0, shared, (3, 1))
        found = Line.through([50, 100, 200] * 3, gains.ravel()).expected(n)
        new = 0.02 * math.log2(n) + rng.normal(0, 0.01) + rng.normal(0, shared)
        hits += found.low <= new <= found.high
    return hits / trials


@pytest.mark.parametrize("n", [200, 800, 1600])
def test_one_more_student_is_within_as_often_as_it_says(n):
    # Three standard errors of 4,000 trials are 0.0103.
    assert coverage(n, shared=0.0) == pytest.approx(0.95, abs=0.0104)


@pytest.mark.parametrize(("n", "least"), [(200, 0.90), (1600, 0.95)])
def test_labels_alone_that_pairs_of_a_seed_share_cost_little_of_that(n, least):
    """Gains of one seed share its student of labels alone, which the line does not know."""
    assert coverage(n, shared=0.01) >= least


def test_what_calls_bring_beyond_the_pilot_is_the_slope_times_the_doublings():
    line = Line.through(SIZES, measured(3))
    found = line.brought(1600, 200)
    assert found.mean == pytest.approx(3 * line.slope)
    assert found.mean == pytest.approx(line.expected(1600).mean - line.expected(200).mean)
    reach = stats.t.ppf(0.975, 7) * line.deviation * math.sqrt(1 + 9 / line.width)
    assert (found.low, found.high) == pytest.approx((found.mean - reach, found.mean + reach))


def test_an_accuracy_is_no_more_than_one_and_no_less_than_none():
    assert Expected(0.9, 0.7, 1.1).within(0, 1) == Expected(0.9, 0.7, 1.0)
    assert Expected(-0.1, -0.2, 0.1).within(0, 1) == Expected(0, 0, 0.1)


@pytest.mark.parametrize("sizes", [[50, 100], [50, 50, 50], []])
def test_what_has_no_line_or_no_deviation_is_refused(sizes):
    with pytest.raises(ValueError, match="three points of two sizes"):
        Line.through(sizes, [0.1] * len(sizes))


def test_three_points_have_a_line_with_a_wide_interval():
    found = Line.through([50, 100, 200], [0.1, 0.11, 0.13]).expected(400)
    assert found.low < 0.1 < found.mean < 0.2 < found.high


def test_candidates_are_doublings_of_the_pilot_and_no_farther_than_a_decision_looks():
    assert candidates(200, 400) == [200, 400]
    assert candidates(200, 300) == [200, 300]
    assert candidates(200, 200) == [200]
    assert candidates(200, 10_000) == candidates(200, FARTHEST * 200)


def around(*means: float, reach: float = 0.005) -> dict[int, Expected]:
    return {200 << place: Expected(mean, mean - reach, mean + reach) for place, mean in enumerate(means)}


@pytest.mark.parametrize(
    ("gains", "doubling", "decision"),
    [
        # Each doubling brings more than it has to: as many as are sure.
        (around(0.02, 0.04, 0.06, 0.08), 0.02, Decision(Verdict.BUY, 1600)),
        # It brings too little more: as few as are sure.
        (around(0.012, 0.017, 0.022, 0.027), 0.005, Decision(Verdict.BUY, 400)),
        (around(0.03, 0.03, 0.03, 0.03), 0.0, Decision(Verdict.BUY, 200)),
        (around(-0.03, -0.02, -0.01, 0.0), 0.01, Decision(Verdict.DO_NOT_BUY)),
        (around(0.0, 0.005, 0.01, 0.014), 0.005, Decision(Verdict.CANNOT_TELL)),
        # What falls with n is not bought, unless some of it is sure.
        (around(0.004, 0.0, -0.004, -0.008), -0.004, Decision(Verdict.DO_NOT_BUY)),
        (around(0.03, 0.02, 0.01, 0.0), -0.01, Decision(Verdict.BUY, 200)),
    ],
)
def test_a_verdict_follows_from_whole_intervals(gains, doubling, decision):
    assert decide(gains, 0.01, doubling=doubling) == decision


def test_nothing_is_advised_against_that_lies_beyond_what_is_looked_at():
    gains = around(-0.03, -0.02)
    assert decide(gains, 0.01, doubling=0.01) == Decision(Verdict.DO_NOT_BUY)
    assert decide(gains, 0.01, doubling=0.01, is_far=True) == Decision(Verdict.CANNOT_TELL)
    assert decide(around(0.02, 0.04), 0.01, doubling=0.02, is_far=True) == Decision(Verdict.BUY, 400)


def test_far_intervals_that_say_nothing_leave_what_is_sure_nearby():
    gains = {200: Expected(0.03, 0.02, 0.04), 400: Expected(0.05, 0.02, 0.08), 800: Expected(0.07, 0.0, 0.14)}
    assert decide(gains, 0.01, doubling=0.02) == Decision(Verdict.BUY, 400)


def test_points_that_all_lie_on_a_line_say_nothing_of_how_far_others_may_be():
    """Students that learned nothing are all at chance: no reason to be certain of what more calls bring."""
    line = Line.through([50, 100, 200], [0.1, 0.1, 0.1])
    found = line.expected(1600)
    assert (found.mean, found.low, found.high) == (pytest.approx(0.1), -math.inf, math.inf)
    decision = decide({200: line.expected(200), 1600: found}, 0.01, doubling=0.0)
    assert decision.verdict is Verdict.CANNOT_TELL
