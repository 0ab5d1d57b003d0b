"""The runs of a grid as one tidy table: a row a finished run, and what became of every planned one.

A grid's folder has a plan, `grid.json`, and a folder for each run; a run is finished when it has a `run.json`
(docs/run-folder.md). Both may come from elsewhere, so everything read from them is checked, and refused in a sentence.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import pandas as pd

from analysis.documents import (
    Malformed,
    mapping,
    number,
    objects,
    optional_whole,
    read_object,
    relative_path,
    text,
    unreadable,
    whole,
)
from ground.durable import replacing
from ground.errors import Diverged, InvalidInput
from models import canonical_name

PLAN = "grid.json"
FORMAT = 1
# What two runs share that differ in nothing but in what is chosen by validation.
CELL = ("teacher", "student", "dataset", "label", "n", "seed")

_PLAN_ADVICE = "give the folder of a grid that `ckd-pipeline run` has made"
RUN_ADVICE = "delete the folder of this run and run the grid again"
FAILURE = "failure.json"
RESULT = "run.json"

_accuracy = partial(number, most=1.0)
_positive = partial(whole, least=1)


def _optional_text(document: Mapping[str, Any], key: str) -> str:
    return "" if document.get(key) is None else text(document, key)


def _as_json(document: Mapping[str, Any], key: str) -> str:
    if key not in document:
        raise Malformed(f"it has no {key}")
    return json.dumps(document[key])


# Columns that are taken from run.json: name -> (how it is read, type of the column).
_Reader = Callable[[Mapping[str, Any], str], Any]
_SCALARS: dict[str, tuple[_Reader, str]] = {
    "teacher": (text, "str"),
    "student": (text, "str"),
    "dataset": (text, "str"),
    "method": (text, "str"),
    "n": (_positive, "int64"),
    "seed": (whole, "int64"),
    "lr": (number, "float64"),
    "momentum": (number, "float64"),
    "weight_decay": (number, "float64"),
    "batch_size": (_positive, "int64"),
    "student_view": (text, "str"),
    "precision": (text, "str"),
    "teacher_calls": (whole, "int64"),
    "test_accuracy": (_accuracy, "float64"),
    "best_val_accuracy": (_accuracy, "float64"),
    "last_test_accuracy": (_accuracy, "float64"),
    "evaluations": (whole, "int64"),
    "steps": (whole, "int64"),
    "seconds": (number, "float64"),
    "device": (text, "str"),
    "store_id": (text, "str"),
    "teacher_fingerprint": (text, "str"),
    "ledger_head": (_optional_text, "str"),
    "recipe": (_as_json, "str"),
    "versions": (_as_json, "str"),
}
_PROTOCOL: dict[str, tuple[_Reader, str]] = {
    "patience": (_positive, "int64"),
    "plateaus": (_positive, "int64"),
    "max_evals": (optional_whole, "Int64"),
}
COLUMNS: dict[str, str] = {
    "run": "str",
    "label": "str",
    **{name: kind for name, (_, kind) in _SCALARS.items()},
    **{name: kind for name, (_, kind) in _PROTOCOL.items()},
    "store": "str",
    "chosen": "bool",
}
STATES: dict[str, str] = {
    "run": "str",
    **{name: "int64" if name in ("n", "seed") else "str" for name in CELL},
    "state": "str",
    "error": "str",
}


def read_plan(folder: Path) -> dict[str, Any]:
    """What a grid has planned: the content of its `grid.json`.

    Raises:
        InvalidInput: it is absent, damaged, of another format, or has a path that leads out of the folder.
    """
    path = folder / PLAN
    plan = read_object(path, _PLAN_ADVICE)
    try:
        if plan.get("format") != FORMAT:
            raise Malformed(f"it is of format {str(plan.get('format'))[:20]!a}, this release reads {FORMAT}")
        _check_plan(plan, folder)
    except (Malformed, RecursionError) as error:
        raise unreadable(path, error, _PLAN_ADVICE) from error
    return plan


def collect(folder: Path) -> pd.DataFrame:
    """A row a finished run of the plan, in the plan's order.

    Accuracies are in [0, 1]; `store` is relative to the folder, so that a moved one reads the same; recipe
    and versions are JSON text. Of runs that differ in nothing but in what is chosen by validation, `chosen` marks the
    one with the best validation accuracy, the first among equals, once all of them are finished or have diverged: a
    learning rate at which a loss is not finite has lost the choice.

    Raises:
        InvalidInput: the plan or a run's `run.json` is damaged, or a run is not what was planned.
    """
    planned = read_plan(folder)["runs"]
    rows: list[dict[str, Any]] = []
    best: dict[tuple[Any, ...], int] = {}
    unfinished = set()
    for entry in planned:
        cell = tuple(entry[name] for name in CELL)
        path = folder / entry["run"] / RESULT
        if not path.exists():
            if not _has_diverged(folder / entry["run"]):
                unfinished.add(cell)
            continue
        row = _row(path, entry)
        kept = best.setdefault(cell, len(rows))
        rows.append(row)
        if row["best_val_accuracy"] > rows[kept]["best_val_accuracy"]:
            best[cell] = len(rows) - 1
    for cell, place in best.items():
        rows[place]["chosen"] = cell not in unfinished
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype(COLUMNS)


def chosen(results: pd.DataFrame) -> pd.DataFrame:
    """The runs that count: of those that differ in nothing but in what is chosen by validation, the best."""
    return results[results["chosen"]]


def states(folder: Path) -> pd.DataFrame:
    """A row a planned run, in the plan's order: finished, failed (with its error), begun or waiting.

    Raises:
        InvalidInput: the plan is damaged.
    """
    rows = []
    for entry in read_plan(folder)["runs"]:
        state, error = _state(folder / entry["run"])
        rows.append({**{name: entry[name] for name in STATES if name in entry}, "state": state, "error": error})
    return pd.DataFrame(rows, columns=list(STATES)).astype(STATES)


def save_results(folder: Path) -> pd.DataFrame:
    """Write `collect`'s table to `results.csv`, and to `results.parquet` where pyarrow is installed.

    Both are replaced atomically; where it is not installed, a `results.parquet` of earlier is deleted, for it would say
    something else.
    """
    results = collect(folder)
    with replacing(folder / "results.csv", binary=False) as file:
        results.to_csv(file, index=False, lineterminator="\n")
    parquet = folder / "results.parquet"
    if importlib.util.find_spec("pyarrow") is None:
        parquet.unlink(missing_ok=True)
    else:
        with replacing(parquet) as file:
            results.to_parquet(file, index=False, engine="pyarrow")
    return results


def _check_plan(plan: Mapping[str, Any], folder: Path) -> None:
    text(plan, "name")
    targets = plan.get("targets")
    if not isinstance(targets, list):
        raise Malformed("targets is no list")
    for target in targets:
        number({"a target": target}, "a target", most=1.0)
    whole(plan, "test_images")
    optional_whole(plan, "budget")
    for name in ("calls", "calls_without_store"):
        whole(mapping(plan, "cost"), name)
    for store in objects(plan, "stores"):
        for name in ("teacher", "dataset"):
            text(store, name)
        whole(store, "n")
        whole(store, "calls")
        relative_path(store, "store", folder)
    seen = set()
    for run in objects(plan, "runs"):
        for name in ("teacher", "student", "dataset", "label"):
            text(run, name)
        _positive(run, "n")
        whole(run, "seed")
        mapping(run, "settings")
        relative_path(run, "store", folder)
        place = PurePosixPath(relative_path(run, "run", folder))
        if place in seen:
            raise Malformed(f"it has the run {str(place)!a} twice")
        seen.add(place)


def _row(path: Path, entry: Mapping[str, Any]) -> dict[str, Any]:
    document = read_object(path, RUN_ADVICE)
    try:
        protocol = mapping(document, "protocol")
        row = {
            "run": entry["run"],
            "label": entry["label"],
            **{name: read(document, name) for name, (read, _) in _SCALARS.items()},
            **{name: read(protocol, name) for name, (read, _) in _PROTOCOL.items()},
            "store": entry["store"],
            "chosen": False,
        }
        _require_planned(row, entry)
    except (Malformed, RecursionError) as error:
        raise unreadable(path, error, RUN_ADVICE) from error
    return row


def _require_planned(row: Mapping[str, Any], entry: Mapping[str, Any]) -> None:
    """A grid that was changed, or a folder that was moved about, never mixes results of different settings."""
    for name in ("teacher", "student", "n", "seed"):
        found, planned = row[name], entry[name]
        if found != planned and _network(found) != _network(planned):
            raise Malformed(f"{name} is {found!a}, planned was {planned!a}")
    planned_settings = dict(entry["settings"])
    if planned_settings.get("student_view") == "auto":
        planned_settings.pop("student_view")
    found_settings = {**row, "recipe": json.loads(row["recipe"])}
    for name, planned in planned_settings.items():
        # `method` is as the grid writes it; what it came to is the recipe.
        if name != "method" and name in found_settings and found_settings[name] != planned:
            raise Malformed(f"{name} is not what was planned for this run")


def _network(name: Any) -> Any:
    """A network's name in the benchmark's spelling, and anything else as it is."""
    try:
        return canonical_name(name) if isinstance(name, str) else name
    except InvalidInput:
        return name


def _state(run: Path) -> tuple[str, str]:
    if (run / RESULT).exists():
        return "finished", ""
    if (run / FAILURE).exists():
        return "failed", _failure(run / FAILURE)
    return ("begun" if run.exists() else "waiting"), ""


def _has_diverged(run: Path) -> bool:
    try:
        return bool(read_object(run / FAILURE, "")["kind"] == Diverged.__name__)
    except (InvalidInput, KeyError):
        return False


def _failure(path: Path) -> str:
    """The sentence that a failed run left; a damaged one is told, for the other runs are to be seen all the same."""
    try:
        sentence = read_object(path, "run the grid again")["error"]
    except KeyError:
        return f"{str(path)!a} does not say why"
    except InvalidInput as error:
        return str(error)
    return "".join(character if character.isprintable() else " " for character in str(sentence))[:4096]
