"""Grids that nobody trained: real small stores with real ledgers, and run folders with results from a formula.

A method's accuracy grows by the same for each doubling of n, and a sample and a seed move it up or down, so what
follows from the runs can be worked out by hand.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks.stand_ins.random_store import make_store
from storage.ledger import Ledger
from storage.manifest import Manifest
from storage.store_folder import LEDGER_FILE

TEACHER, DATASET = "wrn_40_2", "random"
STORE = f"stores/{TEACHER}-{DATASET}"
VANILLA = "vanilla"
ALL_LABELS = "vanilla, all labels"
# Labelled rows of the store that the teacher was not asked about, whatever n.
REST = 100
GROWTH, SEED_STEP, SAMPLE_STEP = 0.05, 0.01, 0.03
DEFAULT_BASES = {VANILLA: 0.20, "kd": 0.30, "ckd": 0.36}


def accuracy(base: float, n: int, smallest: int, seed: int, seeds: int) -> float:
    """Seeds lie evenly around the mean, which is `base` at the smallest n."""
    return base + GROWTH * math.log2(n / smallest) + SEED_STEP * (seed - (seeds - 1) / 2)


def make_grid(
    folder: Path,
    *,
    bases: Mapping[str, float] = DEFAULT_BASES,
    students: Sequence[str] = ("resnet8",),
    sizes: Sequence[int] = (8, 16, 32),
    seeds: int = 3,
    samples: int = 1,
    rates: Sequence[float] = (0.05,),
    targets: Sequence[float] = (0.43,),
    budget: int | None = 40,
    store_rows: int | None = None,
    with_logits: bool = False,
    alone: float | None = None,
    with_labels: Collection[str] = (),
) -> Path:
    """A finished grid.

    Args:
        bases: label -> test accuracy at the smallest n.
        rates: learning rates to choose from; the first is the best.
        samples: of images, a store each; they lie evenly around the mean as seeds do.
        store_rows: of each store; None for the largest n.
        alone: test accuracy of labels alone, whose runs have n = 0; None for a grid without them.
        with_labels: those of the labels that learn from the rest's labels too.
    """
    largest = max(sizes) if store_rows is None else store_rows
    stores = [_Store.make(folder, sample, largest, budget) for sample in range(samples)]
    runs = []
    curves = {label: (base, tuple(sizes)) for label, base in bases.items()}
    curves |= {} if alone is None else {ALL_LABELS: (alone, (0,))}
    for student in students:
        for label, (base, numbers) in curves.items():
            for n in numbers:
                for (sample, store), seed in product(enumerate(stores), range(seeds)):
                    for place, lr in enumerate(rates):
                        where = f"runs/{TEACHER}-{student}/{len(runs):04d}-n{n}-seed{seed}"
                        entry = {"run": where, "teacher": TEACHER, "student": student, "dataset": DATASET}
                        entry |= {"store": store.name, "label": label, "n": n, "sample_seed": sample, "seed": seed}
                        entry["settings"] = {"lr": lr}
                        test = accuracy(base, n or min(sizes), min(sizes), seed, seeds) - 0.02 * place
                        test += SAMPLE_STEP * (sample - (samples - 1) / 2)
                        document = _run(folder, entry, store, lr, test)
                        if alone is not None:
                            document |= _rows_used(n, label in with_labels)
                        (folder / where).mkdir(parents=True)
                        _write(folder / where / "run.json", document)
                        if with_logits and not label.startswith(VANILLA):
                            _write(folder / where / "logits.json", _logits(base, seed))
                        runs.append(entry)
    facts = {"teacher": TEACHER, "dataset": DATASET, "n": largest, "calls": largest}
    planned = [facts | {"store": store.name} for store in stores]
    plan = {"format": 1, "name": "fabricated", "targets": list(targets), "test_images": 0, "budget": budget}
    cost = {"calls": samples * largest, "calls_without_store": 1234}
    plan |= {"stores": planned, "cost": cost, "runs": runs}
    _write(folder / "grid.json", plan)
    return folder


def change_plan(folder: Path, **changes: Any) -> None:
    """Other values in `grid.json`."""
    path = folder / "grid.json"
    _write(path, json.loads(path.read_text()) | changes)


def planned_runs(folder: Path) -> list[dict[str, Any]]:
    """What `grid.json` says of each run."""
    runs: list[dict[str, Any]] = json.loads((folder / "grid.json").read_text())["runs"]
    return runs


def change_run(folder: Path, run: str, **changes: Any) -> None:
    """Other values in a run's `run.json`."""
    path = folder / run / "run.json"
    _write(path, json.loads(path.read_text()) | changes)


