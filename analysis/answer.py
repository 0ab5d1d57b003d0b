"""The question that a grid is run for: which method needs how many teacher calls for a target accuracy, in words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import pandas as pd

from analysis.calls import NOT_REACHED, PASSED, calls_table, savings
from analysis.curves import PAIR, accuracy_by_n
from analysis.figures import Pair, of_pair, pairs_of
from analysis.labels_only import of_labels_alone, of_samples
from analysis.results import chosen

OWN_METHOD = "ckd"
_STEPS = (0.05, 0.02, 0.01, 0.005, 0.002, 0.001)
# Targets worth choosing from; fewer lie too far apart to find two good ones.
_ENOUGH = 6
# Of the whole range of accuracies, two targets lie at least one part in so many apart.
_APART = 8


@dataclass(frozen=True, slots=True)
class Statement:
    """What one target on one pair comes to: `figure` is the number with its method, `sentence` says the rest."""

    pair: Pair
    target: float
    figure: str
    sentence: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The answer.

    Args:
        targets: accuracies in [0, 1], highest first.
        chosen_here: the grid names none; these are from the curves.
        calls, saved: of `analysis.calls`, for these targets.
        method: whose advantage the report shows.
    """

    targets: tuple[float, ...]
    chosen_here: bool
    calls: pd.DataFrame
    saved: pd.DataFrame
    statements: tuple[Statement, ...]
    method: str


def answer(results: pd.DataFrame, targets: Sequence[float]) -> Answer:
    """Answer it for the targets of the grid, or for two that fit the curves.

    Args:
        results: with at least one chosen run.
    """
    curves = accuracy_by_n(results)
    wanted = tuple(sorted(set(targets), reverse=True)) or _sensible_targets(results, curves)
    calls = calls_table(results, wanted, curves)
    saved = savings(calls)
    method = _method(curves, calls)
    return Answer(
        targets=wanted,
        chosen_here=not targets,
        calls=calls,
        saved=saved,
        statements=tuple(
            _beside_labels(_statement(pair, row, calls, curves), curves)
            for pair in pairs_of(curves)
            for row in of_pair(saved, pair).to_dict("records")
        ),
        method=method,
    )


def percent(accuracy: float) -> str:
    """An accuracy with the digits it has: 0.5 is 50 %, 0.455 is 45.5 %."""
    return f"{100 * accuracy:.4g} %"


def _method(curves: pd.DataFrame, calls: pd.DataFrame) -> str:
    """The method whose advantage is shown: the project's own, or the one that is best on average."""
    sampled = of_samples(curves)
    curves = curves if sampled.empty else sampled
    labels = list(dict.fromkeys(curves["label"]))
    if OWN_METHOD in labels:
        return OWN_METHOD
    asking = set(calls.loc[calls["asks_teacher"], "label"]) or set(labels)
    means = curves[curves["label"].isin(asking)].groupby("label", sort=False)["mean"].mean()
    return str(means.idxmax())


def _sensible_targets(results: pd.DataFrame, curves: pd.DataFrame) -> tuple[float, ...]:
    """Two round accuracies, not close to each other, for which as much as can be is known: first of all what is saved,
    then the calls of each method.
    """
    asking = chosen(results).groupby([*PAIR, "label"], sort=False)["teacher_calls"].max()
    means = [row.mean for row in curves.itertuples(index=False) if asking[(*row[:3], row.label)]] or list(
        curves["mean"]
    )
    low, high = min(means), max(means)
    candidates: list[float] = [round(high, 3)]
    for step in _STEPS:
        first, last = math.ceil(low / step), math.floor(high / step)
        candidates = [round(place * step, 6) for place in range(first, last + 1)] or candidates
        if len(candidates) >= _ENOUGH:
            break
    calls = calls_table(results, candidates, curves)
    known = calls[calls["asks_teacher"]].groupby("target")["calls"].count()
    told = savings(calls).groupby("target")["saved_percent"].count()
    worth = {target: (int(told.get(target, 0)), int(known.get(target, 0)), target) for target in candidates}
    apart = [pair for pair in combinations(candidates, 2) if pair[1] - pair[0] >= (high - low) / _APART]
    if not apart:
        return (max(candidates, key=lambda target: worth[target]),)
    one, other = max(apart, key=lambda pair: tuple(map(sum, zip(*(worth[target] for target in pair), strict=True))))
    return other, one


def _statement(pair: Pair, row: dict[str, Any], calls: pd.DataFrame, curves: pd.DataFrame) -> Statement:
    target, best = row["target"], row["best"]
    rows = of_pair(calls[calls["target"] == target], pair).to_dict("records")
    if not best:
        highest = of_pair(curves[curves["label"].isin([row["label"] for row in rows if row["asks_teacher"]])], pair)
        top = highest.loc[highest["mean"].idxmax()]
        sentence = (
            f"No method reaches it. The highest is {top['label']}: {100 * top['mean']:.1f} % at n = {top['n']:,}."
        )
        return Statement(pair, target, "Not reached", sentence)
    if math.isnan(row["calls"]):
        passed = [row["label"] for row in rows if row["asks_teacher"] and row["why_empty"] == PASSED]
        smallest = of_pair(curves[curves["label"] == best], pair)["n"].min()
        are = "is" if len(passed) == 1 else "are"
        sentence = (
            f"{_listed(passed)} {are} above it at the smallest n already: fewer calls would do, how many is not known."
        )
        return Statement(pair, target, f"Passed at {smallest:,} calls", sentence)
    sentences = [_against_next(row), *_about_own(row, rows)]
    return Statement(pair, target, f"{row['calls']:,.0f} calls with {best}", " ".join(sentences))


def _beside_labels(statement: Statement, curves: pd.DataFrame) -> Statement:
    """The same where labels alone do not reach the target; where they do, that comes first."""
    alone = of_pair(of_labels_alone(curves), statement.pair)
    reaching = alone[alone["mean"] >= statement.target]
    if reaching.empty:
        return statement
    best = reaching.loc[reaching["mean"].idxmax()]
    with_teacher = f"{statement.figure[0].lower()}{statement.figure[1:]}"
    sentence = (
        f"Labels alone are at {100 * best['mean']:.1f} %, at no call. Of the methods with a teacher: {with_teacher}. "
        f"{statement.sentence}"
    )
    return replace(statement, figure=f"0 calls: {best['label']}", sentence=sentence)


def _against_next(row: dict[str, Any]) -> str:
    if not row["next_best"]:
        return "No other method with a teacher reaches it."
    return f"{row['saved_percent']:.0f} % fewer than the next best, {row['next_best']}, with {row['next_calls']:,.0f}."


def _about_own(row: dict[str, Any], rows: list[dict[str, Any]]) -> list[str]:
    """How our own method fares where it is neither of the two that were named."""
    own = next((other for other in rows if other["label"] == OWN_METHOD), None)
    if own is None or OWN_METHOD in (row["best"], row["next_best"]):
        return []
    if own["why_empty"] == NOT_REACHED:
        return [f"{OWN_METHOD} does not reach it."]
    return [
        f"{OWN_METHOD} needs {own['calls']:,.0f}, {100 * (own['calls'] / row['calls'] - 1):.0f} % more than the best."
    ]


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
