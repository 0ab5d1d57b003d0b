"""The averaged advantage of one method over another, and its interval."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import bootstrap

from analysis.advantage import advantages, paired_advantage
from ground.errors import UnknownName
from tests.analysis.grids import PlannedRun, results_of


def runs_of(differences: dict[tuple[int, int], float], base: float = 0.4) -> list[PlannedRun]:
    """Runs of ckd that differ so much from those of kd; keys are (n, seed)."""
    return [
        PlannedRun(label=label, n=n, seed=seed, accuracy=base + (value if label == "ckd" else 0.0))
        for (n, seed), value in differences.items()
        for label in ("kd", "ckd")
    ]


@pytest.fixture
def differences() -> dict[tuple[int, int], float]:
    draws = np.random.default_rng(5).normal(0.03, 0.02, (4, 3))
    return {(400 * (i + 1), seed): float(draws[i, seed]) for i in range(4) for seed in range(3)}


def test_the_mean_is_that_of_the_paired_differences(tmp_path, differences):
    found = paired_advantage(results_of(tmp_path, runs_of(differences)), "ckd", "kd")
    assert found.mean == pytest.approx(np.mean(list(differences.values())))
    assert found.pairs == 12
    assert found.low < found.mean < found.high


def test_the_interval_is_scipys_percentile_bootstrap(tmp_path, differences):
    found = paired_advantage(results_of(tmp_path, runs_of(differences)), "ckd", "kd", resamples=20_000)
    sample = (np.array(list(differences.values())),)
    ours = bootstrap(sample, np.mean, method="percentile", n_resamples=20_000, rng=np.random.default_rng(1))
    assert found.low == pytest.approx(ours.confidence_interval.low, abs=5e-4)
    assert found.high == pytest.approx(ours.confidence_interval.high, abs=5e-4)


def test_swapping_the_methods_swaps_the_signs(tmp_path, differences):
    results = results_of(tmp_path, runs_of(differences))
    ours, theirs = paired_advantage(results, "ckd", "kd"), paired_advantage(results, "kd", "ckd")
    assert theirs.mean == pytest.approx(-ours.mean)
    assert theirs.low == pytest.approx(-ours.high, abs=1e-3)


def test_the_seed_decides_the_draws_and_more_confidence_is_wider(tmp_path, differences):
    results = results_of(tmp_path, runs_of(differences))
    first = paired_advantage(results, "ckd", "kd", seed=3)
    assert first == paired_advantage(results, "ckd", "kd", seed=3)
    assert first != paired_advantage(results, "ckd", "kd", seed=4)
    wide = paired_advantage(results, "ckd", "kd", seed=3, confidence=0.99)
    assert wide.low < first.low
    assert wide.high > first.high


def test_runs_without_a_counterpart_are_left_out(tmp_path):
    runs = [
        *runs_of({(400, 0): 0.1, (800, 0): 0.2}),
        PlannedRun(n=1200, accuracy=0.9),
        PlannedRun(seed=7, accuracy=0.9),
    ]
    found = paired_advantage(results_of(tmp_path, runs), "ckd", "kd")
    assert found.pairs == 2
    assert found.mean == pytest.approx(0.15)


def test_runs_of_different_pairs_are_never_compared(tmp_path):
    runs = [PlannedRun(label="kd", student="vgg8"), PlannedRun(label="ckd", student="wrn_16_2")]
    found = paired_advantage(results_of(tmp_path, runs), "ckd", "kd")
    assert found.pairs == 0
    assert all(map(math.isnan, (found.mean, found.low, found.high)))


def test_a_single_pair_has_no_interval(tmp_path):
    found = paired_advantage(results_of(tmp_path, runs_of({(400, 0): 0.1})), "ckd", "kd")
    assert found.mean == pytest.approx(0.1)
    assert math.isnan(found.low)
    assert math.isnan(found.high)


def test_equal_differences_have_an_interval_of_no_width(tmp_path):
    found = paired_advantage(results_of(tmp_path, runs_of({(400, seed): 0.125 for seed in range(4)})), "ckd", "kd")
    assert (found.low, found.high) == (pytest.approx(0.125), pytest.approx(0.125))


def test_whole_seeds_can_be_resampled(tmp_path):
    # Within a seed all n agree, so that pairs hold no more than their seeds say.
    values = {(400 * (i + 1), seed): 0.02 * seed for i in range(10) for seed in range(3)}
    results = results_of(tmp_path, runs_of(values))
    pairs = paired_advantage(results, "ckd", "kd")
    seeds = paired_advantage(results, "ckd", "kd", resample="seeds")
    assert seeds.mean == pytest.approx(pairs.mean)
    # One draw in 27 takes one seed three times: beyond 2.5% on either side.
    assert (seeds.low, seeds.high) == (pytest.approx(0.0), pytest.approx(0.04))
    assert pairs.high - pairs.low < (seeds.high - seeds.low) / 2


def test_seeds_with_more_sizes_weigh_more(tmp_path):
    values = {(400, 0): 0.0, (400, 1): 0.1, (800, 1): 0.1, (1200, 1): 0.1}
    found = paired_advantage(results_of(tmp_path, runs_of(values)), "ckd", "kd", resample="seeds")
    assert found.mean == pytest.approx(0.075)
    assert (found.low, found.high) == (pytest.approx(0.0), pytest.approx(0.1))


def test_every_other_method_is_a_row(tmp_path):
    runs = [
        PlannedRun(label=label, seed=seed, accuracy=accuracy)
        for label, accuracy in (("vanilla", 0.1), ("ckd", 0.5), ("kd", 0.3))
        for seed in (0, 1)
    ]
    results = results_of(tmp_path, runs)
    table = advantages(results, "ckd")
    assert table["baseline"].tolist() == ["vanilla", "kd"]
    assert table["mean"].tolist() == pytest.approx([0.4, 0.2])
    assert table["pairs"].tolist() == [2, 2]


def test_an_unknown_method_is_refused(tmp_path):
    results = results_of(tmp_path, [PlannedRun(label="ckd"), PlannedRun(label="kd")])
    for pair in (("ckd", "kdd"), ("kdd", "ckd")):
        with pytest.raises(UnknownName, match="did you mean kd"):
            paired_advantage(results, *pair)
    with pytest.raises(UnknownName, match="no method in these results is called 'nothing'"):
        advantages(results, "nothing")
    with pytest.raises(UnknownName, match="did you mean seeds"):
        paired_advantage(results, "ckd", "kd", resample="seed")


@pytest.mark.parametrize("settings", [{"confidence": 0.0}, {"confidence": 1.0}, {"resamples": 0}])
def test_settings_that_mean_nothing_are_refused(tmp_path, settings):
    results = results_of(tmp_path, runs_of({(400, 0): 0.1}))
    with pytest.raises(ValueError, match="confidence must be between 0 and 1"):
        paired_advantage(results, "ckd", "kd", **settings)


def sampled(differences: dict[tuple[int, int, int], float]) -> list[PlannedRun]:
    """Runs of ckd that differ so much from those of kd; keys are (n, sample seed, seed)."""
    return [
        # Samples lie far apart: whoever pairs across them finds another mean or another number of pairs.
        PlannedRun(label=label, n=n, sample_seed=sample, seed=seed, accuracy=0.3 + 0.1 * sample + value * is_ours)
        for (n, sample, seed), value in differences.items()
        for label, is_ours in (("kd", False), ("ckd", True))
    ]


def test_runs_are_paired_by_sample_and_seed(tmp_path):
    values = {(400, 0, 0): 0.01, (400, 0, 1): 0.02, (400, 4, 0): 0.03, (400, 4, 1): 0.06}
    alone = [PlannedRun(label="ckd", n=400, sample_seed=2, accuracy=0.9)]
    found = paired_advantage(results_of(tmp_path, [*sampled(values), *alone]), "ckd", "kd")
    assert found.pairs == 4
    assert found.mean == pytest.approx((0.01 + 0.02 + 0.03 + 0.06) / 4)


def test_whole_samples_can_be_resampled(tmp_path):
    # Within a sample all seeds and n agree, so that seeds hold no more than their samples say.
    values = {(n, sample, seed): 0.02 * sample for n in (400, 800) for sample in range(3) for seed in range(4)}
    results = results_of(tmp_path, sampled(values))
    seeds = paired_advantage(results, "ckd", "kd", resample="seeds")
    samples = paired_advantage(results, "ckd", "kd", resample="samples")
    assert samples.mean == pytest.approx(seeds.mean) == pytest.approx(0.02)
    # One draw in 27 takes one sample three times: beyond 2.5% on either side.
    assert (samples.low, samples.high) == (pytest.approx(0.0), pytest.approx(0.04))
    assert seeds.high - seeds.low < samples.high - samples.low


def test_seeds_of_two_samples_are_drawn_apart(tmp_path):
    # Seed 0 of one sample is not seed 0 of the other: four units of equal weight, and not two whose mean is 0 always.
    values = {(400, 0, 0): 0.1, (400, 1, 0): -0.1, (400, 0, 1): 0.1, (400, 1, 1): -0.1}
    found = paired_advantage(results_of(tmp_path, sampled(values)), "ckd", "kd", resample="seeds")
    # One draw in 16 takes only those above.
    assert (found.low, found.high) == (pytest.approx(-0.1), pytest.approx(0.1))


def test_one_sample_has_no_interval_over_samples(tmp_path, differences):
    found = paired_advantage(results_of(tmp_path, runs_of(differences)), "ckd", "kd", resample="samples")
    assert found.pairs == 12
    assert math.isnan(found.low)
