"""The last sections of the page, what is on record: every run with its settings, and the teacher calls behind it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from analysis.content import Content
from analysis.figures import Pair, timeline_figure
from analysis.ledgers import StoreLedger, timeline
from analysis.page import Section, Terms
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
    short,
    shown,
    view_of_frame,
)
from storage.run_proof import ProvenBy

_SHOWN_DIGITS = 12


def runs_section(content: Content) -> Section:
    """Every run with its settings: those that differ as columns, those that do not once."""
    results = content.results
    alike = [name for name in _SETTINGS if results[name].nunique(dropna=False) == 1]
    named = {name: field for name, field in NAMED.items() if name not in alike} | _RESULTS
    differing = {name: field for name, field in _SETTINGS.items() if name not in alike and name not in named}
    fields = {**named, **differing, "run": Field("run", kind="code")}
    terms = [
        (_SETTINGS[name].title, _SETTINGS[name].write(results[name].iloc[0]))
        for name in alike
        if pd.notna(results[name].iloc[0]) and results[name].iloc[0] != ""
    ]
    recipes = results[["label", "method", "recipe"]].drop_duplicates()
    recipe_fields = {"label": METHOD, "method": Field("spec"), "recipe": Field("recipe")}
    return Section(
        name="runs",
        title="Every run and its settings",
        paragraphs=_warnings(results),
        lists=[Terms("The same for every run", terms)] if terms else [],
        views=[
            view_of_frame("runs", "Finished runs", results, fields, pairs=content.pairs, searchable=True, note=_CHOSEN)
        ],
        folded=[view_of_frame("recipes", "What each method is made of", recipes, recipe_fields)],
        fold_title="The losses behind each method",
    )


def _warnings(results: pd.DataFrame) -> list[str]:
    """What is to be known before anything here is believed."""
    sentences = {
        "are not proven: nothing on record says that their results, metrics and weights are what they were when the "
        "run ended. Ask about one with: ckd-train verify RUN --store STORE": results["proven"] == ProvenBy.NOTHING,
        "learned from a proxy that nothing vouched for, so that what it was trained on is only what it says. Which, "
        "results.csv says (unproven_proxies)": results["unproven_proxies"] != "",
    }
    return [
        f"{int(concerned.sum()):,} of {len(results):,} finished runs {text}"
        for text, concerned in sentences.items()
        if concerned.any()
    ]


_CHOSEN = (
    "Chosen: of the runs that differ only in what is picked by validation, such as the learning rate, the one with the "
    "best validation accuracy; every mean and figure is of chosen runs."
)


_CHARGED = (
    "Every teacher call is charged in its store's ledger before the teacher runs. Spent is committed, reserved and "
    "lost together. Check a ledger's chain with: ckd-cache ledger verify --store STORE"
)


def ledger_section(content: Content) -> Section:
    """What the stores' ledgers say, and the calls behind each run."""
    read = [ledger for ledger in content.ledgers if ledger.summary is not None]
    figures = []
    steps = timeline(read)
    if len(steps):
        budgets = {
            ledger.store: ledger.summary.budget
            for ledger in read
            if ledger.summary and ledger.summary.budget is not None
        }
        fields = {
            "store": Field("store"),
            "at": Field("time (UTC)"),
            "calls": Field("calls so far", grouped, numeric=True),
        }
        figures.append(shown(timeline_figure(steps, budgets), fields, label=None))
    return Section(
        name="ledger",
        title="The ledger: what the teacher calls were",
        paragraphs=[_CHARGED],
        figures=figures,
        views=[_totals(content.ledgers), _run_calls(content)],
    )


def _totals(ledgers: Sequence[StoreLedger]) -> View:
    numbers = ("committed", "lost", "reserved", "spent", "budget", "remaining")
    rows = []
    for ledger in ledgers:
        cells = [Cell(ledger.store, kind="code"), Cell(ledger.teacher)]
        if ledger.summary is None:
            cells += [Cell("unknown", None, "empty") for _ in (*numbers, "seconds")] + [Cell(""), Cell("")]
        else:
            values = [getattr(ledger.summary, name) for name in numbers]
            cells += [Cell("none", None, "empty") if value is None else Cell(grouped(value), value) for value in values]
            cells.append(Cell(f"{ledger.seconds:,.1f}", ledger.seconds))
            cells.append(Cell("; ".join(_purpose(*item) for item in ledger.by_purpose.items())))
            cells.append(Cell(ledger.summary.head, kind="code"))
        rows.append(Row(cells))
    columns = [
        Column("store"),
        Column("teacher"),
        *(Column(name, numeric=True) for name in (*numbers, "teacher seconds")),
    ]
    return View(
        name="ledgers",
        title="Teacher calls of each store",
        columns=[*columns, Column("spent on"), Column("head")],
        rows=rows,
    )


