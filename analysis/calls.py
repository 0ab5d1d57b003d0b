"""How many teacher calls a method needs for a target accuracy (table 1 of the paper), and what that saves.

n images of V views each are n * V calls. A method that asks no teacher makes none, and what is found for it is the
number of labelled images; where labels alone reach a target, runs of n = 0, that is for 0 calls.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import pandas as pd

from analysis.curves import CURVE, PAIR, accuracy_by_n
from analysis.labels_only import of_samples
from analysis.results import chosen
from ground.errors import UnknownName

NOT_REACHED = "not reached"
PASSED = "passed at the smallest n"

_CALLS = [*PAIR, "target", "label", "calls", "why_empty", "asks_teacher"]
_SAVINGS = [*PAIR, "target", "best", "calls", "next_best", "next_calls", "saved_percent", "note"]


def calls_for_target(n: Sequence[int], accuracy: Sequence[float], target: float) -> float | None:
    """Where a curve reaches a target first: between the two neighbouring n that bracket it, by linear interpolation.

    Args:
        n: in any order, none twice.
        accuracy: at each n; it need not grow with n.

    Returns:
        The calls; None when the target is not reached, or the accuracy at the smallest n is above it already.

    Raises:
        ValueError: the curve is empty, has an n twice, or something is not finite.
    """
    curve = _curve(n, accuracy, target)
    if curve[0][1] == target:
        return curve[0][0]
    if curve[0][1] > target:
        return None
    for (n_below, below), (n_above, above) in pairwise(curve):
        if above >= target:  # the first such, so what comes before is below
            return n_below + (target - below) / (above - below) * (n_above - n_below)
    return None


def calls_table(results: pd.DataFrame, targets: Iterable[float], curves: pd.DataFrame | None = None) -> pd.DataFrame:
    """For every pair, target and method the calls of one sample that its mean accuracy needs.

    Args:
        targets: accuracies in [0, 1].
        curves: `accuracy_by_n` of these results, where it is at hand.

    Returns:
        Columns teacher, student, dataset, target, label, calls (NaN where empty, 0 where labels alone reach it),
        why_empty ("", "not reached" or "passed at the smallest n") and asks_teacher.
    """
    curves = accuracy_by_n(results) if curves is None else curves
    runs = chosen(results)
    views = (runs["teacher_calls"] // runs["n"].clip(lower=1)).groupby([runs[name] for name in CURVE], sort=False).max()
    rows = []
    targets = list(targets)
    for curve, points in curves.groupby(CURVE, sort=False):
        *pair, label = curve
        sampled = of_samples(points)
        if sampled.empty:
            rows += [[*pair, target, *_of_labels_alone(label, points["mean"].iloc[0], target)] for target in targets]
            continue
        num_views = int(views[curve])
        spent = (sampled["n"] * max(num_views, 1)).tolist()
        for target in targets:
            calls = calls_for_target(spent, sampled["mean"].tolist(), target)
            why = "" if calls is not None else PASSED if sampled["mean"].iloc[0] > target else NOT_REACHED
            rows.append([*pair, target, label, math.nan if calls is None else calls, why, num_views > 0])
    return _framed(rows, _CALLS)


def savings(calls: pd.DataFrame, method: str | None = None) -> pd.DataFrame:
    """What the best method saves against the next best: 100 * (1 - best / next), for every pair and target.

    Methods that ask no teacher are left out: they make no calls. One that passed the target at the smallest n needs
    fewer calls than were tried, nobody knows how many: it comes before those with a number, and nothing is computed
    from it.

    Args:
        calls: what `calls_table` returns.
        method: a label whose calls are compared with the best of the others, in place of the best one's; what it saves
            is negative where another needs fewer.

    Returns:
        Columns teacher, student, dataset, target, best, calls, next_best, next_calls, saved_percent and note, which
        says why there is no percentage.

    Raises:
        UnknownName: no method of the table has this label.
    """
    asking = calls[calls["asks_teacher"]]
    if method is not None and method not in set(asking["label"]):
        raise UnknownName("method in these results", method, set(asking["label"]))
    rows = []
    for group, found in asking.groupby([*PAIR, "target"], sort=False):
        ranked: list[dict[str, Any]] = sorted(found.to_dict("records"), key=_rank)
        if method is not None:
            ranked.sort(key=lambda row: row["label"] != method)  # stable: the others stay ranked
            if ranked[0]["label"] != method:
                continue
        best, after = ranked[0], ranked[1] if len(ranked) > 1 else None
        if method is None and best["why_empty"] == NOT_REACHED:
            rows.append([*group, "", math.nan, "", math.nan, math.nan, "no method reached it"])
            continue
        note = _why_nothing(ranked, best, after)
        saved = math.nan if note or after is None else 100 * (1 - best["calls"] / after["calls"])
        next_best = (after["label"], after["calls"]) if after and after["why_empty"] != NOT_REACHED else ("", math.nan)
        rows.append([*group, best["label"], best["calls"], *next_best, saved, note])
    return _framed(rows, _SAVINGS)


def _of_labels_alone(label: str, accuracy: float, target: float) -> list[Any]:
    """Cells of `calls_table` from the label on."""
    return [label, 0.0, "", False] if accuracy >= target else [label, math.nan, NOT_REACHED, False]


def _curve(n: Sequence[int], accuracy: Sequence[float], target: float) -> list[tuple[float, float]]:
    curve = sorted(zip(map(float, n), map(float, accuracy), strict=True))
    if not curve or len({place for place, _ in curve}) != len(curve):
        raise ValueError(f"a curve needs at least one n and none twice, got {list(n)}")
    if not all(map(math.isfinite, [target, *(value for point in curve for value in point)])):
        raise ValueError(f"a curve and its target must be finite, got {curve} and {target}")
    return curve


def _rank(row: dict[str, Any]) -> tuple[int, float]:
    if row["why_empty"] == "":
        return 1, row["calls"]
    return (0 if row["why_empty"] == PASSED else 2), 0.0


def _why_nothing(ranked: list[dict[str, Any]], best: dict[str, Any], after: dict[str, Any] | None) -> str:
    """Why no percentage follows from the two; empty where one does."""
    if best["why_empty"] == NOT_REACHED:
        return f"{best['label']} did not reach it"
    if after is None or after["why_empty"] == NOT_REACHED:
        passed_alone = best["why_empty"] == PASSED
        return f"only {best['label']} reached it{', at the smallest n already' if passed_alone else ''}"
    passed = [row["label"] for row in ranked if row["why_empty"] == PASSED]
    return f"{' and '.join(passed)} passed it at the smallest n" if passed else ""


def _framed(rows: list[list[Any]], columns: list[str]) -> pd.DataFrame:
    kinds = {
        name: "float64" if name in ("target", "calls", "next_calls", "saved_percent") else "str" for name in columns
    }
    return pd.DataFrame(rows, columns=columns).astype(kinds | ({"asks_teacher": "bool"} if columns is _CALLS else {}))
