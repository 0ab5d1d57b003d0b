"""What rules bring over buying at random: the same method, sample and seed, by accuracy and by calls."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import bootstrap

from analysis.against_random import accuracy_against_random, calls_against_random, compared_rules
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
    assert list(found.loc["balanced"].index) == [*SIZES]
    differences = np.array([RULES["balanced"] * (1 + sample) for sample in SAMPLES])
    # Three values have ten means of three draws, so that the ends of the interval are the smallest and the largest.
    drawn = bootstrap((differences,), np.mean, method="percentile", n_resamples=9999, rng=0)
    for n in SIZES:
        row = found.loc[("balanced", n)]
        assert row["mean"] == pytest.approx(differences.mean())
        assert row["pairs"] == 2 * len(SAMPLES)
        assert (row["low"], row["high"]) == pytest.approx(tuple(drawn.confidence_interval))
    assert found.loc[("uncertain:run={kd}", 400), "high"] < 0


def test_of_one_sample_the_interval_is_over_seeds_and_of_one_seed_there_is_none(tmp_path):
    one = accuracy_against_random(*grid(tmp_path / "one", samples=(0,)))
    assert one[["low", "high"]].isna().all(axis=None)
    assert (one["pairs"] == 1).all()
    several = accuracy_against_random(*grid(tmp_path / "several", samples=(0,), seeds=(0, 1, 2)))
    assert several[["low", "high"]].notna().all(axis=None)


def test_what_has_no_counterpart_is_left_out_of_accuracies_and_of_curves(tmp_path):
    results, plan = grid(tmp_path)
    whole = calls_against_random(results, plan, [0.25]).set_index("rule")
    lacking = results[~((results["label"] == "kd") & (results["n"] == 400) & (results["sample_seed"] == 0))]
    found = accuracy_against_random(lacking, plan).set_index(["rule", "n"])
    assert found["pairs"].loc["balanced"].to_dict() == {200: 3, 400: 2, 800: 3}
    # The rule's curve of that sample is of the same two n as the one at random.
    partly = calls_against_random(lacking, plan, [0.25]).set_index("rule")
    ours, theirs = (
        np.interp(0.25, [accuracy_of(rule, n, 0) for n in (200, 800)], (200, 800)) for rule in ("balanced", None)
    )
    others = whole.loc["balanced"]["mean"] * whole.loc["balanced"]["pairs"] - _difference_of_first_sample()
    assert partly.loc["balanced"]["mean"] * partly.loc["balanced"]["pairs"] == pytest.approx(others + ours - theirs)


def _difference_of_first_sample() -> float:
    ours, theirs = (np.interp(0.25, [accuracy_of(rule, n, 0) for n in SIZES], SIZES) for rule in ("balanced", None))
    return ours - theirs


def test_where_one_sample_of_several_reaches_the_target_there_is_no_interval(tmp_path):
    results, plan = grid(tmp_path, seeds=(0, 1))
    # All others stay where they were at 200.
    stays = (results["sample_seed"] != 0) & (results["n"] > 200)
    results.loc[stays, "test_accuracy"] = 0.05
    row = calls_against_random(results, plan, [0.25]).set_index("rule").loc["balanced"]
    assert (row["pairs"], row["of"]) == (2, 6)
    assert np.isnan([row["low"], row["high"]]).all()


def test_a_method_that_asks_no_teacher_has_accuracies_and_no_calls(tmp_path):
    write_grid(
        tmp_path,
        [
            PlannedRun(label=label, n=n, accuracy=accuracy, select=select, base=select and "vanilla")
            for label, select, accuracy in (("vanilla", None, 0.3), ("vanilla by balanced", "balanced", 0.4))
            for n in (200, 400)
        ],
        targets=[0.35],
    )
    results, plan = collect(tmp_path), GridPlan.load(tmp_path)
    assert accuracy_against_random(results, plan)["mean"].tolist() == pytest.approx([0.1, 0.1])
    assert calls_against_random(results, plan, [0.35]).empty
    assert write_report(tmp_path).finished == 4


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
    assert by_rule.loc["uncertain:run={kd}", "n=800"] == "-4.0 (-6.0 to -2.0)"
    assert set(by_rule["pairs"]) == {"3"}
    assert set(tables["rule-calls"]["pairs"]) <= {"1 of 3", "2 of 3", "3 of 3"}
    assert set(tables["rule-calls"]["target"]) == {"15%", "25%"}
    write_report(tmp_path)
    assert (tmp_path / "report" / "tables" / "rules.csv").exists()
    assert "What rules bring over buying at random" in (tmp_path / "report.html").read_text()


def test_plans_of_earlier_releases_say_no_rule_and_their_reports_compare_none(tmp_path):
    write_grid(tmp_path, [PlannedRun(label="kd"), PlannedRun(label="kd by balanced")])
    assert accuracy_against_random(collect(tmp_path), GridPlan.load(tmp_path)).empty
    assert not {"rules", "rule-calls"} & {table.name for table in Content.read(tmp_path).tables}
