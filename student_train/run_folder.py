"""A run's folder: `run.json` when it is done, `metrics.csv`, `student.safetensors`, and what resuming needs.

`run.json` is written last, so a folder that has one is a finished run.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ground.durable import write_bytes, write_json
from ground.errors import InvalidInput
from models import Network, save_weights
from storage.locks import exclusive_lock

METRICS = ("step", "epoch", "lr", "train_loss", "val_accuracy", "test_accuracy")
_RUN = "run.json"
_RESUME = "resume.pt"
_STUDENT = "student.safetensors"


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Where one training keeps its files."""

    path: Path

    @contextmanager
    def opened(self, *, resume: bool) -> Iterator[None]:
        """Make the folder and be the only one at work in it.

        Raises:
            InvalidInput: it holds a run that is not to be gone on with, or it is something else's.
            StoreBusy: another training writes to it.
        """
        self.check(resume=resume)
        self.path.mkdir(parents=True, exist_ok=True)
        with exclusive_lock(self.path / "run.lock", f"another training writes to {self.path}; give another --out"):
            yield

    def check(self, *, resume: bool) -> None:
        """Raise `InvalidInput` if the folder holds a run that is not to be gone on with, or is something else's."""
        taken = [name for name in (_RUN, _RESUME, _STUDENT) if (self.path / name).exists()]
        if taken and not resume:
            raise InvalidInput(f"{self.path} holds a run already; go on with --resume, or give another --out")
        if (self.path / "manifest.json").exists():
            raise InvalidInput(f"{self.path} is a store; give another --out")
        if self.path.exists() and not self.path.is_dir():
            raise InvalidInput(f"{self.path} is a file; give another --out")

    def finished(self, config: Mapping[str, Any], stores: Collection[str] = ()) -> dict[str, Any] | None:
        """The result of a finished run of these settings, or None; raises `InvalidInput` for one of others.

        Args:
            stores: ids that the store had before it was what it is; as good as its own.
        """
        path = self.path / _RUN
        if not path.exists():
            return None
        try:
            document = json.loads(path.read_bytes())
            if not isinstance(document, dict):
                raise ValueError("it is no JSON object")
        except ValueError as error:
            raise InvalidInput(f"{path} is not a run's result ({error}); delete it, or give another --out") from error
        self._require_same(document, config, stores)
        return document

    def save_state(self, state: Mapping[str, Any]) -> None:
        """Keep what resuming needs: tensors, numbers and text only."""
        content = io.BytesIO()
        torch.save(dict(state), content)
        write_bytes(self.path / _RESUME, content.getvalue())

    def load_state(self, config: Mapping[str, Any], stores: Collection[str] = ()) -> dict[str, Any] | None:
        """What `save_state` kept, or None at the first start.

        Args:
            stores: as for `finished`.

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
        self._require_same(found, config, stores)
        return state

    def _require_same(self, found: Mapping[str, Any], config: Mapping[str, Any], stores: Collection[str]) -> None:
        if found.get("store_id") in stores:
            found = {**found, "store_id": config.get("store_id")}
        # Through JSON, so that a tuple that was written as a list is not a difference.
        differing = [name for name, value in json.loads(json.dumps(config)).items() if found.get(name) != value]
        if differing:
            name = differing[0]
            raise InvalidInput(
                f"{self.path} was started with {name} {found.get(name)}, not {config[name]}; "
                "give the same settings, or another --out"
            )

    def save_metrics(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write `metrics.csv`, a row an evaluation; accuracies in [0, 1], empty where not measured."""
        text = io.StringIO()
        # Columns of single losses come after, whatever a method calls them; rows of earlier releases have none.
        names = dict.fromkeys([*METRICS, *(name for row in rows for name in row)])
        writer = csv.DictWriter(text, fieldnames=list(names), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_bytes(self.path / "metrics.csv", text.getvalue().encode())

    def save_result(self, student: Network, result: Mapping[str, Any]) -> None:
        """Write the student and `run.json`; nothing is left to resume."""
        described = ("student", "method", "n", "seed", "test_accuracy", "ledger_head")
        save_weights(student, self.path / _STUDENT, {name: str(result[name]) for name in described})
        write_json(self.path / _RUN, dict(result))
        (self.path / _RESUME).unlink(missing_ok=True)
