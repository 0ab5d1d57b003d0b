"""The sections of the report's page, from the question to the ledger."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd

from analysis.advantage import advantages
from analysis.answer import percent
from analysis.brought import CHOSEN_BY
from analysis.content import Content
from analysis.curves import averaged_over, counted_runs, num_samples, of_several_samples
from analysis.figures import (
    Pair,
    accuracy_figure,
    advantage_figure,
    flatness_figure,
    of_pair,
    pairs_of,
)
from analysis.labels_only import of_labels_alone, of_samples
from analysis.logits import flatness
from analysis.page import Section
from analysis.records import ledger_section, runs_section
from analysis.views import (
    METHOD,
    NAMED,
    SAMPLE,
    SEED,
    Cell,
    Column,
    Field,
    N,
    Row,
    View,
    grouped,
    hundredths,
    shown,
    signed,
    view_of_frame,
    view_of_table,
)

# Tables of what rules bring.
_OF_RULES = ("rules", "rule-calls")
# From this many rows on, a table has a field to find some in.
_MANY_ROWS = 12


def sections_of(content: Content) -> list[Section]:
    """All of them, in the order of the page."""
    return [
        _question(content),
        _missing(content),
        _accuracy(content),
        _advantage(content),
        _beside_paper(content),
        *_flatness(content),
        *_purchases(content),
        runs_section(content),
        ledger_section(content),
    ]


def facts(content: Content) -> list[tuple[str, str]]:
    """The grid in a few terms."""
    cost, results = content.plan.cost, content.results
    seeds, samples = results["seed"].nunique(), num_samples(results["sample_seed"])
    sizes = sorted(of_samples(results)["n"].unique()) or [0]
    return [
        ("runs finished", f"{len(results):,} of {len(content.states):,}"),
        ("teacher → student", "; ".join(pair.text for pair in content.pairs)),
        ("data set", ", ".join(dict.fromkeys(pair.dataset for pair in content.pairs))),
        ("methods", f"{len(content.looks)}"),
        ("n", f"{sizes[0]:,} to {sizes[-1]:,}, {len(sizes)} values" if len(sizes) > 1 else f"{sizes[0]:,}"),
        *([("samples of images", f"{samples}")] if samples > 1 else []),
        ("seeds", f"{seeds}"),
        ("teacher calls of the grid", f"{cost.calls:,}"),
        ("without the store", f"{cost.calls_without_store:,}"),
    ]


def _question(content: Content) -> Section:
    found = content.answer
    wanted = " and ".join(map(percent, found.targets))
    whose = (
        f"The grid names no target accuracy; {wanted} are chosen here, where the curves have most to say."
        if found.chosen_here
        else f"The grid asks for {wanted}."
    )
    whose_calls = "those of one sample, " if num_samples(content.results["sample_seed"]) > 1 else ""
    how = (
        f"Test accuracy is the mean over {averaged_over(content.curves)}; calls are {whose_calls}interpolated between "
        "the two neighbouring n that bracket a target. Statements compare all methods that ask a teacher, whatever the "
        "filters show."
    )
    savings = [view_of_table(table, content.pairs, label=None) for table in content.tables if table.name == "savings"]
    return Section(
        name="answer",
        title="Which method needs how many teacher calls?",
        paragraphs=[*_brought(content), f"{whose} {how}"],
        statements=found.statements,
        views=[_calls_view(content), *savings],
    )


def _brought(content: Content) -> list[str]:
    """What the calls brought beyond labels alone, where that was measured."""
    return [f"{' '.join(content.brought)} {CHOSEN_BY}"] if content.brought else []


def _calls_view(content: Content) -> View:
    """A row a method and pair, a column a target; what is empty says why."""
    calls, several = content.answer.calls, len(content.pairs) > 1
    best = {(*pair, target): label for *pair, target, label in _best(content.answer.saved)}
    rows = []
    for pair in content.pairs:
        ours = of_pair(calls, pair)
        for label in dict.fromkeys(ours["label"]):
            found = {row["target"]: row for row in ours[ours["label"] == label].to_dict("records")}
            cells = [Cell(label)]
            for target in content.answer.targets:
                is_best = best.get((pair.teacher, pair.student, pair.dataset, target)) == label
                cells.append(_calls_cell(found[target], is_best))
            rows.append(Row(([Cell(pair.text)] if several else []) + cells, label, pair.name))
    alone = list(dict.fromkeys(of_labels_alone(content.results)["label"]))
    labels = f" {', '.join(alone)}: every labelled image of the store, 0 calls." if alone else ""
    targets = [Column(f"calls for {percent(target)}", numeric=True) for target in content.answer.targets]
    return View(
        name="calls-for-targets",
        title="Teacher calls for a target test accuracy",
        columns=[*([Column("teacher → student")] if several else []), Column("method"), *targets],
        rows=rows,
        note="Bold: the fewest. One call is one view of one image; methods without a teacher make none, and for them "
        f"n is the number of labelled images.{labels}",
    )


def _best(saved: pd.DataFrame) -> Iterator[tuple[Any, ...]]:
    known = saved[saved["calls"].notna()]
    yield from known[["teacher", "student", "dataset", "target", "best"]].itertuples(index=False, name=None)


def _calls_cell(row: Mapping[str, Any], is_best: bool) -> Cell:
    if row["why_empty"]:
        return Cell(row["why_empty"], None, "empty")
    if row["calls"] == 0:
        return Cell("0", 0.0, "best")
    if not row["asks_teacher"]:
        return Cell(f"0 (n = {row['calls']:,.0f})", 0.0)
    return Cell(f"{row['calls']:,.0f}", row["calls"], "best" if is_best else "")


def _missing(content: Content) -> Section:
    sentences = content.missing()
    unfinished = content.states[content.states["state"] != "finished"]
    fields = {
        "state": Field("state"),
        **NAMED,
        "n": N,
        **_sample_field(content.states["sample_seed"]),
        "seed": SEED,
        "error": Field("error"),
        "run": Field("run", kind="code"),
    }
    view = view_of_frame(
        "unfinished",
        "Runs that are not finished",
        unfinished,
        fields,
        pairs=content.pairs,
        searchable=len(unfinished) > _MANY_ROWS,
    )
    return Section(
        name="missing",
        title="What is missing",
        paragraphs=(
            sentences or [f"Nothing: all {len(content.states):,} planned runs are finished, and every ledger is there."]
        )
        + content.not_planned(),
        warning=bool(sentences),
        views=[view] if len(unfinished) else [],
    )


def _accuracy(content: Content) -> Section:
    figures = []
    for pair in pairs_of(of_samples(content.curves)):
        asking = of_pair(content.results, pair).query("teacher_calls > 0")
        calls = dict(zip(asking["n"], asking["teacher_calls"], strict=True))
        figure = accuracy_figure(content.curves, pair, content.looks, calls)
        fields = {
            "label": METHOD,
            "n": N,
            "mean": Field("test accuracy, %", hundredths, numeric=True),
            "std": Field(f"std over {averaged_over(content.curves)}", hundredths, numeric=True),
            **_count_fields(content.curves),
        }
        figures.append(shown(figure, fields))
    by = "teacher calls" if content.results["teacher_calls"].any() else "n"
    alone = " The line across is labels alone, with its band." if len(of_labels_alone(content.curves)) else ""
    how = (
        f"Mean over {counted_runs(content.curves)}; bars are one standard deviation. Methods of the same n are drawn "
        f"side by side.{alone}"
    )
    return Section(
        name="accuracy",
        title=f"Test accuracy by {by}",
        paragraphs=[how],
        figures=figures,
    )


def _advantage(content: Content) -> Section:
    method = content.answer.method
    alike = "n, sample and seed" if num_samples(content.results["sample_seed"]) > 1 else "n and seed"
    of_all = advantages(content.results, method)
    scopes: list[tuple[Pair | None, pd.DataFrame]] = [(None, of_all)]
    if len(content.pairs) > 1:
        having = [pair for pair in content.pairs if method in set(of_pair(content.curves, pair)["label"])]
        scopes += [(pair, advantages(of_pair(content.results, pair), method)) for pair in having]
    fields = {
        "baseline": Field("against"),
        "mean": Field("advantage, points", signed, numeric=True),
        "low": Field("from", signed, numeric=True),
        "high": Field("to", signed, numeric=True),
        "pairs": Field("paired runs", numeric=True),
    }
    figures = []
    for pair, found in scopes:
        name = "advantage" if pair is None else f"advantage-{pair.name}"
        if found["pairs"].sum():
            figure = advantage_figure(found, method, content.looks, pair, name)
            figures.append(shown(figure, fields, label="baseline"))
    views = [
        view_of_table(table, content.pairs, label="against") for table in content.tables if table.name == "advantage"
    ]
    views += [view_of_table(table, content.pairs) for table in content.tables if table.name == "beyond-labels"]
    how = (
        f"Mean difference in test accuracy between {method} and each other method, over runs of the same pair, "
        f"{alike}, in percentage points, with a 95 % bootstrap interval."
    )
    return Section(
        name="advantage",
        title=f"Advantage of {method}",
        paragraphs=[how],
        figures=figures,
        views=views,
    )


def _beside_paper(content: Content) -> Section:
    elsewhere = ("savings", "advantage", "beyond-labels", *_OF_RULES)
    views = [view_of_table(table, content.pairs) for table in content.tables if table.name not in elsewhere]
    how = (
        "The tables of the paper with these runs in them; the paper's own numbers stand beside ours where it has the "
        "same teacher, student and method."
    )
    return Section(
        name="paper",
        title="Beside the paper",
        paragraphs=[how],
        views=views,
        folded=[view_of_table(table, (), label=None) for table in content.published],
        fold_title="All figures the paper published",
    )


def _purchases(content: Content) -> list[Section]:
    """What rules bought, where any did, and what that brought over buying at random."""
    views = [view_of_table(table, content.pairs) for table in content.tables if table.name in _OF_RULES]
    if not content.purchases.empty:
        fields = {
            "store": Field("store", kind="code"),
            "rule": Field("rule"),
            "first": Field("from row", grouped, numeric=True),
            "end": Field("to before", grouped, numeric=True),
            "classes": Field("classes", lambda count: f"{count:.0f}", numeric=True),
            "most": Field("share of the commonest, %", hundredths, numeric=True),
            "accuracy": Field("teacher's accuracy there, %", hundredths, numeric=True),
        }
        views.append(view_of_frame("purchases", "Rows by rule", content.purchases, fields, label=None))
    how = (
        "Each rule chose among the same images, in a round for each n. How evenly it took the classes, and how often "
        "the teacher was right on what it took, say what kind of images it looks for; ckd-cache sheet shows them."
    )
    if not views:
        return []
    return [Section(name="bought", title="What each rule bought, and brought", paragraphs=[how], views=views)]


def _flatness(content: Content) -> list[Section]:
    if content.descriptions.empty:
        return []
    values = flatness(content.descriptions)
    fields = {
        "label": Field("network"),
        "rank": Field("place", numeric=True),
        "value": Field("share of the largest", lambda value: f"{value:.5f}", numeric=True),
        **_count_fields(values),
    }
    figures = [shown(flatness_figure(values, pair, content.looks), fields) for pair in pairs_of(values)]
    images = ", ".join(str(count) for count in sorted(content.descriptions["images"].unique()))
    how = (
        f"Singular values of the centred logits of {images} test images, as shares of the largest: the slower they "
        "fall, the flatter."
    )
    return [
        Section(
            name="flatness",
            title="Flatness of the logits",
            paragraphs=[how],
            figures=figures,
        )
    ]


def _count_fields(means: pd.DataFrame) -> dict[str, Field]:
    """How many seeds, and samples where there are several, a mean is over."""
    samples = {"samples": Field("samples", numeric=True)} if of_several_samples(means) else {}
    return {**samples, "seeds": Field("seeds", numeric=True)}


def _sample_field(sample_seeds: pd.Series) -> dict[str, Field]:
    """The sample of a run, where there are several."""
    return {"sample_seed": SAMPLE} if num_samples(sample_seeds) > 1 else {}
