"""The calls that a target accuracy needs, and what that saves."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from analysis.calls import NOT_REACHED, PASSED, calls_for_target, calls_table, savings
from ground.errors import UnknownName
from tests.analysis.grids import PlannedRun, results_of


@st.composite
def rising_curves(draw) -> tuple[list[int], list[float]]:
    sizes = draw(st.lists(st.integers(1, 10_000), min_size=2, max_size=8, unique=True))
    marks = draw(st.lists(st.integers(0, 10_000), min_size=len(sizes), max_size=len(sizes), unique=True))
    return sorted(sizes), [mark / 10_000 for mark in sorted(marks)]


@given(curve=rising_curves(), share=st.floats(0, 1))
def test_on_a_rising_curve_it_is_the_inverse_that_numpy_interpolates(curve, share):
    n, accuracy = curve
    target = accuracy[0] + share * (accuracy[-1] - accuracy[0])
    assume(target <= accuracy[-1])
    found = calls_for_target(n, accuracy, target)
    assert found == pytest.approx(np.interp(target, accuracy, n), rel=1e-9)


@given(curve=rising_curves(), target=st.floats(0, 1), order=st.randoms(use_true_random=False))
def test_the_order_of_the_points_does_not_matter(curve, target, order):
    points = list(zip(*curve, strict=True))
    order.shuffle(points)
    n, accuracy = zip(*points, strict=True)
    assert calls_for_target(n, accuracy, target) == calls_for_target(*curve, target)


@given(
    accuracy=st.lists(st.floats(0, 1), min_size=1, max_size=8),
    target=st.floats(0, 1),
)
def test_what_is_found_is_the_first_crossing_of_any_curve(accuracy, target):
    n = [100 * (place + 1) for place in range(len(accuracy))]
    found = calls_for_target(n, accuracy, target)
    if accuracy[0] > target or max(accuracy) < target:
        assert found is None
        return
    assert found is not None
    first = next(size for size, value in zip(n, accuracy, strict=True) if value >= target)
    assert first - 100 <= found <= first
    assert np.interp(found, n, accuracy) == pytest.approx(target, abs=1e-9)
    assert all(value < target for size, value in zip(n, accuracy, strict=True) if size < found - 1e-6)


def test_a_hand_value():
    # 0.45 lies three quarters of the way from 0.3 to 0.5.
    assert calls_for_target([1600, 2000, 2400], [0.2, 0.3, 0.5], 0.45) == pytest.approx(2300)


@pytest.mark.parametrize(
    ("target", "calls"),
    [(0.2, 1600), (0.3, 2000), (0.5, 2400), (0.19, None), (0.51, None)],
)
def test_at_and_beyond_the_ends(target, calls):
    assert calls_for_target([1600, 2000, 2400], [0.2, 0.3, 0.5], target) == calls


def test_a_dip_after_the_crossing_changes_nothing():
    assert calls_for_target([1, 2, 3, 4], [0.1, 0.5, 0.2, 0.6], 0.3) == 1.5


def test_one_point_brackets_nothing():
    assert calls_for_target([800], [0.4], 0.5) is None
    assert calls_for_target([800], [0.5], 0.5) == 800


@pytest.mark.parametrize(
    ("n", "accuracy", "target"),
    [
        ([], [], 0.5),
        ([1, 1], [0.1, 0.2], 0.1),
        ([1, 2], [0.1, math.nan], 0.1),
        ([1], [0.1], math.nan),
        ([1, 2], [0.1], 0),
    ],
)
def test_a_curve_that_is_none_is_refused(n, accuracy, target):
    with pytest.raises(ValueError, match="curve|zip"):
        calls_for_target(n, accuracy, target)


CURVES = {
    "vanilla": [0.1, 0.2, 0.3],
    "kd": [0.2, 0.3, 0.4],
    "rkd": [0.1, 0.15, 0.2],
    "ckd": [0.3, 0.4, 0.5],
}


def runs_of(curves: dict[str, list[float]], views: int = 1) -> list[PlannedRun]:
    # Two seeds on either side of the mean.
    return [
        PlannedRun(label=label, n=400 * (place + 1), seed=seed, accuracy=mean + (-1) ** seed * 0.05, views=views)
        for label, means in curves.items()
        for place, mean in enumerate(means)
        for seed in (0, 1)
    ]


def cells(table, value: str) -> dict[tuple[str, float], object]:
    return {(row["label"], row["target"]): row[value] for row in table.to_dict("records")}


def test_the_table_interpolates_the_mean_over_seeds_and_says_why_a_cell_is_empty(tmp_path):
    table = calls_table(results_of(tmp_path, runs_of(CURVES)), [0.25, 0.35])
    calls, why = cells(table, "calls"), cells(table, "why_empty")
    assert calls["kd", 0.25] == pytest.approx(600)
    assert calls["kd", 0.35] == pytest.approx(1000)
    assert calls["ckd", 0.35] == pytest.approx(600)
    assert math.isnan(calls["ckd", 0.25])
    assert why["ckd", 0.25] == PASSED
    assert math.isnan(calls["rkd", 0.25])
    assert why["rkd", 0.25] == NOT_REACHED
    assert why["kd", 0.25] == ""
    assert {row["label"] for row in table.to_dict("records") if not row["asks_teacher"]} == {"vanilla"}


def test_several_views_of_an_image_are_as_many_calls(tmp_path):
    runs = runs_of({"kd": CURVES["kd"], "vanilla": CURVES["vanilla"]}, views=3)
    calls = cells(calls_table(results_of(tmp_path, runs), [0.25]), "calls")
    assert calls["kd", 0.25] == pytest.approx(1800)
    assert calls["vanilla", 0.25] == pytest.approx(1000)  # labelled images


def test_the_best_is_compared_with_the_next_best(tmp_path):
    table = calls_table(results_of(tmp_path, runs_of(CURVES)), [0.35])
    (row,) = savings(table).to_dict("records")
    assert (row["best"], row["next_best"]) == ("ckd", "kd")
    assert row["saved_percent"] == pytest.approx(100 * (1 - 600 / 1000))


def test_a_named_method_is_compared_with_the_best_of_the_others_and_may_lose(tmp_path):
    table = calls_table(results_of(tmp_path, runs_of(CURVES)), [0.35])
    (row,) = savings(table, "kd").to_dict("records")
    assert (row["best"], row["next_best"]) == ("kd", "ckd")
    assert row["saved_percent"] == pytest.approx(100 * (1 - 1000 / 600))


def test_a_method_without_a_teacher_is_not_compared(tmp_path):
    curves = {"vanilla": [0.2, 0.45, 0.5], "kd": [0.2, 0.3, 0.4]}
    (row,) = savings(calls_table(results_of(tmp_path, runs_of(curves)), [0.35])).to_dict("records")
    assert row["best"] == "kd"
    assert math.isnan(row["saved_percent"])
    assert row["note"] == "only kd reached it"


@pytest.mark.parametrize(
    ("target", "method", "best", "note"),
    [
        (0.25, None, "ckd", "ckd passed it at the smallest n"),
        (0.25, "kd", "kd", "ckd passed it at the smallest n"),
        (0.15, None, "kd", "kd and ckd passed it at the smallest n"),
        (0.45, None, "ckd", "only ckd reached it"),
        (0.45, "kd", "kd", "kd did not reach it"),
        (0.9, None, "", "no method reached it"),
    ],
)
def test_where_no_percentage_follows_it_says_why(tmp_path, target, method, best, note):
    (row,) = savings(calls_table(results_of(tmp_path, runs_of(CURVES)), [target]), method).to_dict("records")
    assert math.isnan(row["saved_percent"])
    assert (row["best"], row["note"]) == (best, note)


def test_an_unknown_method_is_refused_with_the_nearest(tmp_path):
    table = calls_table(results_of(tmp_path, runs_of(CURVES)), [0.35])
    with pytest.raises(UnknownName, match="no method in these results is called 'ckdd'; did you mean ckd"):
        savings(table, "ckdd")


def test_no_runs_need_no_calls(tmp_path):
    table = calls_table(results_of(tmp_path, []), [0.5])
    assert len(table) == 0
    assert len(savings(table)) == 0


def test_labels_alone_reach_a_target_for_no_call_or_not_at_all(tmp_path):
    runs = runs_of({"kd": CURVES["kd"]}) + [
        PlannedRun(label="all", n=0, seed=seed, accuracy=0.3 + 0.02 * seed, views=0) for seed in (0, 1)
    ]
    table = calls_table(results_of(tmp_path, runs), [0.31, 0.35])
    calls, why = cells(table, "calls"), cells(table, "why_empty")
    assert calls["all", 0.31] == 0
    assert math.isnan(calls["all", 0.35])
    assert why["all", 0.35] == NOT_REACHED
    assert set(savings(table)["best"]) == {"kd"}
