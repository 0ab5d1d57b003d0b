"""Labels alone: runs of n = 0, which learn from every labelled row of their store and ask no teacher about any.

They are what a user has without a call, so every method that is asked about is compared with them: at its own n, and
paired by sample and seed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from analysis.advantage import bootstrap_interval
from analysis.curves import CURVE, PAIR
from analysis.results import chosen

# The loss on images that the teacher was not asked about which reads their labels.
_OF_LABELS = "ce"
_CONFIDENCE, _RESAMPLES = 0.95, 10_000
_COLUMNS = {
    **dict.fromkeys([*CURVE], "str"),
    "n": "int64",
    "calls": "int64",
    "uses_labels": "bool",
    "teaches_more": "bool",
    **dict.fromkeys(["validation", "accuracy", "alone", "mean", "low", "high"], "float64"),
    "pairs": "int64",
}


def of_samples(table: pd.DataFrame) -> pd.DataFrame:
    """Rows of runs, or of means, with images of a sample."""
    return table[table["n"] > 0]


def of_labels_alone(table: pd.DataFrame) -> pd.DataFrame:
    """Rows of runs, or of means, of labels alone."""
    return table[table["n"] == 0]


def uses_labels(recipe: Mapping[str, Any]) -> bool:
    """Whether labels of images that the teacher was not asked about were learned from, by a run or by its proxies."""
    losses = recipe.get("rest", [])
    behind = (run.get("recipe", {}) for loss in losses for run in loss.get("runs", []))
    return any(loss["loss"] == _OF_LABELS for loss in losses) or any(map(uses_labels, behind))


def teaches_more(recipe: Mapping[str, Any]) -> bool:
    """Whether a run learned from those images by anything but their labels, which labels alone do not have."""
    return any(loss["loss"] != _OF_LABELS for loss in recipe.get("rest", []))


def beyond_labels(results: pd.DataFrame) -> pd.DataFrame:
    """What each method has beyond labels alone at each n: the mean difference of runs of the same pair, sample and
    seed, with a 95 % bootstrap interval over them.

    Returns:
        Columns teacher, student, dataset, label, n, calls (of one run), uses_labels and teaches_more (as the
        functions), validation (mean of the best validation accuracies), accuracy and alone (test accuracies, means over
        the paired runs), mean, low and high (of the difference; the interval is NaN for one pair of runs) and pairs.
        Methods keep the order of the results, and n grows. No rows where nothing is paired.
    """
    runs = chosen(results)
    keys = [*PAIR, "sample_seed", "seed"]
    alone = of_labels_alone(runs)[[*keys, "test_accuracy"]]
    if alone.empty:
        return pd.DataFrame(columns=list(_COLUMNS)).astype(_COLUMNS)
    pairs = of_samples(runs).merge(alone, on=keys, suffixes=("", "_alone"))
    order = {
        curve: place for place, curve in enumerate(runs[CURVE].drop_duplicates().itertuples(index=False, name=None))
    }
    groups = sorted(pairs.groupby([*CURVE, "n"], sort=False), key=lambda group: (order[group[0][:-1]], group[0][-1]))
    rows = [[*point, *_compared(group)] for point, group in groups]
    return pd.DataFrame(rows, columns=list(_COLUMNS)).astype(_COLUMNS)


def _compared(pairs: pd.DataFrame) -> list[float]:
    recipes = [json.loads(recipe) for recipe in pairs["recipe"]]
    differences = (pairs["test_accuracy"] - pairs["test_accuracy_alone"]).to_numpy(dtype=np.float64)
    rng = np.random.default_rng(0)
    low, high = bootstrap_interval(differences, np.arange(len(differences)), _CONFIDENCE, _RESAMPLES, rng)
    means = [pairs[name].mean() for name in ("best_val_accuracy", "test_accuracy", "test_accuracy_alone")]
    return [
        int(pairs["teacher_calls"].max()),
        any(map(uses_labels, recipes)),
        any(map(teaches_more, recipes)),
        *means,
        float(differences.mean()),
        low,
        high,
        len(differences),
    ]
