"""What a rule that chooses images is worth: the same method from as many images that were bought at random, beside it.

Runs are paired by sample, seed and n. A sample's rules choose among the same images, and are measured on the same
others.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pandas as pd

from analysis.advantage import bootstrap_interval
from analysis.calls import calls_for_target
from analysis.curves import PAIR, num_samples
from analysis.grid_plan import RANDOM, GridPlan
from analysis.results import chosen

_RUN = ["sample_seed", "seed"]
_RESAMPLES = 10_000
_ACCURACY = [*PAIR, "method", "rule", "n", "mean", "low", "high", "pairs"]
_CALLS = [*PAIR, "method", "rule", "target", "calls", "at_random", "mean", "low", "high", "pairs", "of"]


def compared_rules(plan: GridPlan) -> dict[str, tuple[str, str]]:
    """Label -> the label of the same method at random, and the rule, of those that have both."""
    at_random = {run.label for run in plan.runs if run.select == RANDOM and run.n}
    return {
        run.label: (run.base, run.select)
        for run in plan.runs
        if run.select != RANDOM and run.base is not None and run.base in at_random
    }


def accuracy_against_random(results: pd.DataFrame, plan: GridPlan) -> pd.DataFrame:
    """The mean difference of test accuracy to the same method at random.

    Returns:
        A row for every pair, method, rule and n of which any runs are paired: mean, low and high in [-1, 1], the 95 %
        bootstrap interval over samples, or over seeds in a grid of one sample; NaN for fewer than two of them. pairs is
        how many runs have a counterpart.
    """
    rows = [
        [*named, n, *_interval(of_n["test_accuracy"] - of_n["at_random"], of_n["unit"]), len(of_n)]
        for named, both in _beside_random(results, plan)
        for n, of_n in both.groupby("n")
    ]
    return pd.DataFrame(rows, columns=_ACCURACY)


def calls_against_random(results: pd.DataFrame, plan: GridPlan, targets: Iterable[float]) -> pd.DataFrame:
    """How many calls a rule takes to a test accuracy, and how many more that is than at random.

    Each sample and seed has a curve of its own, of the n that both have, and counts where both curves reach the target
    between two of them (`analysis.calls.calls_for_target`). Methods that ask no teacher are left out.

    Returns:
        A row for every pair, method, rule and target that any of them reaches: calls and at_random, their means; mean,
        low and high of the difference, as `accuracy_against_random` has it; pairs that count, of so many.
    """
    rows, wanted = [], list(targets)
    for named, both in _beside_random(results, plan):
        curves = [curve for _, curve in both[both["teacher_calls"] > 0].groupby(_RUN, dropna=False)]
        for target in wanted:
            reached = [(_calls(curve, target), curve["unit"].iloc[0]) for curve in curves]
            known = [(*calls, unit) for calls, unit in reached if None not in calls]
            if known:
                ours, theirs, units = map(np.array, zip(*known, strict=True))
                means = ours.mean(), theirs.mean()
                rows.append([*named, target, *means, *_interval(ours - theirs, units), len(known), len(curves)])
    return pd.DataFrame(rows, columns=_CALLS)


def _beside_random(results: pd.DataFrame, plan: GridPlan) -> Iterator[tuple[list[str], pd.DataFrame]]:
    """For every pair, method and rule: these, and the runs of the rule with the accuracy at random beside them.

    `unit` is what intervals draw: the sample, or the seed in a grid of one sample.
    """
    drawn = _RUN[:1] if num_samples(results["sample_seed"]) > 1 else _RUN
    for pair, runs in chosen(results).groupby(PAIR, sort=False):
        for label, (method, rule) in compared_rules(plan).items():
            keys = [*_RUN, "n"]
            ours, theirs = (runs[runs["label"] == name] for name in (label, method))
            at_random = theirs[[*keys, "test_accuracy"]].rename(columns={"test_accuracy": "at_random"})
            both = ours[[*keys, "test_accuracy", "teacher_calls"]].merge(at_random, on=keys)
            if len(both):
                yield (
                    [*pair, method, rule],
                    both.assign(unit=both.groupby(drawn, sort=False, dropna=False).ngroup()),
                )


def _calls(curve: pd.DataFrame, target: float) -> tuple[float | None, float | None]:
    """By the rule, and at random."""
    spent = curve["teacher_calls"].tolist()
    ours, theirs = (curve[name].tolist() for name in ("test_accuracy", "at_random"))
    return calls_for_target(spent, ours, target), calls_for_target(spent, theirs, target)


def _interval(differences: Any, units: Any) -> tuple[float, float, float]:
    """The mean, and its interval."""
    differences, units = np.asarray(differences, np.float64), np.unique(units, return_inverse=True)[1]
    ends = bootstrap_interval(differences, units, 0.95, _RESAMPLES, np.random.default_rng(0))
    return float(differences.mean()), *ends
