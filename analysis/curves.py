"""Test accuracy by n: mean and standard deviation over samples and seeds (figures 2 and 3 of the paper)."""

from __future__ import annotations

import pandas as pd

from analysis.results import chosen

PAIR = ["teacher", "student", "dataset"]
CURVE = [*PAIR, "label"]


def accuracy_by_n(results: pd.DataFrame) -> pd.DataFrame:
    """Columns teacher, student, dataset, label, n, mean, std, runs, seeds, samples; accuracies in [0, 1].

    Each pair of a sample of images and a seed is a run, and all of them count alike. The standard deviation divides by
    runs - 1, and is NaN for one run. Methods keep the order of the results, and n grows.
    """
    groups = chosen(results).groupby([*CURVE, "n"], sort=False)
    accuracy = groups["test_accuracy"]
    table = pd.DataFrame(
        {
            "mean": accuracy.mean(),
            "std": accuracy.std(),
            "runs": accuracy.count(),
            "seeds": groups["seed"].nunique(),
            "samples": groups["sample_seed"].nunique(dropna=False),
        }
    ).reset_index()
    order = table.groupby(CURVE, sort=False).ngroup()
    table = table.assign(order=order).sort_values(["order", "n"], kind="stable", ignore_index=True)
    return table.drop(columns="order")


def num_samples(sample_seeds: pd.Series) -> int:
    """How many samples of images runs learned from; where nobody knows which, it was the one of their grid."""
    return int(sample_seeds.nunique(dropna=False))


def of_several_samples(means: pd.DataFrame) -> bool:
    """Whether any of these means is over more than one sample."""
    return bool((means["samples"] > 1).any())


def averaged_over(curves: pd.DataFrame) -> str:
    """What the means of `accuracy_by_n` are over, in a few words."""
    return "samples and seeds" if of_several_samples(curves) else "seeds"


def counted_runs(curves: pd.DataFrame) -> str:
    """The same with numbers, which are ranges where they differ from mean to mean."""
    if of_several_samples(curves):
        runs, samples, seeds = (_range(curves[name]) for name in ("runs", "samples", "seeds"))
        return f"{runs} runs, of {samples} samples of images and {seeds} {'seed' if seeds == '1' else 'seeds'}"
    return f"seeds ({_range(curves['seeds'])})"


def _range(counts: pd.Series) -> str:
    if counts.empty:
        return ""
    low, high = counts.min(), counts.max()
    return f"{low}" if low == high else f"{low} to {high}"