def unfinish(folder: Path, run: str, error: str | None = None) -> None:
    """Take a run's result away; with an error it has failed."""
    (folder / run / "run.json").unlink()
    if error is not None:
        failure = {"error": error, "kind": "Diverged", "at": "2026-11-21T12:00:00+00:00"}
        _write(folder / run / "failure.json", failure)


@dataclass(frozen=True, slots=True)
class _Store:
    """A store of the grid, and the head of its ledger."""

    name: str
    id: str
    head: str

    @classmethod
    def make(cls, folder: Path, sample: int, rows: int, budget: int | None) -> _Store:
        name = f"{STORE}-sample{sample}" if sample else STORE
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        make_store(folder / name, rows)
        with closing(Ledger(folder / name / LEDGER_FILE)) as ledger:
            if budget is not None:
                ledger.set_budget("0" * 64, TEACHER, budget)
            return cls(name, Manifest.load(folder / name).store_id, ledger.head())


def _run(folder: Path, entry: Mapping[str, Any], store: _Store, lr: float, test: float) -> dict[str, Any]:
    asks = not entry["label"].startswith(VANILLA)
    return {
        "student": entry["student"],
        "method": entry["label"],
        "seed": entry["seed"],
        "lr": lr,
        "momentum": 0.9,
        "weight_decay": 0.0005,
        "batch_size": 64,
        "student_view": "fresh",
        "protocol": {"patience": 8, "plateaus": 3, "max_evals": 24},
        "recipe": {"losses": [{"loss": "match_logits", "weight": 1.0}], "sampling": None},
        "n": entry["n"],
        "precision": "fp32",
        "store_id": store.id,
        "teacher": TEACHER,
        "teacher_fingerprint": "0" * 64,
        "dataset": DATASET,
        "store": str((folder / store.name).resolve()),
        "ledger_head": store.head,
        "teacher_calls": entry["n"] if asks else 0,
        "teacher_outputs": ["logits"] if asks else [],
        "test_accuracy": test,
        "best_val_accuracy": test - 0.01,
        "last_test_accuracy": test - 0.005,
        "evaluations": 24,
        "steps": 48 * entry["n"],
        "seconds": 10.0 + entry["n"],
        "device": "cpu",
        "versions": {"teacher-cache": "0.1.0", "torch": "2.14.1"},
    }


def _rows_used(n: int, with_labels: bool) -> dict[str, Any]:
    """What run.json says of a run in a release that knows a rest."""
    labelled = REST if with_labels or not n else 0
    rows = {"answered_rows": n, "labelled_rows": labelled, "unlabelled_rows": 0}
    losses = [{"loss": "match_logits", "weight": 1.0}]
    learned = {"rest": ["ce"], "recipe": {"losses": losses, "sampling": None, "rest": [{"loss": "ce"}]}}
    return rows | (learned if labelled else {})


def _logits(base: float, seed: int) -> dict[str, Any]:
    values = [10.0 * base ** (rank / 4) for rank in range(8)]
    return {
        "images": 100,
        "correlation_difference": 0.1 - base / 10 + 0.001 * seed,
        "singular_values": values,
        "teacher_singular_values": [20.0 * 0.8**rank for rank in range(8)],
    }


def _write(path: Path, document: Any) -> None:
    path.write_text(json.dumps(document))