def _purpose(purpose: str, statuses: Mapping[str, int]) -> str:
    return f"{purpose}: {', '.join(f'{count:,} {status}' for status, count in statuses.items())}"


def _run_calls(content: Content) -> View:
    """For every run the calls behind it, and how to list them."""
    ledgers = {ledger.store: ledger for ledger in content.ledgers}
    rows = []
    for run in content.results.to_dict("records"):
        ledger = ledgers.get(run["store"])
        pair = Pair(run["teacher"], run["student"], run["dataset"])
        name = pair.name if pair in content.pairs else None
        rows.append(Row(_call_cells(run, ledger), run["label"], name))
    heads = ("method", "n", "seed", "calls", "rows and views", "store", "ledger at", "entry", "traced by", "run")
    numeric = ("n", "seed", "calls", "entry")
    return View(
        name="calls-of-runs",
        title="The calls behind each run",
        columns=[Column(head, head in numeric) for head in heads],
        rows=rows,
        note="Commands are for a shell in the grid's folder. Ledger at: its newest entry when the run read the store.",
        searchable=True,
    )


def _call_cells(run: Mapping[str, Any], ledger: StoreLedger | None) -> list[Cell]:
    n, calls = run["n"], run["teacher_calls"]
    store, place = Cell(run["store"], kind="code"), Cell(run["run"], kind="code")
    numbers = [Cell(grouped(n), n), Cell(str(run["seed"]), run["seed"]), Cell(grouped(calls), calls)]
    cells = [Cell(run["label"]), *numbers]
    if not calls:
        return [*cells, Cell("none: labels only", kind="empty"), store, Cell(""), Cell(""), Cell(""), place]
    entry = None if ledger is None else ledger.entries.get(run["ledger_head"])
    unknown = Cell("not there", None, "empty") if ledger is not None and not ledger.problem else Cell("")
    command = f"ckd-cache ledger trace {shlex.quote(run['run'])} --store {shlex.quote(run['store'])}"
    return [
        *cells,
        Cell(f"first {n:,} rows, {calls // n} {'view' if calls == n else 'views'} each"),
        store,
        Cell(run["ledger_head"][:_SHOWN_DIGITS], kind="code"),
        unknown if entry is None else Cell(grouped(entry), entry),
        Cell(command, kind="code"),
        place,
    ]


def _pairs_of_json(value: str) -> str:
    """JSON text of an object or a list as words."""
    document = json.loads(value)
    if isinstance(document, dict):
        return ", ".join(f"{name} {part}" for name, part in document.items())
    return ", ".join(map(str, document)) if isinstance(document, list) else value


_WITNESSES = {
    ProvenBy.LEDGER: "the ledger",
    ProvenBy.KEY: "proof.json, sealed with the key",
    ProvenBy.DIGEST: "proof.json, not sealed",
}
_RESULTS = {
    "n": N,
    "seed": SEED,
    "test_accuracy": Field("test, %", hundredths, numeric=True),
    "best_val_accuracy": Field("best val, %", hundredths, numeric=True),
    "teacher_calls": Field("teacher calls", grouped, numeric=True),
    "chosen": Field("chosen", lambda is_chosen: "yes" if is_chosen else "no"),
    "proven": Field("proven", lambda by: "NOT PROVEN" if by == ProvenBy.NOTHING else f"by {_WITNESSES[by]}"),
}
_SETTINGS = {
    "teacher": Field("teacher"),
    "student": Field("student"),
    "dataset": Field("data set"),
    "sample_seed": SAMPLE,
    "lr": Field("lr", short, numeric=True),
    "batch_size": Field("batch", numeric=True),
    "student_view": Field("student view"),
    "average": Field("average", short, numeric=True),
    "schedule": Field("schedule"),
    "patience": Field("patience", numeric=True),
    "plateaus": Field("plateaus", numeric=True),
    "max_evals": Field("most evaluations", numeric=True),
    "steps_per_eval": Field("steps an evaluation", numeric=True),
    "momentum": Field("momentum", short, numeric=True),
    "weight_decay": Field("weight decay", short, numeric=True),
    "precision": Field("precision"),
    "device": Field("device"),
    "evaluations": Field("evaluations", numeric=True),
    "steps": Field("steps", grouped, numeric=True),
    "seconds": Field("seconds", lambda seconds: f"{seconds:,.0f}", numeric=True),
    "last_test_accuracy": Field("last test, %", hundredths, numeric=True),
    "method": Field("spec"),
    "rest": Field("rest"),
    "rest_weights": Field("weights of the rest"),
    "weights": Field("weights"),
    "answered_rows": Field("rows with an answer", grouped, numeric=True),
    "labelled_rows": Field("by label alone", grouped, numeric=True),
    "unlabelled_rows": Field("without either", grouped, numeric=True),
    "store": Field("store", kind="code"),
    "versions": Field("versions", _pairs_of_json),
}
