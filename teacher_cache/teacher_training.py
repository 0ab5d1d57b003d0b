"""Train a teacher on a data set's labels, the way the CRD benchmark does.

SGD with momentum on random crops and flips, step decays, last-epoch weights: nothing is chosen on the test set.
The forwards of a network that is still being trained are not teacher calls: there is no teacher yet.
"""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ground.durable import open_own, partial_of, remove_own, replacing
from ground.errors import Diverged, Interrupted, InvalidInput
from ground.seeding import generator_for
from ground.terminal import graceful_stop
from ground.views import apply_views, draw_views, evaluation_batches
from models import Network, canonical_name, create_model, model_names, save_weights
from models.compute import Compute
from models.evaluation import accuracy
from models.trained_on import TrainedOn
from storage.schema import UNLABELLED
from teacher_cache.datasets import ImageDataset
from teacher_cache.datasets.base import Split

log = logging.getLogger(__name__)

_DECAY_POINTS = (150 / 240, 180 / 240, 210 / 240)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingConfig:
    """How a teacher is trained; the defaults are the CRD benchmark's.

    Args:
        decay_epochs: epochs after which the learning rate is divided by 10; None for 5/8, 3/4 and 7/8 of all.
    """

    teacher: str
    epochs: int = 240
    lr: float = 0.05
    decay_epochs: tuple[int, ...] | None = None
    momentum: float = 0.9
    weight_decay: float = 5e-4
    batch_size: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch_size < 2 or not self.lr > 0:
            raise InvalidInput(
                f"epochs ({self.epochs}) and learning rate ({self.lr}) must be positive, the batch size "
                f"({self.batch_size}) at least 2"
            )
        if canonical_name(self.teacher) not in model_names():
            raise InvalidInput(
                f"only the zoo's networks are trained here, and {self.teacher} is none; train it with its own library, "
                "and give its --weights to ckd-cache build"
            )

    def lr_at(self, epoch: int) -> float:
        """Learning rate of an epoch, counted from 0."""
        points = [round(self.epochs * point) for point in _DECAY_POINTS]
        decays = self.decay_epochs if self.decay_epochs is not None else points
        return self.lr * 0.1 ** sum(epoch >= decay for decay in decays)


def train_teacher(
    config: TrainingConfig,
    dataset: ImageDataset,
    out: Path,
    compute: Compute,
    on_progress: Callable[[int, str], None] = lambda steps, note: None,
) -> dict[str, Any]:
    """Train and save a teacher, going on from an interrupted run of the same settings.

    Returns:
        What is written into the file's metadata: settings and test accuracy in [0, 1].

    Raises:
        InvalidInput: `out` exists or cannot be written, or an image of either split cannot be read.
        Diverged: the loss is not finite.
        Interrupted: the user asked to stop; run again to go on.
    """
    require_new_file(out)
    network = create_model(config.teacher, num_classes=dataset.num_classes, seed=config.seed)
    compute.place(network)
    optimizer = torch.optim.SGD(
        network.parameters(), lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay
    )
    resume = _Resume(_resume_file(out), {**asdict(config), "data": dataset.digest})
    done = resume.load(network, optimizer)
    images, labels = _on_device(dataset.train, compute)
    # Read before the epochs too: an image that is damaged must not be found after them.
    test = _on_device(dataset.test, compute)
    on_progress(done, "")
    with graceful_stop() as stop:
        for epoch in range(done, config.epochs):
            loss = _train_epoch(config, epoch, network, optimizer, images, labels, dataset, compute)
            if not math.isfinite(loss):
                raise Diverged(f"the loss is {loss} in epoch {epoch + 1}; give a lower --lr than {config.lr:g}")
            resume.save(epoch + 1, network, optimizer)
            on_progress(1, f"loss {loss:.3f}")
            log.info("epoch %d of %d: loss %.4f, lr %g", epoch + 1, config.epochs, loss, config.lr_at(epoch))
            if stop.requested and epoch + 1 < config.epochs:
                raise Interrupted(f"stopped after epoch {epoch + 1} of {config.epochs}; run the same command to go on")
    report = _report(config, network, dataset, test, compute)
    save_weights(network, out, _metadata(report, dataset))
    resume.remove()
    return report


