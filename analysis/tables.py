"""The tables of the paper with our numbers in them, and the paper's beside ours where it has the same pair and method.

A cell is text as it is shown: accuracies in percent, mean ± standard deviation over samples and seeds; empty where
there is nothing. The paper's are for CIFAR-100, whichever data set ours are for, and the note of each table says so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import Any

import pandas as pd

from analysis import paper
from analysis.advantage import advantages
from analysis.against_random import accuracy_against_random, calls_against_random
from analysis.calls import calls_table
from analysis.calls import savings as savings_of
from analysis.curves import CURVE, PAIR, counted_runs, num_samples
from analysis.grid_plan import GridPlan
from analysis.labels_only import beyond_labels, of_labels_alone
from analysis.paper import method_key, network_key
from analysis.table import Table

__all__ = [
    "Table",
    "accuracy",
    "advantage",
    "all_tables",
    "beyond",
    "calls",
    "correlation",
    "dimensions",
    "published",
    "rule_calls",
    "rules",
    "savings",
    "white_box",
]

_PAPER = " (paper)"
_SOURCE = f"Paper: {paper.SOURCE}"
_NONE_OF_THESE = f"{_SOURCE}, has no figures for these pairs and settings."
_RKD = r"rkd(?:_\d+)?"


def calls(results: pd.DataFrame, curves: pd.DataFrame, targets: Iterable[float]) -> Table:
    """Table 1: the teacher calls that each method needs for each target accuracy."""
    targets = list(targets)
    found = calls_table(results, targets, curves)
    published = _of_paper(paper.calls_to_target, "calls", "target")
    rows = []
    for curve, group in found.groupby(CURVE, sort=False):
        ours = dict(zip(group["target"], group["calls"], strict=True))
        row = _named(curve)
        for target in targets:
            row[f"{100 * target:g}%"] = _count(ours[target])
            row[f"{100 * target:g}%{_PAPER}"] = _count(published.get((*_key(curve), _places(target)), math.nan))
        rows.append(row)
    alone = set(of_labels_alone(results)["label"])
    free = [label for label in dict.fromkeys(found.loc[~found["asks_teacher"], "label"]) if label not in alone]
    names, makes = ", ".join(free), "make" if len(free) > 1 else "makes"
    note = "Empty: the target is not reached, or already passed at the smallest n."
    if free:
        note += f" {names} {makes} no calls: the numbers are labelled images."
    if alone:
        note += f" {', '.join(sorted(alone))}: every labelled image of the store, and 0 calls."
    headings = [f"{100 * target:g}%" for target in targets]
    return _table("calls", "Teacher calls for a target test accuracy", rows, headings, note)


def savings(results: pd.DataFrame, curves: pd.DataFrame, targets: Iterable[float], method: str | None = None) -> Table:
    """What the best method, or the named one, saves against the best of the others, at each target accuracy.

    Raises:
        UnknownName: the results have no such label.
    """
    found = savings_of(calls_table(results, targets, curves), method)
    published = _saved_in_paper(None if method is None else method_key(method))
    rows = []
    for row in found.to_dict("records"):
        pair = (row["teacher"], row["student"], row["dataset"])
        rows.append(
            {
                **_named(pair),
                "target": f"{100 * row['target']:g}%",
                "method": row["best"],
                "calls": _count(row["calls"]),
                "next best": row["next_best"],
                "its calls": _count(row["next_calls"]),
                "saved %": _decimals(row["saved_percent"], 1),
                f"saved %{_PAPER}": _decimals(
                    published.get((*_key(pair), _places(row["target"])), math.nan),
                    1,
                ),
                "why empty": row["note"],
            }
        )
    who = "the best method" if method is None else method
    title = f"Calls that {who} saves against the {'next best' if method is None else 'best of the others'}"
    headings = ["target", "method", "calls", "next best", "its calls", "saved %"]
    name = "savings" if method is None else "savings-of-method"
    note = "Saved: 100 (1 - calls / calls of the other). Methods that ask no teacher are not compared."
    return _table(name, title, rows, headings, note, last=["why empty"])


def accuracy(curves: pd.DataFrame) -> Table:
    """Test accuracy of every method by n."""
    return _by_n("accuracy", "Test accuracy in percent, by n", curves)


def white_box(curves: pd.DataFrame) -> Table:
    """Table 2: test accuracy by n of the methods that learn from feature maps."""
    known = set(paper.white_box()["label"])
    methods = curves[curves["label"].map(method_key).isin(known)]
    return _by_n("white-box", "Test accuracy in percent of white-box methods, by n", methods)


def dimensions(curves: pd.DataFrame) -> Table:
    """Figure 4: test accuracy of RKD by the dimensions it compares, averaged over n."""
    curves = curves[curves["label"].map(method_key).str.fullmatch(_RKD).astype(bool)]
    published = {(row["student"], row["label"]): row["mean"] for row in paper.rkd_dimensions().to_dict("records")}
    rows = []
    for _, of_pair in curves.groupby(PAIR, sort=False):
        # Only n that all of them have: an average over others would compare sizes, not methods.
        shared = set.intersection(*(set(group["n"]) for _, group in of_pair.groupby("label")))
        for curve, group in of_pair.groupby(CURVE, sort=False):
            at_shared = group[group["n"].isin(shared)]
            row = _named(curve)
            row["n"] = ", ".join(map(str, sorted(shared)))
            row["accuracy"] = _decimals(100 * at_shared["mean"].mean(), 2)
            theirs = published.get((network_key(curve[1]), method_key(curve[3])), math.nan)
            row[f"accuracy{_PAPER}"] = _decimals(100 * theirs, 2)
            rows.append(row)
    note = "The mean over those n that all of a pair's methods have. The paper averages over its own n."
    return _table(
        "dimensions", "Test accuracy in percent of RKD by dimensions, averaged over n", rows, ["accuracy"], note
    )


def correlation(descriptions: pd.DataFrame) -> Table:
    """Table 3: how far the correlations between a student's class logits are from its teacher's.

    Args:
        descriptions: what `logits.described` returns.
    """
    published = _of_paper(paper.logit_correlation, "correlation_difference")
    sizes = sorted(set(descriptions["n"]))
    rows = []
    for curve, group in descriptions.groupby(CURVE, sort=False):
        row = _named(curve)
        for n in sizes:
            values = group.loc[group["n"] == n, "correlation_difference"]
            row[f"n={n}"] = _spread(values.mean(), values.std(), 3)
        row["paper"] = _decimals(published.get(_key(curve), math.nan), 3)
        rows.append(row)
    counts = ", ".join(str(count) for count in sorted(set(descriptions["images"])))
    note = f"Mean absolute difference over pairs of classes, on {counts} test images; smaller is closer to the teacher."
    title = "Inter-class logit correlations: student against teacher"
    return _table("correlation", title, rows, [f"n={n}" for n in sizes], note if rows else "", paper_columns=["paper"])


def advantage(results: pd.DataFrame, method: str) -> Table:
    """The averaged advantage of a method over every other, paired by sample, seed and n.

    Raises:
        UnknownName: the results have no such label.
    """
    several = num_samples(results["sample_seed"]) > 1
    intervals = {"95% interval": "pairs", "over seeds": "seeds"} | ({"over samples": "samples"} if several else {})
    found = {heading: advantages(results, method, resample=how) for heading, how in intervals.items()}
    rows = [
        {
            "method": row["method"],
            "against": row["baseline"],
            "advantage": _decimals(100 * row["mean"], 2, sign="+"),
            **{heading: _interval(table.loc[place].to_dict()) for heading, table in found.items()},
            "pairs": str(row["pairs"]),
        }
        for place, row in enumerate(found["95% interval"].to_dict("records"))
    ]
    headings = ["method", "against", "advantage", *intervals, "pairs"]
    return Table(
        "advantage",
        f"Averaged advantage of {method} in test accuracy, percentage points",
        pd.DataFrame(rows, columns=headings),
        f"{_OF_SEVERAL_SAMPLES if several else _OF_ONE_SAMPLE} None of the paper's figures carried here is of this "
        "kind.",
    )


def beyond(results: pd.DataFrame) -> Table:
    """What each method has beyond labels alone, paired by sample and seed."""
    rows = [
        {
            **_named((row["teacher"], row["student"], row["dataset"], row["label"])),
            "n": str(row["n"]),
            "calls": str(row["calls"]),
            "accuracy": _decimals(100 * row["accuracy"], 2),
            "labels alone": _decimals(100 * row["alone"], 2),
            "difference": _decimals(100 * row["mean"], 2, sign="+"),
            "95% interval": _interval(row),
            "pairs": str(row["pairs"]),
        }
        for row in beyond_labels(results).to_dict("records")
    ]
    headings = ["n", "calls", "accuracy", "labels alone", "difference", "95% interval", "pairs"]
    note = (
        "Labels alone: every labelled image of the store, no call (n=0). Mean difference in percentage points of runs "
        "with the same pair, sample of images and seed, whatever their n; the interval is a bootstrap over these pairs "
        "of runs."
    )
    return _table("beyond-labels", "Test accuracy beyond labels alone", rows, headings, note)


def rules(results: pd.DataFrame, plan: GridPlan) -> Table:
    """What each rule that chooses images brings over buying at random, by n."""
    found = accuracy_against_random(results, plan)
    sizes = sorted(set(found["n"]))
    rows = []
    for (*pair, method, rule), group in found.groupby([*PAIR, "method", "rule"], sort=False):
        of_n = {row["n"]: row for row in group.to_dict("records")}
        row = _named((*pair, method)) | {"rule": rule}
        for n in sizes:
            row[f"n={n}"] = _difference(of_n[n], 100, 1) if n in of_n else ""
        least, most = group["pairs"].min(), group["pairs"].max()
        rows.append(row | {"pairs": str(least) if least == most else f"{least} to {most}"})
    headings = ["rule", *(f"n={n}" for n in sizes), "pairs"]
    note = f"Test accuracy less that of the same method at random, percentage points, mean {_INTERVAL_OF_RULES}"
    return _table("rules", "What rules bring over buying at random", rows, headings, note, paper_columns=[])


def rule_calls(results: pd.DataFrame, plan: GridPlan, targets: Iterable[float]) -> Table:
    """How many more calls than at random each rule takes to each target accuracy."""
    rows = [
        {
            **_named((row["teacher"], row["student"], row["dataset"], row["method"])),
            "rule": row["rule"],
            "target": f"{100 * row['target']:g}%",
            "calls": _count(row["calls"]),
            "at random": _count(row["at_random"]),
            "difference": _difference(row, 1, 0),
            "pairs": f"{row['pairs']} of {row['of']}",
        }
        for row in calls_against_random(results, plan, targets).to_dict("records")
    ]
    headings = ["rule", "target", "calls", "at random", "difference", "pairs"]
    note = (
        "Calls by linear interpolation on the curve of each sample and seed; only pairs count of which both reach the "
        f"target between two n. Below 0 is fewer than at random. Mean {_INTERVAL_OF_RULES}"
    )
    return _table("rule-calls", "Teacher calls by rule, and at random", rows, headings, note, paper_columns=[])


_INTERVAL_OF_RULES = (
    "over pairs of runs of the same sample, seed and n, with a 95 % bootstrap interval over samples (over seeds in a "
    "grid of one sample); of few it is rough, and rather too narrow."
)


def _difference(row: Mapping[str, Any], scale: float, digits: int) -> str:
    mean, low, high = (scale * row[name] for name in ("mean", "low", "high"))
    interval = "" if math.isnan(low) else f" ({_decimals(low, digits, '+')} to {_decimals(high, digits, '+')})"
    return f"{_decimals(mean, digits, '+')}{interval}"


_OF_ONE_SAMPLE = (
    "Mean difference of runs with the same pair, n and seed; the interval is a bootstrap over these pairs of runs, the "
    "other one over seeds with all their n, which may resemble each other; neither covers another sample of images."
)
_OF_SEVERAL_SAMPLES = (
    "Mean difference of runs with the same pair, n, sample of images and seed; the interval is a bootstrap over these "
    "pairs of runs, the next over the seeds of each sample with all their n, which may resemble each other, the last "
    "over samples with all their seeds and n: what another sample of images would change."
)


def _interval(row: Mapping[str, Any]) -> str:
    if math.isnan(row["low"]):
        return ""
    return f"{_decimals(100 * row['low'], 2, sign='+')} to {_decimals(100 * row['high'], 2, sign='+')}"


@cache
def published() -> tuple[Table, ...]:
    """The paper's own figures, all of them, for a grid whose pairs the paper does not have."""
    found = paper.calls_to_target().assign(shown=lambda table: table["calls"].map(_count))
    found["column"] = found["target"].map(lambda target: f"{100 * target:g}%")
    whole = paper.white_box()
    spreads = zip(whole["mean"], whole["std"], strict=True)
    whole = whole.assign(shown=[_spread(100 * mean, 100 * std, 2) for mean, std in spreads])
    whole["column"] = whole["n"].map(lambda n: f"n={n}")
    difference = paper.logit_correlation()
    difference = difference.assign(shown=difference["correlation_difference"].map(lambda value: _decimals(value, 3)))
    by_dimensions = paper.rkd_dimensions()
    by_dimensions = by_dimensions.assign(shown=by_dimensions["mean"].map(lambda mean: _decimals(100 * mean, 2)))
    kinds = [
        ("paper-table-1", "Teacher calls for a target test accuracy: table 1 of the paper", found),
        ("paper-table-2", "Test accuracy in percent of white-box methods: table 2 of the paper", whole),
        (
            "paper-table-3",
            "Inter-class logit correlations, student against teacher: table 3 of the paper",
            difference.assign(column="difference"),
        ),
        (
            "paper-figure-4",
            "Test accuracy in percent of RKD by dimensions: figure 4 of the paper",
            by_dimensions.assign(column="accuracy"),
        ),
    ]
    return tuple(Table(name, title, _spread_out(table), f"{_SOURCE}; CIFAR-100.") for name, title, table in kinds)


