"""The runs of a grid as one tidy table: a row a finished run, and what became of every planned one.

A grid's folder has a plan (`analysis.grid_plan`) and a folder for each run (`storage.run_record`). Both may come from
elsewhere, so everything read from them is checked, and refused in a sentence.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pandas as pd
from msgspec import UnsetType, structs

from analysis.grid_plan import GridPlan, GridRun
from ground.cells import neutral
from ground.documents import Malformed, unreadable
from ground.durable import replacing
from ground.errors import CKDError, Diverged, InvalidInput
from models.names import identity_name
from storage.run_proof import ProvenBy, RunProofs
from storage.run_record import RUN_FILE, Failure, RunRecord, has_failed, is_finished

# What two runs share that differ in nothing but in what is chosen by validation.
# A sample seed is unknown where nothing of an earlier release says it.
CELL = ("teacher", "student", "dataset", "label", "n", "sample_seed", "seed")

RUN_ADVICE = "delete the folder of this run and run the grid again"

# Columns that are taken from run.json -> their type.
_FACTS = {
    "teacher": "str",
    "student": "str",
    "dataset": "str",
    "method": "str",
    "n": "int64",
    "sample_seed": "Int64",
    "seed": "int64",
    "lr": "float64",
    "momentum": "float64",
    "weight_decay": "float64",
    "batch_size": "int64",
    "student_view": "str",
    "average": "float64",
    "precision": "str",
    "teacher_calls": "int64",
    "test_accuracy": "float64",
    "best_val_accuracy": "float64",
    "last_test_accuracy": "float64",
    "evaluations": "int64",
    "steps": "int64",
    "seconds": "float64",
    "device": "str",
    "store_id": "str",
    "teacher_fingerprint": "str",
    "ledger_head": "str",
    "recipe": "str",
    "versions": "str",
}
_PROTOCOL = {
    "patience": "int64",
    "plateaus": "int64",
    "max_evals": "Int64",
    "schedule": "str",
    "steps_per_eval": "Int64",
}
# What runs of earlier releases do not say.
_ROWS_USED = {"answered_rows": "Int64", "labelled_rows": "Int64", "unlabelled_rows": "Int64"}
# Between losses, and between digests, where a run has several.
REST_SEPARATOR = "; "
COLUMNS: dict[str, str] = {
    "run": "str",
    "label": "str",
    **_FACTS,
    **_PROTOCOL,
    "rest": "str",
    "rest_weights": "str",
    **_ROWS_USED,
    "unproven_proxies": "str",
    "weights": "str",
    "store": "str",
    "chosen": "bool",
    "proven": "str",
}
STATES: dict[str, str] = {
    "run": "str",
    **{name: _FACTS.get(name, "str") for name in CELL},
    "state": "str",
    "error": "str",
}


def collect(folder: Path) -> pd.DataFrame:
    """A row a finished run of the plan, in the plan's order.

    Accuracies are in [0, 1]; `store` is relative to the folder, so that a moved one reads the same; recipe
    and versions are JSON text. Of runs that differ in nothing but in what is chosen by validation, `chosen` marks the
    one with the best validation accuracy, the first among equals, once all of them are finished or have diverged: a
    learning rate at which a loss is not finite has lost the choice. `rest` is what was learned from images that the
    teacher was not asked about, `rest_weights` what each of those losses weighed once it had risen, answered_rows,
    labelled_rows and unlabelled_rows are how many were used with an answer, by their label, and without either.
    `unproven_proxies` are the digests of students that answered in the teacher's place and that nothing vouched for.
    `weights` are the losses whose weight validation chooses, as this run has them.
    `proven` says what vouches for the results, a `storage.run_proof.ProvenBy`.

    Raises:
        InvalidInput: the plan or a run's `run.json` is damaged, or a run is not what was planned.
    """
    rows: list[dict[str, Any]] = []
    proofs = RunProofs()
    best: dict[tuple[Any, ...], int] = {}
    unfinished = set()
    for planned in GridPlan.load(folder).runs:
        cell = tuple(getattr(planned, name) for name in CELL)
        if not is_finished(folder / planned.run):
            if not has_diverged(folder / planned.run):
                unfinished.add(cell)
            continue
        row = _row(folder / planned.run, planned) | {"proven": str(_proven(proofs, folder, planned))}
        kept = best.setdefault(cell, len(rows))
        rows.append(row)
        if row["best_val_accuracy"] > rows[kept]["best_val_accuracy"]:
            best[cell] = len(rows) - 1
    for cell, place in best.items():
        rows[place]["chosen"] = cell not in unfinished
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype(COLUMNS)


def undecided(folder: Path) -> set[str]:
    """Planned runs of which, and of those that differ in nothing but in what is chosen by validation, none counts.

    Raises:
        InvalidInput: as `collect`.
    """
    counts = set(chosen(collect(folder))["run"])
    planned = {run.run: tuple(getattr(run, name) for name in CELL) for run in GridPlan.load(folder).runs}
    decided = {cell for run, cell in planned.items() if run in counts}
    return {run for run, cell in planned.items() if cell not in decided}


def chosen(results: pd.DataFrame) -> pd.DataFrame:
    """The runs that count: of those that differ in nothing but in what is chosen by validation, the best."""
    return results[results["chosen"]]


def states(folder: Path) -> pd.DataFrame:
    """A row a planned run, in the plan's order: finished, failed (with its error), begun or waiting.

    Raises:
        InvalidInput: the plan is damaged.
    """
    rows = []
    for planned in GridPlan.load(folder).runs:
        state, error = _state(folder / planned.run)
        rows.append({**{name: getattr(planned, name) for name in ("run", *CELL)}, "state": state, "error": error})
    return pd.DataFrame(rows, columns=list(STATES)).astype(STATES)


def save_results(folder: Path) -> pd.DataFrame:
    """Write `collect`'s table to `results.csv`, and to `results.parquet` where pyarrow is installed.

    In the CSV no text begins a formula (`ground.cells`); Parquet has them as they are.

    Both are replaced atomically; where it is not installed, a `results.parquet` of earlier is deleted, for it would say
    something else.
    """
    results = collect(folder)
    with replacing(folder / "results.csv", binary=False) as file:
        results.map(neutral).to_csv(file, index=False, lineterminator="\n")
    parquet = folder / "results.parquet"
    if importlib.util.find_spec("pyarrow") is None:
        parquet.unlink(missing_ok=True)
    else:
        with replacing(parquet) as file:
            results.to_parquet(file, index=False, engine="pyarrow")
    return results


def _row(folder: Path, planned: GridRun) -> dict[str, Any]:
    record = RunRecord.load(folder, RUN_ADVICE)
    try:
        _require_planned(record, planned)
    except Malformed as error:
        raise unreadable(folder / RUN_FILE, error, RUN_ADVICE) from error
    return {
        "run": planned.run,
        "label": planned.label,
        **{name: getattr(record, name) for name in _FACTS},
        "sample_seed": _known(record.sample_seed, planned.sample_seed),
        "average": _known(record.average, 0.0),
        **{name: _known(getattr(record.protocol, name)) for name in _PROTOCOL},
        "schedule": _known(record.protocol.schedule, "plateau"),
        "rest": REST_SEPARATOR.join(_known(record.rest, ())),
        "rest_weights": REST_SEPARATOR.join(
            f"{name}={weight}" for name, weight in _known(record.rest_weights, {}).items()
        ),
        **{name: _known(getattr(record, name)) for name in _ROWS_USED},
        "unproven_proxies": REST_SEPARATOR.join(_known(record.unproven_proxies, ())),
        "weights": REST_SEPARATOR.join(planned.weights),
        "ledger_head": record.ledger_head or "",
        "recipe": json.dumps(record.recipe),
        "versions": json.dumps(record.versions),
        "store": planned.store,
        "chosen": False,
    }


def _known(value: Any, otherwise: Any = None) -> Any:
    """What a run says, or what it is taken to be where runs of earlier releases do not say it."""
    return otherwise if isinstance(value, UnsetType) else value


def _proven(proofs: RunProofs, folder: Path, planned: GridRun) -> ProvenBy:
    try:
        return proofs.of(folder / planned.run, folder / planned.store).by
    except (CKDError, OSError):  # what cannot be read is not proven, and the others are to be seen all the same
        return ProvenBy.NOTHING


def _require_planned(record: RunRecord, planned: GridRun) -> None:
    """A grid that was changed, or a folder that was moved about, never mixes results of different settings."""
    for name in ("teacher", "student", "n", "seed"):
        found, wanted = getattr(record, name), getattr(planned, name)
        if found != wanted and _network(found) != _network(wanted):
            raise Malformed(f"{name} is {found!a}, planned was {wanted!a}")
    if planned.sample_seed not in (None, record.sample_seed) and not isinstance(record.sample_seed, UnsetType):
        raise Malformed(f"sample_seed is {record.sample_seed}, planned was {planned.sample_seed}")
    found_settings = structs.asdict(record) | structs.asdict(record.protocol)
    for name, wanted in planned.settings.items():
        # `method` is as the grid writes it; what it came to is the recipe. A view that was to be chosen has been.
        is_open = name == "method" or (name, wanted) == ("student_view", "auto")
        if not is_open and name in found_settings and found_settings[name] != wanted:
            raise Malformed(f"{name} is not what was planned for this run")


def _network(name: Any) -> Any:
    """What runs and stores know a network by, of any spelling or path of it, and anything else as it is."""
    try:
        return identity_name(name) if isinstance(name, str) else name
    except InvalidInput:
        return name


def _state(run: Path) -> tuple[str, str]:
    if is_finished(run):
        return "finished", ""
    if has_failed(run):
        return "failed", _failure(run)
    return ("begun" if run.exists() else "waiting"), ""


def has_diverged(run: Path) -> bool:
    """Whether a run failed since a loss or a weight was not finite."""
    try:
        return Failure.load(run, RUN_ADVICE).kind == Diverged.__name__
    except InvalidInput:
        return False


def _failure(run: Path) -> str:
    """The sentence that a failed run left; a damaged one is told, for the other runs are to be seen all the same."""
    try:
        return Failure.load(run, "run the grid again").sentence
    except InvalidInput as error:
        return str(error)