def require_new_file(out: Path) -> None:
    """Raise `InvalidInput` unless a teacher can be made at `out`; what is there already is kept."""
    if os.path.lexists(out):
        raise InvalidInput(f"{out} exists; delete it, or give another --out")
    # Of the files that are made beside it, the one with the longest name.
    partial = partial_of(_resume_file(out))
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        os.close(open_own(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL))
        remove_own(partial)
    except OSError as error:
        raise InvalidInput(f"{out} cannot be written ({error.strerror}); give another --out") from error


def _resume_file(out: Path) -> Path:
    return out.with_name(out.name + ".resume")


def _on_device(split: Split, compute: Compute) -> tuple[Tensor, Tensor]:
    """The images that have a label, and their labels."""
    rows = np.flatnonzero(split.labels != UNLABELLED)
    images, labels = (torch.from_numpy(values) for values in (split.read(rows), split.labels[rows]))
    return compute.to_device(images), compute.to_device(labels)


def _train_epoch(
    config: TrainingConfig,
    epoch: int,
    network: Network,
    optimizer: torch.optim.Optimizer,
    images: Tensor,
    labels: Tensor,
    dataset: ImageDataset,
    compute: Compute,
) -> float:
    """One pass over the pool; returns the mean loss."""
    for group in optimizer.param_groups:
        group["lr"] = config.lr_at(epoch)
    generator = generator_for(config.seed, "teacher", epoch)
    order = torch.randperm(len(images), generator=generator)
    views = draw_views(dataset.geometry, len(images), generator)
    network.train()
    total = torch.zeros((), device=compute.device)
    # A last batch of one image has no batch statistics to speak of; it joins the one before it.
    batches = list(order.split(config.batch_size))
    if len(batches) > 1 and len(batches[-1]) == 1:
        batches[-2:] = [torch.cat(batches[-2:])]
    for rows in batches:
        rows = compute.to_device(rows)
        pixels = apply_views(images[rows], views[rows.cpu()], dataset.geometry)
        with compute.autocast():
            logits = network(dataset.normalisation.apply(pixels))
        loss = F.cross_entropy(logits.float(), labels[rows])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        total += loss.detach() * len(rows)
    return (total / len(images)).item()


def _report(
    config: TrainingConfig, network: Network, dataset: ImageDataset, test: tuple[Tensor, Tensor], compute: Compute
) -> dict[str, Any]:
    test_accuracy = accuracy(network, evaluation_batches(*test, dataset.rendering), compute)
    return {
        **asdict(config),
        "teacher": canonical_name(config.teacher),
        "dataset": dataset.name,
        "precision": compute.precision,
        "test_accuracy": test_accuracy,
    }


def _metadata(report: dict[str, Any], dataset: ImageDataset) -> dict[str, str]:
    trained = TrainedOn.of(
        report["teacher"],
        dataset=dataset.name,
        dataset_digest=dataset.digest,
        classes=dataset.classes,
        rendering=dataset.rendering,
    )
    return {**{name: str(value) for name, value in report.items()}, **trained.metadata()}


@dataclass(frozen=True, slots=True)
class _Resume:
    """State between epochs, beside the file that is being made; tensors and numbers only.

    Args:
        settings: what must be the same for a run to go on.
    """

    path: Path
    settings: dict[str, Any]

    def save(self, epochs_done: int, network: Network, optimizer: torch.optim.Optimizer) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        state = {
            "settings": json.dumps(self.settings),
            "epochs_done": epochs_done,
            "network": network.state_dict(),
            "optimizer": optimizer.state_dict(),
        }
        with replacing(self.path) as file:
            torch.save(state, file)

    def load(self, network: Network, optimizer: torch.optim.Optimizer) -> int:
        """Restore what is there; returns the number of finished epochs."""
        if not self.path.is_file():
            return 0
        remedy = f"delete {self.path} to start again"
        try:
            state = torch.load(self.path, weights_only=True, map_location="cpu")
            settings, epochs_done = state["settings"], int(state["epochs_done"])
        except Exception as error:
            # A damaged or foreign file fails in too many ways to list; none of them runs code.
            raise InvalidInput(f"{self.path} does not hold an interrupted training; {remedy}") from error
        if settings != json.dumps(self.settings):
            raise InvalidInput(f"{self.path} was left by a training with other settings; give the same, or {remedy}")
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        return epochs_done

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)