def all_tables(
    results: pd.DataFrame,
    curves: pd.DataFrame,
    targets: Iterable[float],
    descriptions: pd.DataFrame,
    method: str | None = None,
    plan: GridPlan | None = None,
) -> list[Table]:
    """Every table that these results can fill, in the order to read them.

    Args:
        curves: `accuracy_by_n` of the results, as for each table.
        descriptions: what `logits.described` returns.
        method: the label whose savings and advantages are told; None leaves those two out.
        plan: of the grid, for what rules bring; None leaves that out.
    """
    targets = list(targets)
    labels = set(results.loc[results["chosen"], "label"])
    makers: list[Callable[[], Table]] = []
    if targets:
        makers += [lambda: calls(results, curves, targets), lambda: savings(results, curves, targets)]
        asking = set(results.loc[results["chosen"] & (results["teacher_calls"] > 0), "label"])
        if method in asking:
            makers.append(lambda: savings(results, curves, targets, method))
    makers.append(lambda: accuracy(curves))
    if method is not None and method in labels:
        makers.append(lambda: advantage(results, method))
    makers.append(lambda: beyond(results))
    if plan is not None:
        makers += [lambda: rules(results, plan), lambda: rule_calls(results, plan, targets)]
    makers += [lambda: white_box(curves), lambda: dimensions(curves), lambda: correlation(descriptions)]
    return [table for table in (make() for make in makers) if len(table.frame)]


