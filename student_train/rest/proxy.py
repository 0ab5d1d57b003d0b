"""Proxies: other students of the same store answer the rest for nothing, in the place of the teacher.

What a proxy says is no answer of the teacher: it is computed anew for every training, is never put into a store or a
ledger, and a run that learned from one says from which, with the digest of its weights.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from msgspec import UNSET, UnsetType
from torch import Tensor

from ground.documents import shown
from ground.errors import IdentityMismatch, InvalidInput
from ground.main_memory import free_main_memory
from ground.spec import Settings, split_spec
from ground.user_code import UserCode
from ground.views import evaluation_batches
from models import Network, read_metadata
from models.compute import Compute
from models.trained_on import TrainedOn
from storage.identity import Identity
from storage.run_proof import RunProofs
from storage.run_record import STUDENT_FILE, RunRecord
from storage.store import Store
from student_train.finished_student import FinishedStudent
from student_train.losses.kd import kd
from student_train.losses.tensors import require_positive
from student_train.rest.base import RestBatch, RestLoss
from student_train.rest.rows import RestRows

log = logging.getLogger(__name__)

_ADVICE = "give the folder of another run"
_AT_ONCE = 256
# Of what is behind a student, what its file of weights says too.
_COUNTS = ("n", "teacher_calls", "init_calls")


@dataclass(frozen=True, slots=True)
class ProxyRun:
    """A finished run whose student answers; what it says of itself is read once.

    Args:
        folder: of the run; the same student elsewhere is the same proxy.
        digest: SHA-256 of its file of weights.
        record: its `run.json`.
    """

    folder: Path = field(compare=False)
    digest: str
    record: RunRecord = field(compare=False)

    @classmethod
    def of(cls, folder: Path) -> ProxyRun:
        """The run in a folder; raises `InvalidInput` where none is finished."""
        record = RunRecord.load(folder, _ADVICE)
        return cls(folder.resolve(), _digest_of(folder), record)

    def require_of(self, store: Store, n: int, proofs: RunProofs, *, exactly: bool) -> str | None:
        """Refuse a proxy of anything but this store, or one that drew on answers beyond the first n.

        Args:
            proofs: for all proxies of a store, whose ledger is read once.
            exactly: whether it must have drawn on as many, if on any: where it alone brings answers in.

        Returns:
            What to warn of where nothing vouches for it, a sentence; None where something does.

        Raises:
            IdentityMismatch: as said, or it is not what it was when it ended, or its weights are of another run.
        """
        record, manifest = self.record, store.manifest
        if record.dataset != manifest.identity.dataset.name:
            raise IdentityMismatch(
                f"the proxy {self.folder} was trained on {record.dataset}, and this store holds "
                f"{manifest.identity.dataset.name}; train one from this store"
            )
        if record.store_id not in manifest.ids:
            raise IdentityMismatch(
                f"the proxy {self.folder} was trained from another store than this one; train one from this store"
            )
        if not isinstance(record.teachers, UnsetType):
            raise IdentityMismatch(
                f"the proxy {self.folder} learned from several teachers, whose calls are not this store's alone; train "
                "one from this store"
            )
        proof = proofs.of(self.folder, None if store.is_published else store.folder)
        if proof.problems:
            raise IdentityMismatch(f"the proxy {self.folder} is not what was trained: {proof.problems[0]}")
        self._require_weights_of(manifest.identity)
        if not isinstance(record.init_calls, UnsetType):
            raise IdentityMismatch(
                f"the proxy {self.folder} began with weights of a student that {record.init_calls} calls are behind, "
                "and nobody can say of which images; train one that begins with none of them"
            )
        if record.teacher_calls and (record.n > n or (exactly and record.n != n)):
            raise IdentityMismatch(
                f"the proxy {self.folder} drew on the answers to {record.n} rows, and this training is to have {n} of "
                f"them; give --n {record.n}, or train a proxy with --n {n}"
            )
        if proof.is_proven:
            return None
        return (
            f"the proxy {self.folder} is taken at its word about what it learned from: {proof.missing}; train it again "
            "to have something that vouches for it"
        )

    def _require_weights_of(self, identity: Identity) -> None:
        """Hold what the run says, which nothing may vouch for, to what its file of weights says, as far as it does."""
        path = self.folder / STUDENT_FILE
        metadata = read_metadata(path)
        said, dataset = TrainedOn.read(metadata, path), identity.dataset
        if said.dataset_digest not in (None, dataset.digest) or said.classes not in (None, dataset.classes):
            raise IdentityMismatch(
                f"the weights of the proxy {self.folder} were trained on other images or classes than this store's; "
                "train one from this store"
            )
        for name in _COUNTS:
            recorded = getattr(self.record, name)
            if name in metadata and metadata[name] != str(recorded):
                raise IdentityMismatch(
                    f"the proxy {self.folder} has weights that say {name} {shown(metadata[name])}, and its run.json "
                    f"says {0 if recorded is UNSET else recorded}; train one from this store"
                )

    def student(self, code: UserCode) -> FinishedStudent:
        """Its student; raises `InvalidInput` where that is not the one whose digest was taken."""
        found = FinishedStudent.open(self.folder, code=code)
        if _digest_of(self.folder) != self.digest:
            raise InvalidInput(f"the student of {self.folder} was replaced while it was being used; begin again")
        return found

    def describe(self) -> dict[str, Any]:
        """What is recorded of it."""
        names = ("student", "method", "n", "seed", "teacher_calls", "recipe")
        return {"weights": self.digest, **{name: getattr(self.record, name) for name in names}}


def _digest_of(folder: Path) -> str:
    path = folder / STUDENT_FILE
    if not path.is_file():
        raise InvalidInput(f"{folder} has no {STUDENT_FILE}; {_ADVICE}")
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


class Proxy(RestLoss):
    """KD at a temperature from the mean logits of the proxies, each of which sees the plain view of an image.

    Args:
        runs: of the proxies.
        temperature: above 0.
    """

    name: ClassVar[str] = "proxy"
    source: ClassVar[str] = "Hinton et al. 2015, arXiv:1503.02531, eq. 1, from students instead of the teacher"
    constrains_logits: ClassVar[bool] = True

    def __init__(
        self,
        runs: Sequence[ProxyRun],
        temperature: float = 4.0,
        ratio: float = 1.0,
        weight: float = 1.0,
        ramp: float = 0.0,
    ) -> None:
        super().__init__(ratio, weight, ramp)
        require_positive(temperature=temperature)
        self.runs, self.temperature = tuple(runs), temperature
        self.answers: Tensor | None = None

    @classmethod
    def arguments(cls, text: str) -> dict[str, Any]:
        """See `RestLoss.arguments`: `proxy:FOLDER+FOLDER,weight=0.5`."""
        folders, _, values = text.partition(":")[2].partition(",")
        names = folders.split("+")
        if not all(names) or "=" in folders:
            raise InvalidInput(
                f"{text!a} names no run; write proxy:RUN, or proxy:RUN+RUN for the mean of several, whose paths have "
                "no +, comma or ="
            )
        runs = tuple(ProxyRun.of(Path(name)) for name in names)
        if len(set(runs)) < len(runs):
            raise InvalidInput(f"{text!a} names a student twice; give each once")
        settings = Settings("loss of the rest", cls.name, split_spec(f"{cls.name}:{values}")[1])
        settings.refuse(["runs"], "is what stands after the colon")
        arguments = {"runs": runs, **settings.arguments(cls, runs=runs)}
        settings.finish()
        settings.call(cls, arguments)
        return arguments

    def describe(self) -> dict[str, Any]:
        """See `RestLoss.describe`."""
        return super().describe() | {"runs": [run.describe() for run in self.runs]}

    def begin(self, student: Network, rows: RestRows, compute: Compute, code: UserCode) -> None:
        """Ask the proxies about all rows, once; raises `InvalidInput` where memory does not hold what they say."""
        needed, free = 8 * len(rows.labels) * student.num_classes, free_main_memory()
        if needed > free / 2:
            raise InvalidInput(
                f"what proxies say of {len(rows.labels)} rows takes {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB of "
                "memory are free; learn from a store with a smaller rest"
            )
        names = ", ".join(run.folder.name for run in self.runs)
        log.info("%d rows are answered by %s in the teacher's place, which costs no call", len(rows.labels), names)
        total = torch.zeros(())
        for run in self.runs:
            total = total + _answers(run.student(code), rows, compute)
        self.answers = total / len(self.runs)

    def forward(self, batch: RestBatch) -> Tensor:
        """See `RestLoss.forward`."""
        assert self.answers is not None, "set by begin"
        said = batch.logits(batch.student, batch.look("student"))
        return kd(said, self.answers[batch.rows].to(said), temperature=self.temperature)


def _answers(proxy: FinishedStudent, rows: RestRows, compute: Compute) -> Tensor:
    """What a proxy says of the plain view of every row: (R, K) float32 on the CPU."""
    network, said = proxy.network, []
    compute.place(network)
    with torch.inference_mode():
        for part in torch.arange(len(rows.labels)).split(_AT_ONCE):
            images = compute.to_device(rows.images[part.to(rows.images.device)])
            ((inputs, _),) = evaluation_batches(images, part, proxy.rendering, _AT_ONCE)
            with compute.autocast():
                logits = network(inputs)
            said.append(logits.float().cpu())
    return torch.cat(said)
