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
from torch import Tensor

from ground.errors import IdentityMismatch, InvalidInput
from ground.views import evaluation_batches
from models import Network
from models.compute import Compute
from storage.manifest import Manifest
from storage.run_record import STUDENT_FILE, RunRecord
from student_train.finished_student import FinishedStudent
from student_train.losses.kd import kd
from student_train.losses.tensors import require_positive
from student_train.rest.base import RestBatch, RestLoss
from student_train.rest.rows import RestRows
from student_train.spec import Settings, split_spec

log = logging.getLogger(__name__)

_ADVICE = "give the folder of another run"
_AT_ONCE = 256


@dataclass(frozen=True, slots=True)
class ProxyRun:
    """A finished run whose student answers.

    Args:
        folder: of the run; the same student elsewhere is the same proxy.
        digest: SHA-256 of its file of weights.
    """

    folder: Path = field(compare=False)
    digest: str

    @classmethod
    def of(cls, folder: Path) -> ProxyRun:
        """The run in a folder; raises `InvalidInput` where none is finished."""
        RunRecord.load(folder, _ADVICE)
        path = folder / STUDENT_FILE
        if not path.is_file():
            raise InvalidInput(f"{folder} has no {STUDENT_FILE}; {_ADVICE}")
        return cls(folder.resolve(), hashlib.sha256(path.read_bytes()).hexdigest())

    @property
    def record(self) -> RunRecord:
        """What the run says of itself."""
        return RunRecord.load(self.folder, _ADVICE)

    def require_of(self, manifest: Manifest, n: int, *, exactly: bool) -> None:
        """Refuse a proxy of anything but this store, or one that drew on answers beyond the first n.

        Args:
            exactly: whether it must have drawn on as many, if on any: where it alone brings answers in.

        Raises:
            IdentityMismatch: as said.
        """
        record, identity = self.record, manifest.identity
        if record.dataset != identity.dataset.name:
            raise IdentityMismatch(
                f"the proxy {self.folder} was trained on {record.dataset}, and this store holds "
                f"{identity.dataset.name}; train one from this store"
            )
        if record.store_id not in manifest.ids:
            raise IdentityMismatch(
                f"the proxy {self.folder} was trained from another store than this one; train one from this store"
            )
        if record.teacher_calls and (record.n > n or (exactly and record.n != n)):
            raise IdentityMismatch(
                f"the proxy {self.folder} drew on the answers to {record.n} rows, and this training is to have {n} of "
                f"them; give --n {record.n}, or train a proxy with --n {n}"
            )

    def describe(self) -> dict[str, Any]:
        """What is recorded of it."""
        record = self.record
        shown = {name: getattr(record, name) for name in ("student", "method", "n", "seed", "teacher_calls")}
        return {"weights": self.digest, **shown, "recipe": record.recipe}


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
            raise InvalidInput(f"{text!a} names no run; write proxy:RUN, or proxy:RUN+RUN for the mean of several")
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

    def begin(self, student: Network, rows: RestRows, compute: Compute) -> None:
        """Ask the proxies about all rows, once."""
        log.info("%d proxies answer %d rows, which costs no call", len(self.runs), len(rows.labels))
        said = [_answers(FinishedStudent.open(run.folder), rows, compute) for run in self.runs]
        self.answers = torch.stack(said).mean(dim=0)

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
