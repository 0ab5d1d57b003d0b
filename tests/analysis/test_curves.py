"""Accuracy by n, mean and deviation over seeds."""

from __future__ import annotations

import statistics

import pytest

from analysis.curves import accuracy_by_n
from tests.analysis.grids import PlannedRun, results_of


def test_mean_and_deviation_are_those_of_the_seeds(tmp_path):
    accuracies = [0.31, 0.35, 0.36]
    runs = [PlannedRun(seed=seed, accuracy=value) for seed, value in enumerate(accuracies)]
    (row,) = accuracy_by_n(results_of(tmp_path, runs)).to_dict("records")
    assert row["mean"] == pytest.approx(statistics.mean(accuracies))
    assert row["std"] == pytest.approx(statistics.stdev(accuracies))
    assert row["seeds"] == 3


def test_one_seed_has_no_deviation(tmp_path):
    curve = accuracy_by_n(results_of(tmp_path, [PlannedRun()]))
    assert curve["std"].isna().tolist() == [True]


def test_only_chosen_runs_count(tmp_path):
    runs = [PlannedRun(lr=lr, accuracy=0.9, validation=lr) for lr in (0.05, 0.025)]
    runs.append(PlannedRun(lr=0.1, accuracy=0.2))
    assert accuracy_by_n(results_of(tmp_path, runs))["mean"].tolist() == [0.2]


def test_methods_keep_their_order_and_n_grows(tmp_path):
    runs = [PlannedRun(label=label, n=n) for n in (2400, 800) for label in ("vanilla", "ckd", "kd")]
    curve = accuracy_by_n(results_of(tmp_path, runs))
    assert list(zip(curve["label"], curve["n"], strict=True)) == [
        (label, n) for label in ("vanilla", "ckd", "kd") for n in (800, 2400)
    ]


def test_pairs_are_kept_apart(tmp_path):
    runs = [PlannedRun(student="vgg8", accuracy=0.1), PlannedRun(accuracy=0.3)]
    curve = accuracy_by_n(results_of(tmp_path, runs))
    assert dict(zip(curve["student"], curve["mean"], strict=True)) == {"vgg8": 0.1, "wrn_16_2": 0.3}


def test_no_runs_make_no_curve(tmp_path):
    curve = accuracy_by_n(results_of(tmp_path, []))
    assert len(curve) == 0
    assert {"label", "n", "mean", "std", "seeds"} <= set(curve.columns)
