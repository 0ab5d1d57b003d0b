"""A run's folder while it is trained: who may work in it, what resuming needs, and the results at the end.

What the finished run says of itself, `run.json`, is `storage.run_record`'s.
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
from msgspec import UnsetType

from ground.documents import Malformed, typed
from ground.durable import write_bytes
from ground.errors import InvalidInput
from ground.places import Place
from models import Network, save_weights
from models.trained_on import TrainedOn
from storage.ledger_chain import KEY_VARIABLE, Seal
from storage.locks import exclusive_lock
from storage.manifest import FILE_NAME, Manifest
from storage.run_proof import prove_run
from storage.run_record import METRICS_FILE, RESUME_FILE, RUN_FILE, STUDENT_FILE, RunRecord, RunSettings, is_finished
from student_train.student_state import state_digest

# Where a saved state keeps its own digest.
_DIGEST = "digest"
METRICS = ("step", "epoch", "lr", "train_loss", "val_accuracy", "test_accuracy")


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
        busy = f"another training writes to {self.path}"
        with exclusive_lock(self.path / "run.lock", busy, ", or give another --out"):
            yield

    def check(self, *, resume: bool) -> None:
        """Raise `InvalidInput` if the folder holds a run that is not to be gone on with, or is something else's."""
        taken = [name for name in (RUN_FILE, RESUME_FILE, STUDENT_FILE) if (self.path / name).exists()]
        if taken and not resume:
            raise InvalidInput(f"{self.path} holds a run already; go on with --resume, or give another --out")
        if (self.path / FILE_NAME).exists():
            raise InvalidInput(f"{self.path} is a store; give another --out")
        if self.path.exists() and not self.path.is_dir():
            raise InvalidInput(f"{self.path} is a file; give another --out")

    def finished(self, settings: RunSettings, stores: Collection[str] = ()) -> dict[str, Any] | None:
        """What `run.json` of a finished run of these settings holds, or None; raises `InvalidInput` for one of others.

        Args:
            stores: ids that the store had before it was what it is; as good as its own.
        """
        if not is_finished(self.path):
            return None
        try:
            record = RunRecord.read(self.path)
        except Malformed as error:
            raise InvalidInput(
                f"{self.path / RUN_FILE} is not a run's result ({error}); delete it, or give another --out"
            ) from error
        self._require_same(record, settings, stores)
        return record.document()

    def started(self) -> RunSettings | None:
        """The settings of the run that is here, finished or not; None where there is none that can be read."""
        try:
            if is_finished(self.path):
                return RunRecord.read(self.path)
            state = torch.load(self.path / RESUME_FILE, weights_only=True, map_location="cpu", mmap=True)
            return typed(json.loads(state["config"]), RunSettings)
        except Exception:
            # What is wrong with it is said where it is gone on with; none of it runs code.
            return None

    def save_state(self, state: Mapping[str, Any]) -> None:
        """Keep what resuming needs, tensors, numbers and text only, with a digest of it all."""
        content = io.BytesIO()
        seal = Seal.from_environment()
        kept = {name: value for name, value in state.items() if name != _DIGEST}
        torch.save({**kept, _DIGEST: f"{seal.name}:{state_digest(kept, seal)}"}, content)
        write_bytes(self.path / RESUME_FILE, content.getvalue())

    def load_state(self, settings: RunSettings, stores: Collection[str] = ()) -> dict[str, Any] | None:
        """What `save_state` kept, or None at the first start.

        Args:
            stores: as for `finished`.

        Raises:
            InvalidInput: it was left by a run with other settings, is damaged, or does not match its own digest.
        """
        path = self.path / RESUME_FILE
        if not path.is_file():
            return None
        try:
            state: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
            problem = _seal_problem(state.pop(_DIGEST, None), state)
            found = typed(json.loads(state["config"]), RunSettings)
        except Exception as error:
            # A damaged or foreign file fails in too many ways to list; none of them runs code.
            raise InvalidInput(f"{path} cannot be resumed from; delete it to start again") from error
        if problem is not None:
            raise InvalidInput(f"{path} {problem}")
        self._require_same(found, settings, stores)
        return state

    def _require_same(self, found: RunSettings, asked: RunSettings, stores: Collection[str]) -> None:
        # As JSON has them, so that a tuple that was written as a list is not a difference.
        before, now = found.document(), asked.document()
        if before["store_id"] in stores:
            before["store_id"] = now["store_id"]
        # What only one of the two says is not the default of the other.
        names = dict.fromkeys([*now, *RunSettings.__struct_fields__])
        differing = [name for name in names if before.get(name) != now.get(name)]
        if differing:
            name, was, asks = _difference(differing[0], before.get(differing[0]), now.get(differing[0]))
            raise InvalidInput(
                f"{self.path} was started with {name} {was}, not {asks}; give the same settings, or another --out"
            )

    def save_metrics(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write `metrics.csv`, a row an evaluation; accuracies in [0, 1], empty where not measured."""
        text = io.StringIO()
        # Columns of single losses come after, whatever a method calls them; rows of earlier releases have none.
        names = dict.fromkeys([*METRICS, *(name for row in rows for name in row)])
        writer = csv.DictWriter(text, fieldnames=list(names), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_bytes(self.path / METRICS_FILE, text.getvalue().encode())

    def save_result(self, student: Network, record: RunRecord, store: Place, manifest: Manifest) -> None:
        """Write the student, the proof of all results and `run.json`; nothing is left to resume.

        Args:
            store: folder or URL that the run was trained from.
            manifest: of the store, as it was read.
        """
        described = ["student", "method", "n", "seed", "teacher_calls", "test_accuracy", "ledger_head"]
        if not isinstance(record.init_calls, UnsetType):
            described.append("init_calls")
        trained = TrainedOn.of(
            record.student,
            dataset=manifest.identity.dataset.name,
            dataset_digest=manifest.identity.dataset.digest,
            classes=manifest.identity.dataset.classes,
            rendering=record.student_rendering or manifest.identity.teacher_rendering,
        )
        metadata = {name: str(getattr(record, name)) for name in described} | trained.metadata()
        save_weights(student, self.path / STUDENT_FILE, metadata)
        prove_run(self.path, record, store, manifest)
        record.save(self.path)
        (self.path / RESUME_FILE).unlink(missing_ok=True)


def _seal_problem(sealed: object, state: Mapping[str, Any]) -> str | None:
    """Why a state is not the one that was saved, or None; those of earlier releases have no digest."""
    seal = Seal.from_environment()
    if sealed is None and seal.name == "sha256":
        return None
    name, _, digest = str(sealed).partition(":")
    if name != seal.name:
        if seal.name == "sha256":
            return f"is sealed with a key; set it in {KEY_VARIABLE}, or delete the file to start again"
        return f"was saved without the key in {KEY_VARIABLE}; unset that to go on, or delete the file to start again"
    if digest != state_digest(state, seal):
        return "was changed after it was saved: it does not match its own digest; delete it to start again"
    return None


def _difference(name: str, before: Any, now: Any) -> tuple[str, Any, Any]:
    """The innermost setting by which two values of a name first differ, with both."""
    if isinstance(before, dict) and isinstance(now, dict) and before.keys() == now.keys():
        pairs = [(f"{name}.{key}", before[key], now[key]) for key in before]
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        pairs = [(f"{name}.{place}", *values) for place, values in enumerate(zip(before, now, strict=True))]
    else:
        return name, before, now
    return _difference(*next(pair for pair in pairs if pair[1] != pair[2]))
