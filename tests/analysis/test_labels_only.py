"""Labels alone, and what methods have beyond them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from scipy.stats import bootstrap

from analysis.labels_only import beyond_labels, of_labels_alone, of_samples, teaches_more, uses_labels
from tests.analysis.grids import PlannedRun, results_of

ALONE = "vanilla, all labels"
WITH_LABELS = {
    "answered_rows": 800,
    "labelled_rows": 5,
    "unlabelled_rows": 0,
    "rest": ["ce:weight=2"],
    "recipe": {"losses": [], "rest": [{"loss": "ce", "weight": 2.0}]},
}


def runs_of(values: dict[tuple[str, int, int | None, int], float]) -> list[PlannedRun]:
    """Keys are label, n, sample seed and seed."""
    return [
        PlannedRun(label=label, n=n, sample_seed=sample, seed=seed, accuracy=accuracy)
        for (label, n, sample, seed), accuracy in values.items()
    ]


def test_runs_of_no_n_are_told_from_those_of_samples(tmp_path):
    results = results_of(tmp_path, runs_of({("kd", 800, 0, 0): 0.5, (ALONE, 0, 0, 0): 0.4}))
    assert of_samples(results)["label"].tolist() == ["kd"]
    assert of_labels_alone(results)["label"].tolist() == [ALONE]


def recipe(*losses: str, behind: Sequence[Mapping[str, Any]] = ()) -> dict[str, Any]:
    """A run's, with losses of the rest; runs behind them are a proxy's."""
    proxies = [{"loss": "proxy", "runs": [{"recipe": each} for each in behind]}] if behind else []
    return {"losses": [], "rest": [*({"loss": name} for name in losses), *proxies]}


@pytest.mark.parametrize(
    ("learned", "used", "more"),
    [
        ({"losses": [{"loss": "ce"}]}, False, False),
        (recipe("ce"), True, False),
        (recipe("pseudo", "ce"), True, True),
        (recipe("pseudo"), False, True),
        (recipe(behind=[recipe("pseudo")]), False, True),
        # A proxy that was trained on the labels hands them on, also one behind another.
        (recipe(behind=[recipe("pseudo"), recipe("ce")]), True, True),
        (recipe(behind=[recipe(behind=[recipe("ce")])]), True, True),
    ],
)
def test_it_is_told_whether_the_rests_labels_were_used_and_whether_more_was(learned, used, more):
    assert uses_labels(learned) is used
    assert teaches_more(learned) is more


def test_a_method_is_compared_at_each_n_with_labels_alone_of_the_same_sample_and_seed(tmp_path):
    values = {(ALONE, 0, sample, seed): 0.3 + 0.1 * sample + 0.01 * seed for sample in (0, 3) for seed in (0, 1)}
    # Samples lie far apart: whoever pairs across them finds another difference.
    for n, more in ((1600, 0.05), (800, 0.02)):
        values |= {("kd", n, sample, seed): value + more for (_, _, sample, seed), value in list(values.items())[:4]}
    values[("kd", 800, 7, 0)] = 0.9  # of a sample that labels alone were not trained on
    found = beyond_labels(results_of(tmp_path, runs_of(values)))
    assert found[["label", "n", "calls", "pairs"]].to_numpy().tolist() == [["kd", 800, 800, 4], ["kd", 1600, 1600, 4]]
    assert found["mean"].tolist() == pytest.approx([0.02, 0.05])
    assert found["alone"].tolist() == pytest.approx([0.455, 0.455])
    assert found["accuracy"].tolist() == pytest.approx([0.475, 0.505])


def test_the_interval_is_scipys_percentile_bootstrap(tmp_path):
    draws = np.random.default_rng(3).normal(0.06, 0.02, 5)
    values = {(ALONE, 0, 0, seed): 0.5 for seed in range(5)}
    values |= {("kd", 800, 0, seed): 0.5 + float(draw) for seed, draw in enumerate(draws)}
    (row,) = beyond_labels(results_of(tmp_path, runs_of(values))).to_dict("records")
    theirs = bootstrap((draws,), np.mean, method="percentile", n_resamples=40_000, rng=np.random.default_rng(1))
    assert row["mean"] == pytest.approx(draws.mean())
    assert row["low"] == pytest.approx(theirs.confidence_interval.low, abs=1e-3)
    assert row["high"] == pytest.approx(theirs.confidence_interval.high, abs=1e-3)


def test_one_pair_of_runs_has_no_interval(tmp_path):
    (row,) = beyond_labels(results_of(tmp_path, runs_of({(ALONE, 0, 0, 0): 0.5, ("kd", 8, 0, 0): 0.6}))).to_dict(
        "records"
    )
    assert (row["mean"], row["pairs"]) == (pytest.approx(0.1), 1)
    assert math.isnan(row["low"])
    assert math.isnan(row["high"])


def test_methods_keep_their_order_and_say_whether_they_use_the_rests_labels(tmp_path):
    runs = [
        PlannedRun(label="vanilla"),
        PlannedRun(label="kd + labels", more=WITH_LABELS),
        PlannedRun(label="ckd"),
        PlannedRun(label=ALONE, n=0),
    ]
    found = beyond_labels(results_of(tmp_path, runs))
    assert found["label"].tolist() == ["vanilla", "kd + labels", "ckd"]
    assert found["uses_labels"].tolist() == [False, True, False]
    assert found["calls"].tolist() == [0, 800, 800]


def test_without_labels_alone_there_is_nothing_to_compare_with(tmp_path):
    found = beyond_labels(results_of(tmp_path, [PlannedRun()]))
    assert len(found) == 0
    assert len(beyond_labels(results_of(tmp_path / "empty", []))) == 0
