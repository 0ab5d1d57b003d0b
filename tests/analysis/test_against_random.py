"""What rules bring over buying at random: the same method, sample and seed, by accuracy and by calls."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import bootstrap

from analysis.against_random import ALL_N, accuracy_against_random, calls_against_random, compared_rules
from analysis.content import Content
from analysis.grid_plan import GridPlan
from analysis.report import write_report
from analysis.results import collect
from tests.analysis.grids import PlannedRun, write_grid

SAMPLES, SIZES = (0, 1, 2), (200, 400, 800)
RULES = {None: 0.0, "balanced": 0.04, "uncertain:run={kd}": -0.02}
OFFSETS = (0.0, 0.01, -0.02)


def accuracy_of(rule: str | None, n: int, sample: int) -> float:
    """On a line of log2(n), which a rule moves, most in the last sample."""
    return round(0.1 * np.log2(n / 100) + RULES[rule] * (1 + sample) + OFFSETS[sample], 6)


def grid(folder: Path, samples=SAMPLES, rules=tuple(RULES), seeds=(0,)) -> tuple[pd.DataFrame, GridPlan]:
    write_grid(
        folder,
        [
            PlannedRun(
                label="kd" if rule is None else f"kd by {rule.partition(':')[0]}",
                n=n,
                sample_seed=sample,
                seed=seed,
                accuracy=accuracy_of(rule, n, sample) + 0.001 * seed,
                select=rule,
                base=rule and "kd",
            )
            for rule in rules
            for n in SIZES
            for sample in samples
            for seed in seeds
        ],
        targets=[0.15, 0.25, 0.9],
    )
    return collect(folder), GridPlan.load(folder)


def test_labels_are_set_beside_the_same_method_at_random(tmp_path):
    _, plan = grid(tmp_path)
    assert compared_rules(plan) == {
        "kd by balanced": ("kd", "balanced"),
        "kd by uncertain": ("kd", "uncertain:run={kd}"),
    }
    _, alone = grid(tmp_path / "alone", rules=("balanced",))
    assert compared_rules(alone) == {}


def test_differences_are_of_one_sample_and_seed_with_an_interval_over_samples(tmp_path):
    found = accuracy_against_random(*grid(tmp_path, seeds=(0, 1))).set_index(["rule", "n"])
    assert list(found.loc["balanced"].index) == [*SIZES, ALL_N]
    differences = np.array([RULES["balanced"] * (1 + sample) for sample in SAMPLES])
    for n in (*SIZES, ALL_N):
        row = found.loc[("balanced", n)]
        assert row["mean"] == pytest.approx(differences.mean())
        assert row["pairs"] == (2 if n else 2 * len(SIZES)) * len(SAMPLES)
        # Three values have ten means of three draws, so that the ends of the interval are the smallest and the largest.
        drawn = bootstrap((differences,), np.mean, method="percentile", n_resamples=9999, rng=0)
        assert (row["low"], row["high"]) == pytest.approx(tuple(drawn.confidence_interval))
    assert found.loc[("uncertain:run={kd}", 400), "high"] < 0


def test_of_one_sample_and_seed_there_is_no_interval(tmp_path):
    results, plan = grid(tmp_path, samples=(0,))
    found = accuracy_against_random(results, plan)
    of_n = found[found["n"] != ALL_N]
    assert of_n[["low", "high"]].isna().all(axis=None)
    assert (of_n["pairs"] == 1).all()


def test_calls_are_those_at_which_the_curves_of_a_sample_cross_the_target(tmp_path):
    results, plan = grid(tmp_path)
    found = calls_against_random(results, plan, [0.15, 0.25, 0.9]).set_index(["rule", "target"])
    assert ("balanced", 0.9) not in found.index

    def calls(rule: str | None, sample: int, target: float) -> float | None:
        accuracies = [accuracy_of(rule, n, sample) for n in SIZES]
        return np.interp(target, accuracies, SIZES) if accuracies[0] < target <= accuracies[-1] else None

    for rule in ("balanced", "uncertain:run={kd}"):
        both = [(calls(rule, sample, 0.25), calls(None, sample, 0.25)) for sample in SAMPLES]
        known = np.array([pair for pair in both if None not in pair])
        row = found.loc[(rule, 0.25)]
        assert row["pairs"] == len(known) > 0
        assert (row["calls"], row["at_random"]) == pytest.approx(tuple(known.mean(axis=0)))
        assert row["mean"] == pytest.approx((known[:, 0] - known[:, 1]).mean())
    assert found.loc[("balanced", 0.25), "mean"] < 0 < found.loc[("uncertain:run={kd}", 0.25), "mean"]


def test_a_report_says_what_rules_brought_and_keeps_it_as_tables(tmp_path):
    grid(tmp_path)
    tables = {table.name: table.frame for table in Content.read(tmp_path).tables}
    by_rule = tables["rules"].set_index("rule")
    assert by_rule.loc["balanced", "n=400"] == "+8.0 (+4.0 to +12.0)"
    assert by_rule.loc["uncertain:run={kd}", "all n"] == "-4.0 (-6.0 to -2.0)"
    assert set(tables["rule-calls"]["target"]) == {"15%", "25%"}
    write_report(tmp_path)
    assert (tmp_path / "report" / "tables" / "rules.csv").exists()
    assert "What rules bring over buying at random" in (tmp_path / "report.html").read_text()


def test_plans_of_earlier_releases_say_no_rule_and_their_reports_compare_none(tmp_path):
    write_grid(tmp_path, [PlannedRun(label="kd"), PlannedRun(label="kd by balanced")])
    assert accuracy_against_random(collect(tmp_path), GridPlan.load(tmp_path)).empty
    assert not {"rules", "rule-calls"} & {table.name for table in Content.read(tmp_path).tables}
