"""`until` buys calls in steps, stops at the target or at the budget, and pays no call twice."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import linregress

from tests.conftest import run_command


def until(weights: Path, out: Path, *options: object):
    return run_command(
        "ckd-pipeline", "until", "--teacher", "resnet8", "--student", "resnet8", "--dataset", "digits",
        "--weights", weights, "--seeds", 2, "--max-evals", 2, "--out", out, "--device", "cpu",
        "--jobs", 1, "--json", "--trust-teacher", *options,
    )  # fmt: skip


@pytest.mark.slow
def test_it_stops_at_the_target_and_says_what_each_step_brought(tmp_path, weights):
    # Of the 12 validation images some are right by chance.
    result = until(weights, tmp_path / "out", "--target", 0.001, "--step", 48, "--budget", 960)
    assert result.returncode == 0, result.stderr
    said = json.loads(result.stdout)
    assert said["reached"]
    assert [(step["n"], step["new_calls"]) for step in said["steps"]] == [
        (48 * k, 48) for k in range(1, len(said["steps"]) + 1)
    ]
    assert all(step["val_accuracy"] < 0.001 for step in said["steps"][:-1])
    assert said["calls"] == said["steps"][-1]["n"] < 960


@pytest.mark.slow
def test_it_stops_at_the_budget_and_goes_on_with_a_larger_one(tmp_path, weights):
    out = tmp_path / "out"
    first = until(weights, out, "--target", 0.999, "--step", 24, "--budget", 50)
    assert first.returncode == 1, first.stderr
    said = json.loads(first.stdout)
    assert not said["reached"]
    assert [(step["n"], step["new_calls"]) for step in said["steps"]] == [(24, 24), (48, 24)]
    second = json.loads(until(weights, out, "--target", 0.999, "--step", 24, "--budget", 72).stdout)
    assert [(step["n"], step["new_calls"]) for step in second["steps"]] == [(24, 0), (48, 0), (72, 24)]
    assert [step["val_accuracy"] for step in second["steps"][:2]] == [step["val_accuracy"] for step in said["steps"]]


@pytest.mark.slow
def test_it_buys_by_a_rule_and_stops_where_little_is_expected(tmp_path, weights):
    out = tmp_path / "out"
    options = ("--target", 0.999, "--step", 24, "--budget", 960, "--select", "balanced", "--min-gain", 0.9)
    trained = ("--student-size", 16, "--steps-per-eval", 3, "--schedule", "cosine")
    result = until(weights, out, *options, *trained)
    assert result.returncode == 1, result.stderr
    said = json.loads(result.stdout)
    for record in out.glob("runs/*/*/run.json"):
        run = json.loads(record.read_text())
        assert (run["student_size"], run["steps"], run["protocol"]["schedule"]) == (16, 6, "cosine")
    assert (said["reached"], said["stopped"]) == (False, True)
    # Two students of one n say nothing of another.
    first, second = said["steps"]
    assert first["expected"] is None
    results = pd.read_csv(out / "results.csv")
    line = linregress(np.log2(results["n"]), results["best_val_accuracy"])
    assert second["expected"]["mean"] == pytest.approx(line.slope * np.log2(72 / 48))
    assert second["expected"]["low"] <= second["expected"]["mean"] <= second["expected"]["high"]
    [store] = (out / "stores").iterdir()
    made = json.loads((store / "manifest.json").read_text())["rounds"]
    assert [(of["rule"], of["first"], of["end"]) for of in made] == [("balanced", 0, 24), ("balanced", 24, 48)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--target", 0.5, "--step", 100, "--budget", 50), "--step 100 takes 100 calls and --budget is 50"),
        (("--target", 0.5, "--step", 5000, "--budget", 9000), "more than the 1150 images of digits"),
        (("--target", 0.5, "--step", 10, "--budget", 50, "--method", "vanilla"), "asks no teacher"),
        (("--target", 50, "--step", 10, "--budget", 50), "is not in the range 0<x<1"),
        (("--target", 0.5, "--step", 10, "--budget", 50, "--method", "kdd"), "did you mean kd"),
        (("--target", 0.5, "--step", 10, "--budget", 50, "--select", "balancd"), "did you mean balanced"),
        (("--target", 0.5, "--step", 10, "--budget", 50, "--select", "balanced:run={kd}"), "no method is called 'kd'"),
    ],
)
def test_senseless_questions_are_refused_before_any_call(tmp_path, weights, options, said):
    result = until(weights, tmp_path / "out", *options)
    assert result.returncode == 2
    assert said in result.stderr
    assert not (tmp_path / "out").exists()