def _by_n(name: str, title: str, curves: pd.DataFrame) -> Table:
    theirs = [_of_paper(paper.white_box, value, "n") for value in ("mean", "std")]
    sizes = sorted(set(curves["n"]))
    rows = []
    for curve, group in curves.groupby(CURVE, sort=False):
        ours = {point["n"]: point for point in group.to_dict("records")}
        row = _named(curve)
        for n in sizes:
            point = ours.get(n, {"mean": math.nan, "std": math.nan})
            row[f"n={n}"] = _spread(100 * point["mean"], 100 * point["std"], 2)
            mean, std = (of.get((*_key(curve), n), math.nan) for of in theirs)
            row[f"n={n}{_PAPER}"] = _spread(100 * mean, 100 * std, 2)
        rows.append(row)
    note = f"Mean ± standard deviation over {counted_runs(curves)}."
    if 0 in sizes:
        note += " n=0: every labelled image of the store, and no call."
    return _table(name, title, rows, [f"n={n}" for n in sizes], note)


def _table(
    name: str,
    title: str,
    rows: list[dict[str, str]],
    headings: Iterable[str],
    note: str,
    *,
    paper_columns: Iterable[str] | None = None,
    last: Iterable[str] = (),
) -> Table:
    """A table without columns that say nothing: the paper's where it has no figure, the data set where there is one."""
    frame = pd.DataFrame(rows, columns=list(rows[0]) if rows else ["teacher", "student", "method", *headings, *last])
    published = [name for name in frame.columns if name.endswith(_PAPER)] if paper_columns is None else [*paper_columns]
    empty = [name for name in [*published, *last] if name in frame and not frame[name].any()]
    single = ["dataset"] if "dataset" in frame and frame["dataset"].nunique() <= 1 else []
    datasets = ", ".join(frame["dataset"].unique()) if "dataset" in frame else ""
    source = f"{_SOURCE}; CIFAR-100." if len([name for name in published if name not in empty]) else _NONE_OF_THESE
    said = [f"Ours: {datasets}." if datasets else "", note, source]
    return Table(name, title, frame.drop(columns=empty + single), " ".join(part for part in said if part))


