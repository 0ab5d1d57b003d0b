"""A run's folder: `run.json` when it is done, `metrics.csv`, `student.safetensors`, and what resuming needs.

`run.json` is written last, so a folder that has one is a finished run.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from models import Network, save_weights
from storage.durable import fsync_path, reporting_full_disk, write_bytes, write_json
from storage.errors import InvalidInput

METRICS = ("step", "epoch", "lr", "train_loss", "val_accuracy", "test_accuracy")
_RUN = "run.json"
_RESUME = "resume.pt"


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Where one training keeps its files."""

    path: Path

    def start(self, *, resume: bool) -> None:
        """Make the folder; raises `InvalidInput` if it holds a run that is not to be gone on with."""
        taken = [name for name in (_RUN, _RESUME) if (self.path / name).exists()]
        if taken and not resume:
            raise InvalidInput(f"{self.path} holds a run already; go on with --resume, or give another --out")
        if self.path.exists() and not self.path.is_dir():
            raise InvalidInput(f"{self.path} is a file; give another --out")
        self.path.mkdir(parents=True, exist_ok=True)

    def finished(self) -> dict[str, Any] | None:
        """The result of a finished run, or None."""
        path = self.path / _RUN
        if not path.is_file():
            return None
        try:
            document: dict[str, Any] = json.loads(path.read_bytes())
        except ValueError as error:
            raise InvalidInput(f"{path} is not JSON; delete it and resume, or give another --out") from error
        return document

    def save_state(self, state: Mapping[str, Any]) -> None:
        """Keep what resuming needs: tensors, numbers and text only."""
        path, partial = self.path / _RESUME, self.path / f".{_RESUME}.partial"
        with reporting_full_disk(path):
            torch.save(dict(state), partial)
            fsync_path(partial)
            os.replace(partial, path)

    def load_state(self, config: Mapping[str, Any]) -> dict[str, Any] | None:
        """What `save_state` kept, or None at the first start.

        Raises:
            InvalidInput: it was left by a run with other settings, or is damaged.
        """
        path = self.path / _RESUME
        if not path.is_file():
            return None
        try:
            state: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
            found = json.loads(state["config"])
        except Exception as error:
            # A damaged or foreign file fails in too many ways to list; none of them runs code.
            raise InvalidInput(f"{path} cannot be resumed from; delete it to start again") from error
        differing = [name for name, value in config.items() if found.get(name) != value]
        if differing:
            name = differing[0]
            raise InvalidInput(
                f"{self.path} was started with {name} {found.get(name)}, not {config[name]}; "
                "give the same settings, or another --out"
            )
        return state

    def save_metrics(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write `metrics.csv`, a row an evaluation; accuracies in [0, 1], empty where not measured."""
        text = io.StringIO()
        writer = csv.DictWriter(text, fieldnames=METRICS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_bytes(self.path / "metrics.csv", text.getvalue().encode())

    def save_result(self, student: Network, result: Mapping[str, Any]) -> None:
        """Write the student and `run.json`; nothing is left to resume."""
        described = ("student", "method", "n", "seed", "test_accuracy", "ledger_head")
        save_weights(student, self.path / "student.safetensors", {name: str(result[name]) for name in described})
        write_json(self.path / _RUN, dict(result))
        (self.path / _RESUME).unlink(missing_ok=True)
