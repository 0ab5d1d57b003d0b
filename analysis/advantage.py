"""The averaged advantage of one method over another: the mean difference of runs that share all but the method."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd

from analysis.curves import PAIR
from analysis.results import chosen
from ground.errors import UnknownName

# What is drawn -> what single pairs that go together have in common.
_TOGETHER: dict[str, list[str]] = {
    "pairs": [*PAIR, "n", "sample_seed", "seed"],
    "seeds": [*PAIR, "sample_seed", "seed"],
    "samples": [*PAIR, "sample_seed"],
}
RESAMPLES = tuple(_TOGETHER)
_BLOCK = 1 << 20


@dataclass(frozen=True, slots=True)
class Advantage:
    """How much higher the test accuracy of `method` is than that of `baseline`, in [-1, 1].

    Args:
        mean: over the pairs; NaN where there are none.
        low, high: its confidence interval; NaN where fewer than two things can be resampled.
        pairs: how many runs of the one have a counterpart of the other.
    """

    method: str
    baseline: str
    mean: float
    low: float
    high: float
    pairs: int


def paired_advantage(
    results: pd.DataFrame,
    method: str,
    baseline: str,
    *,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
    resample: str = "pairs",
) -> Advantage:
    """The mean paired difference, with a percentile bootstrap interval.

    Runs are paired by teacher, student, dataset, n, sample seed and seed. The interval says how far the mean would move
    had other pairs been drawn from the same grid. It does not cover what all pairs share: the one teacher, the values
    of n that the grid chose, and the images of the store where there is one sample. Runs of one seed start from the
    same weights at every n, so their differences may resemble each other; an interval over `resample="seeds"` allows
    for that and is wider. Runs of one sample learn from the same images with every seed; an interval over
    `resample="samples"` allows for that too. With the usual three to five of them it is only a rough one.

    Args:
        resample: "pairs" draws single pairs, "seeds" draws seeds (of a teacher, student, dataset and sample) with all
            their n, "samples" draws samples (of a teacher, student and dataset) with all their seeds and n.
        seed: of the bootstrap's draws.

    Raises:
        UnknownName: the results have no such label.
    """
    if not 0 < confidence < 1 or resamples < 1:
        raise ValueError(f"confidence must be between 0 and 1 and resamples at least 1, got {confidence}, {resamples}")
    if resample not in RESAMPLES:
        raise UnknownName("way to resample", resample, RESAMPLES)
    runs = chosen(results)
    labels = list(dict.fromkeys(runs["label"]))
    for label in (method, baseline):
        if label not in labels:
            raise UnknownName("method in these results", label, labels)
    keys = _TOGETHER["pairs"]
    ours, theirs = (runs.loc[runs["label"] == label, [*keys, "test_accuracy"]] for label in (method, baseline))
    pairs = ours.merge(theirs, on=keys, suffixes=("", "_baseline"))
    differences = (pairs["test_accuracy"] - pairs["test_accuracy_baseline"]).to_numpy(dtype=np.float64)
    # A sample seed that nobody knows is one like any other.
    units = pairs.groupby(_TOGETHER[resample], sort=False, dropna=False).ngroup().to_numpy()
    mean = float(differences.mean()) if len(differences) else math.nan
    low, high = bootstrap_interval(differences, units, confidence, resamples, np.random.default_rng(seed))
    return Advantage(method, baseline, mean, low, high, len(differences))


def advantages(results: pd.DataFrame, method: str, *, resample: str = "pairs") -> pd.DataFrame:
    """A row for every other label with runs of some n, in the order of the results: method, baseline, mean, low, high,
    pairs.
    """
    runs = chosen(results)
    labels, of_samples = dict.fromkeys(runs["label"]), dict.fromkeys(runs.loc[runs["n"] > 0, "label"])
    if method not in labels:
        raise UnknownName("method in these results", method, labels)
    found = [paired_advantage(results, method, label, resample=resample) for label in of_samples if label != method]
    kinds = {"method": "str", "baseline": "str", "mean": "float64", "low": "float64", "high": "float64"}
    return pd.DataFrame([asdict(row) for row in found], columns=[*kinds, "pairs"]).astype(kinds | {"pairs": "int64"})


def bootstrap_interval(
    differences: np.ndarray, units: np.ndarray, confidence: float, resamples: int, rng: np.random.Generator
) -> tuple[float, float]:
    """Percentiles of the mean over units drawn with replacement; a unit is a pair, or several that go together.

    Args:
        differences: (pairs,) float64.
        units: (pairs,) int64, which unit each belongs to.

    Returns:
        NaN twice where there are fewer than two units.
    """
    sums, counts = np.bincount(units, weights=differences), np.bincount(units)
    if len(sums) < 2:
        return math.nan, math.nan
    means = np.empty(resamples)
    rows = max(1, _BLOCK // len(sums))
    for first in range(0, resamples, rows):
        block = means[first : first + rows]
        drawn = rng.integers(0, len(sums), (len(block), len(sums)))
        block[:] = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)
