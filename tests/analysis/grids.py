"""Folders of grids whose runs were never trained: numbers are given, the rest is as the trainer writes it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.results import collect


@dataclass(frozen=True, kw_only=True)
class PlannedRun:
    """A run of the plan; finished if it has an accuracy."""

    label: str = "ckd"
    n: int = 800
    sample_seed: int | None = None
    seed: int = 0
    accuracy: float | None = 0.5
    validation: float | None = None
    lr: float = 0.05
    teacher: str = "wrn_40_2"
    student: str = "wrn_16_2"
    dataset: str = "cifar100"
    views: int = 1
    select: str | None = None
    base: str | None = None
    more: Mapping[str, Any] = field(default_factory=dict)

    @property
    def folder(self) -> str:
        name = "".join(letter if letter.isalnum() else "-" for letter in self.label)
        sample = "" if self.sample_seed is None else f"-sample{self.sample_seed}"
        return f"runs/{self.teacher}-{self.student}/{name}-n{self.n}{sample}-seed{self.seed}-{self.lr}"

    def planned(self) -> dict[str, Any]:
        names = ("teacher", "student", "dataset", "label", "n", "seed")
        settings = {"method": self.label, "lr": self.lr, "batch_size": 64, "student_view": "auto"}
        facts = {name: getattr(self, name) for name in names}
        if self.sample_seed is not None:  # as releases without samples have it
            facts["sample_seed"] = self.sample_seed
        if self.select is not None:  # as releases without rules have it
            facts |= {"select": self.select, "base": self.base}
        return {"run": self.folder, **facts, "store": f"stores/{self.teacher}", "settings": settings}

    def result(self) -> dict[str, Any]:
        asks = not self.label.startswith("vanilla")
        return {
            "student": self.student,
            "method": self.label,
            "seed": self.seed,
            "lr": self.lr,
            "momentum": 0.9,
            "weight_decay": 0.0005,
            "batch_size": 64,
            "student_view": "fresh",
            "protocol": {"patience": 8, "plateaus": 3, "max_evals": None},
            "recipe": {"losses": [{"loss": "match_logits", "weight": 1.0}], "anchored": True},
            "n": self.n,
            "precision": "fp32",
            "store_id": "4b3605f8bc5c4767a438339849d93ccc",
            "teacher": self.teacher,
            "teacher_fingerprint": "5e7d",
            "dataset": self.dataset,
            "store": "/elsewhere/store",
            "ledger_head": "246a",
            "teacher_calls": self.n * self.views if asks else 0,
            "test_accuracy": self.accuracy,
            "best_val_accuracy": self.accuracy if self.validation is None else self.validation,
            "last_test_accuracy": self.accuracy,
            "evaluations": 24,
            "steps": 312,
            "seconds": 12.5,
            "device": "cpu",
            "versions": {"teacher-cache": "0.1.0"},
            **self.more,
        }


def write_grid(folder: Path, runs: Iterable[PlannedRun], **plan: Any) -> Path:
    """A grid's folder with these runs; `plan` replaces what grid.json says."""
    runs = list(runs)
    document = {
        "format": 1,
        "name": "test",
        "targets": [0.5],
        "test_images": 0,
        "budget": None,
        "stores": [],
        "cost": {"calls": 800, "calls_without_store": 1600},
        "runs": [run.planned() for run in runs],
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "grid.json").write_text(json.dumps(document | plan))
    for run in runs:
        if run.accuracy is not None:
            (folder / run.folder).mkdir(parents=True)
            (folder / run.folder / "run.json").write_text(json.dumps(run.result()))
    return folder


def results_of(folder: Path, runs: Iterable[PlannedRun]) -> pd.DataFrame:
    """The table of a grid with these runs."""
    return collect(write_grid(folder, runs))
