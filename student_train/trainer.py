"""The training loop: batch -> student -> signals -> loss, and an evaluation every ceil(n / batch) steps.

Every random choice comes from (seed, purpose, step), and the state between two evaluations is saved, so a resumed
run equals an uninterrupted one.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import version
from math import ceil
from pathlib import Path
from typing import Any

import torch
from msgspec import structs
from torch import Tensor, nn

from ground.errors import Diverged, Interrupted, InvalidInput, UnknownName
from ground.terminal import StopRequest, graceful_stop
from ground.views import evaluation_batches
from models import Network, Representation, canonical_name, create_model, network_shape
from models.compute import Compute
from models.evaluation import accuracy
from storage.manifest import Manifest
from storage.run_record import RESUME_FILE, RunProtocol, RunRecord, RunSettings
from storage.store import Store
from student_train.anchor import anchor, require_head
from student_train.binding import Binding
from student_train.data import STUDENT_VIEWS, LabelledImages, StudentData, free_memory
from student_train.methods import Method
from student_train.mixing import Part
from student_train.needs import Wanted
from student_train.protocol import Decision, Protocol, ProtocolConfig
from student_train.run_folder import RunFolder
from student_train.sampling import Batch
from student_train.signals import Moment, Signals

log = logging.getLogger(__name__)

_SAVE_EVERY_SECONDS = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """How a student is trained; the defaults are those of the paper's released code.

    Args:
        method: the spec of the method or of the losses, for the record.
        student_view: "fresh" draws a crop and flip in every step, "teacher" replays the stored one; "auto" is "teacher"
            where feature maps are learned from, and else "fresh".
    """

    student: str
    method: str
    seed: int = 0
    lr: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 5e-4
    batch_size: int = 64
    student_view: str = "auto"
    protocol: ProtocolConfig = field(default_factory=ProtocolConfig)

    def __post_init__(self) -> None:
        if self.student_view not in STUDENT_VIEWS:
            raise UnknownName("student view", self.student_view, STUDENT_VIEWS)
        if self.batch_size < 4:
            raise InvalidInput(f"--batch-size must be at least 4, got {self.batch_size}")
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise InvalidInput(f"--lr must be a finite number above 0, got {self.lr}")
        for name in ("momentum", "weight_decay"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise InvalidInput(f"{name} must be a finite number of at least 0, got {value}")


class Trainer:
    """Trains one student.

    Args:
        data: what it learns from.
        method: how.
        folder: where its results go.
        config: the rest.
    """

    def __init__(self, config: TrainConfig, data: StudentData, method: Method, folder: RunFolder) -> None:
        self.config = config = replace(config, student_view=data.student_view(config.student_view))
        self.data, self.method, self.folder = data, method, folder
        self.sampling = method.sampling_of(data.manifest.identity.views)
        self.sampling.check(data.n)
        student = create_model(config.student, num_classes=data.num_classes, seed=config.seed)
        self.wanted = wanted_by(method, student.layers, data.manifest)
        self.labels = data.train.labels.cpu()
        require_head(student, method)
        self.student = method.bind(student, partial(_binding, data=data, labels=self.labels), config.seed)
        binding = _binding(self.student, data, self.labels)
        method.require_room(binding, config.batch_size, free_memory(data.compute))
        data.compute.place(self.student)
        self.learned = method.learned.to(data.compute.device)
        self.optimizer = torch.optim.SGD(
            [*self.student.parameters(), *self.learned.parameters()],
            lr=config.lr,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
        )
        self.protocol = Protocol(config.protocol)
        self.eval_every = ceil(data.n / config.batch_size)
        self.step = 0
        self.rows: list[dict[str, Any]] = []
        self.losses: list[Tensor] = []
        self.modules = nn.ModuleList([self.student, self.learned])
        self.best = _copy_of(self.modules)
        self.seconds = 0.0

    @classmethod
    def open(
        cls,
        config: TrainConfig,
        store: Path,
        n: int | None,
        method: Method,
        compute: Compute,
        folder: RunFolder,
        *,
        resume: bool = True,
    ) -> Trainer:
        """Load from a store what the method needs.

        Args:
            n: rows to train on; None for all.
            resume: what `run` will be given; a folder that it would refuse is refused before anything is loaded.

        Raises:
            CKDError: anything that would make the training fail later.
        """
        folder.check(resume=resume)
        opened = Store.open(store)
        wanted = wanted_by(method, network_shape(config.student).layers, opened.manifest)
        return cls(config, StudentData.load(opened, n, wanted, compute), method, folder)

    def run(
        self, *, resume: bool = False, on_eval: Callable[[Mapping[str, Any]], None] = lambda row: None
    ) -> dict[str, Any]:
        """Train to the end of the protocol and write the results; a finished run only returns them.

        Returns:
            The content of run.json.

        Raises:
            InvalidInput, StoreBusy: the folder is another run's, or in use.
            Diverged: a loss is not finite.
            Interrupted: the user asked to stop; resume to go on.
        """
        with self.folder.opened(resume=resume):
            # What an extended or converted store had before, it has still.
            earlier = self.data.manifest.ids
            finished = self.folder.finished(self._identity(), earlier)
            if finished is not None:
                return finished
            state = self.folder.load_state(self._identity(), earlier)
            with self.data.compute.exact():
                if state is not None:
                    self._restore(state)
                else:
                    self.prepare()
                with graceful_stop() as stop:
                    self._train(stop, on_eval)
            return self._finish()

    def prepare(self) -> None:
        """Train what losses learn from stored answers alone; comes before the first step."""
        self.method.prepare(self._teacher_rows, Moment(seed=self.config.seed))

    def _train(self, stop: StopRequest, on_eval: Callable[[Mapping[str, Any]], None]) -> None:
        saved = started = time.monotonic()
        before = self.seconds
        while not self.protocol.finished:
            reached = self._train_interval(stop)
            if reached:
                on_eval(self._evaluate())
            self.seconds = before + time.monotonic() - started
            if stop.requested or time.monotonic() - saved > _SAVE_EVERY_SECONDS:
                self._save()
                saved = time.monotonic()
            if stop.requested and not self.protocol.finished:
                raise Interrupted(f"stopped after step {self.step}; go on with the same command and --resume")

    def _train_interval(self, stop: StopRequest) -> bool:
        """Train until an evaluation is due; false if the user asked to stop before."""
        for group in self.optimizer.param_groups:
            group["lr"] = self._lr
        self.student.train()
        due = (self.protocol.evals + 1) * self.eval_every
        while self.step < due:
            self.losses.append(self.train_step())
            if stop.requested and self.step < due:
                return False
        return True

    def train_step(self) -> Tensor:
        """One step of gradient descent; returns the detached loss, on the device."""
        config, data = self.config, self.data
        moment = Moment(seed=config.seed, step=self.step, epoch=self.step / self.eval_every)
        batch = self.sampling.batch(self.step, labels=self.labels, batch_size=config.batch_size, seed=config.seed)
        inputs, which = data.inputs(batch, self.step, seed=config.seed, student_view=config.student_view)
        parts: Sequence[Part] = ()
        if self.method.mixing is not None:
            inputs, parts = self.method.mixing.mix(inputs, moment.numpy_generator("mixing"))
        rows = data.compute.to_device(batch.rows)
        signals = Signals(
            student=self._represent(inputs, batch),
            teacher=data.teacher(batch.rows, which),
            labels=data.train.labels[rows],
            index=rows,
            moment=moment,
            views=batch.views,
        )
        loss = self.method.loss(signals, parts)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        self.step += 1
        return loss.detach()

    def _represent(self, inputs: Tensor, batch: Batch) -> Representation:
        """The student's representation in float32, each pass through the network on its own."""
        with self.data.compute.autocast():
            said = [self._said(inputs[part]) for part in batch.passes]
        if len(said) == 1:
            return said[0].map(Tensor.float)
        return Representation(
            logits=torch.cat([part.logits for part in said]).float(),
            features={name: torch.cat([part.features[name] for part in said]).float() for name in said[0].features},
        )

    def _said(self, inputs: Tensor) -> Representation:
        """What the student says of a batch, as far as a loss wants it."""
        extras = [name for name in self.wanted.student if name in self.student.extra_names]
        return self.student.represent(inputs, extras).only(self.wanted.student)

    def _teacher_rows(self, rows: Tensor) -> Representation:
        """What the teacher said of the first view of some rows."""
        said = self.data.teacher(rows, torch.zeros_like(rows))
        assert said is not None
        return said

    @property
    def _lr(self) -> float:
        return self.config.lr * 0.1**self.protocol.reached

    def _evaluate(self) -> dict[str, Any]:
        train_loss, lr = torch.stack(self.losses).mean().item(), self._lr
        self.losses = []
        if not math.isfinite(train_loss):
            raise Diverged(
                f"the loss is {train_loss} at step {self.step}; lower --lr ({self.config.lr}) or the weights"
            )
        self._require_finite()
        if self.method.is_anchored:
            anchor(self.student, self.data, self.method)
        val_accuracy = self._accuracy(self.data.val)
        decision = self.protocol.update(val_accuracy)
        test_accuracy = None
        if decision is Decision.IMPROVED:
            self.best = _copy_of(self.modules)
            test_accuracy = self._accuracy(self.data.test)
        elif decision is Decision.LOWER:
            self.modules.load_state_dict(self.best)
            # What pushed away from the best weights is not carried over to them.
            self.optimizer.state.clear()
        row = {
            "step": self.step,
            "epoch": self.protocol.evals,
            "lr": lr,
            "train_loss": train_loss,
            "val_accuracy": val_accuracy,
            "test_accuracy": test_accuracy,
        }
        self.rows.append(row)
        return row

    def _require_finite(self) -> None:
        """The last step may have gone where no loss was computed."""
        finite = torch.stack([parameter.isfinite().all() for parameter in self.student.parameters()])
        if not finite.all():
            raise Diverged(f"a weight of the student is not finite at step {self.step}; lower --lr ({self.config.lr})")

    def _accuracy(self, images: LabelledImages) -> float:
        rendering = self.data.manifest.identity.teacher_rendering
        batches = evaluation_batches(images.images, images.labels, rendering)
        return accuracy(self.student, batches, self.data.compute)

    def _finish(self) -> dict[str, Any]:
        last_test_accuracy = self._accuracy(self.data.test)
        self.modules.load_state_dict(self.best)
        at_best = [row["test_accuracy"] for row in self.rows if row["test_accuracy"] is not None][-1]
        record = RunRecord(
            **structs.asdict(self._identity()),
            store=str(self.data.folder),
            ledger_head=self.data.ledger_head,
            teacher_calls=self._teacher_calls(),
            teacher_outputs=tuple(self.wanted.teacher),
            test_accuracy=at_best,
            best_val_accuracy=self.protocol.best,
            last_test_accuracy=last_test_accuracy,
            evaluations=self.protocol.evals,
            steps=self.step,
            seconds=round(self.seconds, 2),
            device=self.data.compute.describe(),
            versions={package: version(package) for package in ("teacher-cache", "torch", "numpy")},
        )
        self.folder.save_metrics(self.rows)
        self.folder.save_result(self.student, record)
        return record.document()

    def _teacher_calls(self) -> int:
        """Calls whose answers this student learned from: none for a method that asks no teacher."""
        return self.data.n * self.data.manifest.identity.views if self.method.asks_teacher else 0

    def _identity(self) -> RunSettings:
        """Settings and sources; a run goes on only if all of them are the same."""
        identity, config = self.data.manifest.identity, self.config
        return RunSettings(
            student=canonical_name(config.student),
            method=self.method.name,
            seed=config.seed,
            lr=config.lr,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
            batch_size=config.batch_size,
            student_view=config.student_view,
            protocol=RunProtocol(
                patience=config.protocol.patience,
                plateaus=config.protocol.plateaus,
                max_evals=config.protocol.max_evals,
            ),
            recipe=self.method.describe(),
            n=self.data.n,
            precision=self.data.compute.precision,
            store_id=self.data.manifest.store_id,
            teacher=identity.teacher.name,
            teacher_fingerprint=identity.teacher.fingerprint,
            dataset=identity.dataset.name,
        )

    # State

    def _save(self) -> None:
        self.folder.save_metrics(self.rows)
        self.folder.save_state(
            {
                "config": json.dumps(self._identity().document()),
                "step": self.step,
                "losses": torch.stack(self.losses) if self.losses else torch.empty(0),
                "rows": json.dumps(self.rows),
                "seconds": self.seconds,
                "protocol": self.protocol.state(),
                "modules": self.modules.state_dict(),
                "best": self.best,
                "optimizer": self.optimizer.state_dict(),
            }
        )

    def _restore(self, state: Mapping[str, Any]) -> None:
        try:
            self.step, self.seconds = int(state["step"]), float(state["seconds"])
            self.losses = list(state["losses"].to(self.data.compute.device))
            self.rows = json.loads(state["rows"])
            self.protocol.restore(state["protocol"])
            self.modules.load_state_dict(state["best"])
            self.best = _copy_of(self.modules)
            self.modules.load_state_dict(state["modules"])
            self.optimizer.load_state_dict(state["optimizer"])
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise InvalidInput(
                f"the state in {self.folder.path} is damaged; delete {RESUME_FILE} to start again"
            ) from error
        log.info("going on after step %d", self.step)


def wanted_by(method: Method, student: Sequence[str], manifest: Manifest) -> Wanted:
    """What a method needs of a student with these layers and of this store; see `Method.wanted`."""
    return method.wanted(student, manifest.identity.teacher.layers)


def _binding(student: Network, data: StudentData, labels: Tensor) -> Binding:
    identity = data.manifest.identity
    size, names = identity.geometry.crop_size, student.layers
    student.eval()
    with torch.inference_mode():
        said = student.represent(torch.zeros(1, 3, size, size), student.extra_names).only(names)
    student.train()
    stored = {output.name: output.shape for output in identity.outputs if output.name in data.outputs}
    return Binding(
        student={"logits": tuple(said.logits.shape[1:])}
        | {name: tuple(tensor.shape[1:]) for name, tensor in said.features.items()},
        teacher=stored,
        teacher_layers=identity.teacher.layers,
        labels=labels,
        num_classes=data.num_classes,
        num_views=identity.views,
        parameters=data.parameters,
        student_head=student.head,
    )


def _copy_of(modules: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in modules.state_dict().items()}
