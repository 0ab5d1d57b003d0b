"""What a rule that chooses images is worth: the same method from as many images that were bought at random, beside it.

Runs are paired by sample and seed. A sample's rules choose among the same images, and are measured on the same others.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from analysis.advantage import bootstrap_interval, paired_advantage
from analysis.calls import calls_for_target
from analysis.curves import PAIR, num_samples
from analysis.grid_plan import RANDOM, GridPlan
from analysis.results import chosen

# In the place of an n: all of them together.
ALL_N = 0
_RESAMPLES = 10_000
_ACCURACY = [*PAIR, "method", "rule", "n", "mean", "low", "high", "pairs"]
_CALLS = [*PAIR, "method", "rule", "target", "calls", "at_random", "mean", "low", "high", "pairs"]


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
        A row for every pair, method, rule and n, and one for all n (`ALL_N`) where there are several: mean, low and
        high in [-1, 1], the 95 % bootstrap interval over samples, or over seeds where there is one sample; NaN where
        there are fewer than two of them. pairs is how many runs have a counterpart.
    """
    runs, rows = chosen(results), []
    over = "samples" if num_samples(results["sample_seed"]) > 1 else "seeds"
    for pair, of_pair in runs.groupby(PAIR, sort=False):
        for label, (method, rule) in compared_rules(plan).items():
            both = of_pair[of_pair["label"].isin([label, method])]
            if both["label"].nunique() < 2:
                continue
            sizes = sorted(both["n"].unique())
            for n in [*sizes, *([ALL_N] if len(sizes) > 1 else [])]:
                of_n = both[both["n"] == n] if n else both
                if of_n["label"].nunique() == 2:
                    found = paired_advantage(of_n, label, method, resample=over)
                    rows.append([*pair, method, rule, n, found.mean, found.low, found.high, found.pairs])
    return pd.DataFrame(rows, columns=_ACCURACY)


def calls_against_random(results: pd.DataFrame, plan: GridPlan, targets: Iterable[float]) -> pd.DataFrame:
    """How many calls a rule takes to a test accuracy, and how many more that is than at random.

    Each sample and seed has a curve of its own, and counts where both curves reach the target between two n
    (`analysis.calls.calls_for_target`).

    Returns:
        A row for every pair, method, rule and target that any of them reaches: calls and at_random, their means; mean,
        low and high of the difference, as `accuracy_against_random` has it; pairs.
    """
    runs, rows, wanted = chosen(results), list[list[Any]](), list(targets)
    for pair, of_pair in runs.groupby(PAIR, sort=False):
        for label, (method, rule) in compared_rules(plan).items():
            ours, theirs = (_curves(of_pair[of_pair["label"] == name]) for name in (label, method))
            for target in wanted:
                reached = [
                    (key[0], _calls(ours[key], target), _calls(theirs[key], target)) for key in ours if key in theirs
                ]
                known = [row for row in reached if not math.isnan(row[1] + row[2])]
                if known:
                    rows.append([*pair, method, rule, target, *_compared(known)])
    return pd.DataFrame(rows, columns=_CALLS)


def _curves(runs: pd.DataFrame) -> dict[tuple[Any, ...], pd.DataFrame]:
    """Sample and seed -> its runs."""
    keyed = runs.assign(sample_seed=runs["sample_seed"].fillna(-1))
    return dict(iter(keyed.groupby(["sample_seed", "seed"], sort=False)))


def _calls(curve: pd.DataFrame, target: float) -> float:
    found = calls_for_target(curve["teacher_calls"].tolist(), curve["test_accuracy"].tolist(), target)
    return math.nan if found is None else found


def _compared(known: Sequence[tuple[Any, float, float]]) -> list[float]:
    samples, ours, theirs = (np.asarray(column) for column in zip(*known, strict=True))
    differences = ours - theirs
    # Of one sample the seeds are what is drawn.
    units = np.unique(samples, return_inverse=True)[1] if len(set(samples)) > 1 else np.arange(len(samples))
    low, high = bootstrap_interval(differences, units, 0.95, _RESAMPLES, np.random.default_rng(0))
    return [ours.mean(), theirs.mean(), differences.mean(), low, high, len(known)]
