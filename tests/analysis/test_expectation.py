"""What calls are expected to bring, against scipy and numpy, and against what then happens."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from analysis.expectation import Expected, Growth, Outlook, Pilot, Verdict, decisive, verdict

SIZES, SEEDS = (50, 100, 200), 3


def pilots(at_100: float = 0.5, slope: float = 0.04, noise: float = 0.01, rng: int = 0) -> list[Pilot]:
    draws = np.random.default_rng(rng).normal(0, noise, (len(SIZES), SEEDS))
    return [
        Pilot(n, seed, at_100 + slope * math.log2(n / 100) + float(draws[place, seed]))
        for place, n in enumerate(SIZES)
        for seed in range(SEEDS)
    ]


ALONE = (0.55, 0.56, 0.54)


def test_the_line_is_scipys_and_numpys():
    found = pilots()
    x, y = np.log2([pilot.n for pilot in found]), np.array([pilot.accuracy for pilot in found])
    growth, theirs = Growth.fit(found), stats.linregress(x, y)
    assert growth.slope == pytest.approx(theirs.slope)
    assert growth.at(1600) == pytest.approx(np.polyval(np.polyfit(x, y, 1), math.log2(1600)))
    assert growth.residual == pytest.approx(np.polyfit(x, y, 1, full=True)[1][0])
    # scipy's standard error of the slope is of the line alone.
    assert math.sqrt(growth.residual / (len(y) - 2) / growth.spread) == pytest.approx(theirs.stderr)


def test_the_interval_is_that_of_the_normal_equations_with_one_pooled_variance():
    found = pilots()
    # One linear model of all trainings: a line for pilots, a constant for labels alone.
    design = [[1.0, math.log2(pilot.n), 0.0] for pilot in found] + [[0.0, 0.0, 1.0] for _ in ALONE]
    y = np.array([pilot.accuracy for pilot in found] + list(ALONE))
    design = np.array(design)
    solution, squares, *_ = np.linalg.lstsq(design, y, rcond=None)
    degrees = len(y) - 3
    covariance = squares[0] / degrees * np.linalg.inv(design.T @ design)
    outlook = Outlook(Growth.fit(found), ALONE)
    assert (outlook.degrees, outlook.variance) == (degrees, pytest.approx(squares[0] / degrees))
    for runs in (1, 3):
        for n in (50, 1600):
            for expected, row in (
                (outlook.accuracy(n, runs), [1, math.log2(n), 0]),
                (outlook.gain(n, runs), [1, math.log2(n), -1]),
            ):
                deviation = math.sqrt(squares[0] / degrees / runs + row @ covariance @ row)
                low, high = stats.t.interval(0.95, degrees, loc=row @ solution, scale=deviation)
                assert (expected.mean, expected.low, expected.high) == pytest.approx((row @ solution, low, high))


def test_nineteen_in_twenty_purchases_come_out_within_the_interval():
    rng, inside, of = np.random.default_rng(7), 0, 2000
    for trial in range(of):
        alone = tuple(0.55 + rng.normal(0, 0.01, 3))
        gain = Outlook(Growth.fit(pilots(rng=trial)), alone).gain(1600, runs=3)
        # What the mean of three trainings brings beyond what labels alone are on average.
        happened = 0.5 + 0.04 * 4 + rng.normal(0, 0.01, 3).mean() - 0.55
        inside += gain.low <= happened <= gain.high
    # Three standard deviations of a binomial count.
    assert abs(inside / of - 0.95) < 3 * math.sqrt(0.95 * 0.05 / of)


@given(order=st.permutations(pilots()))
def test_the_order_of_pilots_does_not_matter(order):
    assert Growth.fit(order).at(800) == pytest.approx(Growth.fit(pilots()).at(800))


def test_more_is_less_certain_farther_from_the_pilots():
    outlook = Outlook(Growth.fit(pilots()), ALONE)
    widths = [(gain := outlook.gain(n)).high - gain.low for n in (100, 400, 1600, 6400)]
    assert widths == sorted(widths)
    assert outlook.gain(1600, runs=5).high < outlook.gain(1600, runs=1).high


def test_two_pilots_and_one_training_of_labels_show_no_scatter():
    outlook = Outlook(Growth.fit([Pilot(100, 0, 0.5), Pilot(200, 0, 0.6)]), (0.3,))
    assert math.isnan(outlook.variance)
    gain = outlook.gain(400)
    assert (gain.mean, gain.low, gain.high) == (pytest.approx(0.4), -math.inf, math.inf)
    assert verdict(outlook, [400]).text == "cannot tell yet"


@pytest.mark.parametrize(
    "found",
    [[], [Pilot(100, 0, 0.5)], [Pilot(100, 0, 0.5), Pilot(100, 1, 0.6)], [Pilot(1, 0, math.nan), Pilot(2, 0, 0)]],
)
def test_what_is_no_line_is_refused(found):
    with pytest.raises(ValueError, match="at least two sizes"):
        Growth.fit(found)


@pytest.mark.parametrize("alone", [(), (math.nan,)])
def test_labels_alone_have_to_be_known(alone):
    with pytest.raises(ValueError, match="labels alone"):
        Outlook(Growth.fit(pilots()), alone)


def test_the_smallest_size_that_surely_pays_is_bought():
    # On the line 0.50 + 0.04 log2(n / 100): labels alone are passed by a point at n = 283.
    outlook = Outlook(Growth.fit(pilots(noise=0.001)), (0.549, 0.550, 0.551))
    found = verdict(outlook, [6400, 200, 400, 1600], least=0.01)
    assert (found.text, found.n) == ("buy about 400", 400)
    assert found.gain == outlook.gain(400, 3)
    assert outlook.gain(200, 3).low < 0.01 <= found.gain.low
    assert verdict(outlook, [6400], least=0.01).text == "buy about 6,400"


def test_calls_that_surely_bring_too_little_are_not_bought():
    outlook = Outlook(Growth.fit(pilots(slope=0.001, noise=0.001)), (0.549, 0.550, 0.551))
    found = verdict(outlook, [400, 1600])
    assert (found.text, found.n) == ("do not buy", None)
    assert found.gain == outlook.gain(1600, 3)
    # As many calls could be worth their price to somebody who counts tenths of a point.
    assert verdict(outlook, [400, 1600], least=-0.06).text == "buy about 400"


def test_what_scatters_too_much_is_left_open():
    assert verdict(Outlook(Growth.fit(pilots(noise=0.05)), (0.5, 0.6, 0.55)), [400, 1600]).text == "cannot tell yet"


def test_a_verdict_is_of_some_size():
    with pytest.raises(ValueError, match="at least one size"):
        verdict(Outlook(Growth.fit(pilots()), ALONE), [])


def test_of_two_ways_the_one_that_buys_fewest_decides_and_none_is_given_up_while_one_is_open():
    def said(kind: str, n: int | None = None, mean: float = 0.0) -> Verdict:
        return Verdict(kind, n, Expected(mean, mean - 0.01, mean + 0.01))

    buy, open_, no = (lambda n=400, mean=0.1: said("buy about", n, mean)), said("cannot tell yet"), said("do not buy")
    assert decisive({"without": buy(800), "with": buy(400)}) == "with"
    assert decisive({"without": buy(400, 0.02), "with": buy(400, 0.05)}) == "with"
    assert decisive({"without": no, "with": buy(6400)}) == "with"
    assert decisive({"without": no, "with": open_}) == "with"
    assert decisive({"without": said("do not buy", mean=-0.1), "with": no}) == "with"
    with pytest.raises(ValueError, match="at least one verdict"):
        decisive({})