def _named(curve: tuple[Any, ...]) -> dict[str, str]:
    return dict(zip(("teacher", "student", "dataset", "method"), map(str, curve), strict=False))


def _key(curve: tuple[Any, ...]) -> tuple[str, ...]:
    """What a pair, or a pair and a method, is compared by; the data set is told, not compared."""
    teacher, student, _, *label = curve
    return (network_key(teacher), network_key(student), *map(method_key, label))


@cache
def _of_paper(table: Callable[[], pd.DataFrame], value: str, *more: str) -> Mapping[tuple[Any, ...], float]:
    """A column of one of the paper's tables by pair, method and more."""
    return _lookup(table(), ("teacher", "student", "label", *more), value)


@cache
def _saved_in_paper(method: str | None) -> Mapping[tuple[Any, ...], float]:
    """What the paper's best method, or the one with this key, saves in percent, by pair and target."""
    # A method under a label of its own has no counterpart in the paper, and then none of its rows is beside it.
    if method is not None and method not in set(paper.calls_to_target()["label"]):
        return {}
    found = savings_of(paper.calls_to_target(), method)
    return _lookup(found, ("teacher", "student", "target"), "saved_percent")


def _lookup(table: pd.DataFrame, keys: tuple[str, ...], value: str) -> Mapping[tuple[Any, ...], float]:
    columns = [table[key].map(_places) if key == "target" else table[key] for key in keys]
    return dict(zip(zip(*columns, strict=True), table[value], strict=True))


def _places(target: float) -> int:
    """A target accuracy as a whole number of millionths, which can be a key."""
    return round(1e6 * target)


def _spread_out(table: pd.DataFrame) -> pd.DataFrame:
    """Rows teacher, student, method; a column for each value of `column`, in the order they come."""
    keys = [name for name in ("teacher", "student", "label") if name in table]
    columns = list(dict.fromkeys(table["column"]))
    wide = {key: dict(zip(of["column"], of["shown"], strict=True)) for key, of in table.groupby(keys, sort=False)}
    rows = [[*key, *(cells.get(column, "") for column in columns)] for key, cells in wide.items()]
    return pd.DataFrame(rows, columns=[*keys, *columns]).rename(columns={"label": "method"})


def _count(value: float) -> str:
    return _decimals(value, 0)


def _decimals(value: float, digits: int, sign: str = "") -> str:
    return "" if math.isnan(value) else f"{value:{sign}.{digits}f}"


def _spread(mean: float, std: float, digits: int) -> str:
    spread = "" if math.isnan(std) else f" ± {std:.{digits}f}"
    return f"{_decimals(mean, digits)}{spread}"
