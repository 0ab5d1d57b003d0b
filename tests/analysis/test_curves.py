"""Accuracy by n, mean and deviation over samples and seeds."""

from __future__ import annotations

import statistics

import pytest

from analysis.curves import accuracy_by_n, averaged_over, counted_runs
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


def test_every_pair_of_a_sample_and_a_seed_counts_alike(tmp_path):
    accuracies = {(0, 0): 0.30, (0, 1): 0.32, (7, 0): 0.40, (7, 1): 0.36}
    runs = [PlannedRun(sample_seed=sample, seed=seed, accuracy=value) for (sample, seed), value in accuracies.items()]
    curve = accuracy_by_n(results_of(tmp_path, runs))
    (row,) = curve.to_dict("records")
    assert row["mean"] == pytest.approx(0.345)
    # By hand: deviations -0.045, -0.025, 0.055 and 0.015; their squares add up to 0.0059, over 4 - 1.
    assert row["std"] == pytest.approx((0.0059 / 3) ** 0.5)
    assert (row["runs"], row["samples"], row["seeds"]) == (4, 2, 2)
    assert averaged_over(curve) == "samples and seeds"
    assert counted_runs(curve) == "4 runs, of 2 samples of images and 2 seeds"


def test_one_seed_of_two_samples_has_a_deviation(tmp_path):
    runs = [PlannedRun(sample_seed=sample, accuracy=accuracy) for sample, accuracy in ((0, 0.3), (1, 0.5))]
    assert accuracy_by_n(results_of(tmp_path, runs))["std"].tolist() == [pytest.approx(statistics.stdev([0.3, 0.5]))]


def test_numbers_that_differ_from_mean_to_mean_are_ranges(tmp_path):
    some = [PlannedRun(sample_seed=sample, seed=seed) for sample in (0, 1) for seed in (0, 1, 2)]
    curve = accuracy_by_n(results_of(tmp_path, [*some, PlannedRun(n=1600, sample_seed=0)]))
    assert counted_runs(curve) == "1 to 6 runs, of 1 to 2 samples of images and 1 to 3 seeds"


@pytest.mark.parametrize("sample_seed", [None, 0, 5])
def test_one_sample_needs_no_words(tmp_path, sample_seed):
    runs = [PlannedRun(sample_seed=sample_seed, seed=seed) for seed in (0, 1)]
    curve = accuracy_by_n(results_of(tmp_path, runs))
    assert curve["samples"].tolist() == [1]
    assert (averaged_over(curve), counted_runs(curve)) == ("seeds", "seeds (2)")
