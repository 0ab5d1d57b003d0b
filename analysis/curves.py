"""Test accuracy by n: mean and standard deviation over seeds (figures 2 and 3 of the paper)."""

from __future__ import annotations

import pandas as pd

from analysis.results import chosen

PAIR = ["teacher", "student", "dataset"]
CURVE = [*PAIR, "label"]


def accuracy_by_n(results: pd.DataFrame) -> pd.DataFrame:
    """Columns teacher, student, dataset, label, n, mean, std, seeds; accuracies in [0, 1].

    The standard deviation divides by seeds - 1, and is NaN for one seed. Methods keep the order of the results, and n
    grows.
    """
    groups = chosen(results).groupby([*CURVE, "n"], sort=False)["test_accuracy"]
    table = groups.agg(mean="mean", std="std", seeds="count").reset_index()
    order = table.groupby(CURVE, sort=False).ngroup()
    table = table.assign(order=order).sort_values(["order", "n"], kind="stable", ignore_index=True)
    return table.drop(columns="order")
