"""A student in training: everything that steps change, and so everything that is saved and brought back."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from itertools import chain
from typing import Annotated, Any

import torch
from msgspec import Meta, Struct
from torch import Tensor, nn

from ground.documents import Amount, Count, Share, typed
from ground.imports import uncollected
from models import Network
from storage.ledger_chain import GENESIS, Seal
from student_train.averaging import AveragedWeights
from student_train.bound_method import Losses
from student_train.protocol import Protocol
from student_train.train_config import TrainConfig


def make_optimizer(config: TrainConfig, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """What changes a student and what its losses learn."""
    with uncollected():
        # As a step would do of itself.
        import_module("torch._dynamo")
    return torch.optim.SGD(parameters, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay)


@dataclass(slots=True)
class StudentState:
    """One student between two steps; what steps it is elsewhere, and may step several.

    Args:
        student: what is trained and kept, on its device.
        learned: what its losses learn, there too.
        optimizer: of both.
        protocol: when to lower the learning rate and when to stop.
        average: of the student's weights over steps; what is measured and kept then, in the student's place.

    Attributes:
        modules: all that has weights, for saving.
        result: what is measured and kept, with what its losses learn.
        best: weights of `result` at the best validation accuracy.
        step: steps so far.
        rows: an evaluation each, as `metrics.csv` has them.
        losses: those of the steps since the last evaluation.
        seconds: of training, over all the times that it was resumed.
    """

    student: Network
    learned: nn.ModuleList
    optimizer: torch.optim.Optimizer
    protocol: Protocol
    average: AveragedWeights | None = None
    step: int = 0
    rows: list[dict[str, Any]] = field(default_factory=list)
    losses: list[Losses] = field(default_factory=list)
    seconds: float = 0.0
    modules: nn.ModuleList = field(init=False)
    result: nn.ModuleList = field(init=False)
    best: dict[str, Tensor] = field(init=False)

    def __post_init__(self) -> None:
        averages = [] if self.average is None else [self.average]
        self.modules = nn.ModuleList([self.student, self.learned, *averages])
        self.result = nn.ModuleList([self.evaluated, self.learned])
        self.remember()

    @property
    def evaluated(self) -> Network:
        """What is measured, and kept in the end."""
        return self.student if self.average is None else self.average.network

    def advance(self) -> None:
        """The weights have made a step."""
        self.step += 1
        if self.average is not None:
            self.average.update(self.student)

    def set_lr(self, lr: float) -> None:
        """The learning rate of the steps to come."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr

    def remember(self) -> None:
        """These weights are the best so far."""
        self.best = {name: tensor.detach().clone() for name, tensor in self.result.state_dict().items()}

    @property
    def is_at_best(self) -> bool:
        """Whether the weights are the best ones, bit for bit."""
        return all(torch.equal(tensor, self.best[name]) for name, tensor in self.result.state_dict().items())

    def go_back(self) -> None:
        """Return to the best weights; what pushed away from them is not carried over to them."""
        self.result.load_state_dict(self.best)
        if self.average is not None:
            self.student.load_state_dict(self.average.network.state_dict())
        self.optimizer.state.clear()

    def take_losses(self) -> tuple[float, list[float | None]]:
        """Means over the steps since the last call: of the sum, and of each loss where it was recorded."""
        total = torch.stack([losses.total for losses in self.losses]).mean().item()
        terms = torch.stack([losses.terms for losses in self.losses]).mean(dim=0).tolist()
        self.losses = []
        return total, [None if math.isnan(term) else term for term in terms]

    def is_finite(self) -> bool:
        """Whether every weight of the student is a number, and of the average."""
        parameters = chain(self.student.parameters(), self.evaluated.parameters())
        return bool(torch.stack([parameter.isfinite().all() for parameter in parameters]).all())

    def saved(self) -> dict[str, Any]:
        """Tensors, numbers and text, from which `restore` goes on."""
        return {
            "step": self.step,
            "losses": torch.stack([losses.total for losses in self.losses]) if self.losses else torch.empty(0),
            "terms": torch.stack([losses.terms for losses in self.losses]) if self.losses else torch.empty(0),
            "rows": json.dumps(self.rows),
            "seconds": self.seconds,
            "protocol": self.protocol.state(),
            "modules": self.modules.state_dict(),
            "best": self.best,
            "optimizer": self.optimizer.state_dict(),
        }

    def restore(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Go on from what was `saved`, which may come from anybody.

        Raises:
            ValueError, KeyError, TypeError, AttributeError, RuntimeError: it is damaged, or of another student.
        """
        found = typed({name: state[name] for name in ("step", "seconds", "protocol")}, _Progress)
        rows = typed(json.loads(state["rows"]), list[_Row])
        _require(math.isfinite(found.seconds) and math.isfinite(found.protocol.best), "a number is not finite")
        _require(len(rows) == found.protocol.evals, f"{len(rows)} rows of {found.protocol.evals} evaluations")
        _require((found.protocol.best < 0) == (not rows), "the best accuracy is of no evaluation")
        for name, owner in (("best", self.result), ("modules", self.modules)):
            _require_alike(state[name], owner.state_dict(), name)
        self.step, self.seconds = found.step, found.seconds
        self.losses = self._restored_losses(state, device)
        self.rows = json.loads(state["rows"])
        self.protocol.restore(state["protocol"])
        self.result.load_state_dict(state["best"])
        self.remember()
        self.modules.load_state_dict(state["modules"])
        _require(self.average is None or int(self.average.updates) == self.step, "the average is of other steps")
        # Groups are what the settings make them, and those are the same; the rest is checked, for nobody else does.
        momenta = self._checked_momenta(state["optimizer"]["state"])
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": momenta})

    def _restored_losses(self, state: Mapping[str, Any], device: torch.device) -> list[Losses]:
        totals, count = state["losses"], len(self.learned)
        _require(
            isinstance(totals, Tensor) and totals.ndim == 1 and totals.is_floating_point(), "losses are no numbers"
        )
        # Earlier releases kept the sum alone.
        terms = state.get("terms", totals.new_full((len(totals), count), math.nan))
        _require(isinstance(terms, Tensor) and terms.is_floating_point(), "single losses are no numbers")
        _require(not len(totals) or terms.shape == (len(totals), count), "single losses are not one each a step")
        return [Losses(*both) for both in zip(totals.to(device), terms.to(device), strict=True)]

    def _checked_momenta(self, kept: Mapping[Any, Any]) -> dict[int, dict[str, Tensor | None]]:
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        momenta: dict[int, dict[str, Tensor | None]] = {}
        for place, values in kept.items():
            _require(type(place) is int and 0 <= place < len(parameters), f"the optimizer has no parameter {place!r}")
            momentum = values["momentum_buffer"]
            if momentum is not None:
                _require_alike({"momentum": momentum}, {"momentum": parameters[place].detach()}, f"parameter {place}")
            momenta[place] = {"momentum_buffer": momentum}
        return momenta


class _Stage(Struct, frozen=True, kw_only=True):
    """`Protocol.state`, as it is saved."""

    evals: Count
    since_best: Count
    best: Annotated[float, Meta(ge=-1, le=1)]
    reached: Count


class _Progress(Struct, frozen=True, kw_only=True):
    """How far a student is."""

    step: Count
    seconds: Amount
    protocol: _Stage


class _Row(Struct, frozen=True, kw_only=True):
    """What every row of `metrics.csv` has; columns of single losses come after.

    Args:
        test_accuracy: where it was asked for; earlier releases measured it whenever validation improved.
    """

    step: Count
    epoch: Count
    lr: Amount
    train_loss: float
    val_accuracy: Share
    test_accuracy: Share | None


def _require(holds: bool, why_not: str) -> None:
    if not holds:
        raise ValueError(why_not)


def _require_alike(found: Mapping[str, Any], wanted: Mapping[str, Tensor], what: str) -> None:
    """Raise `ValueError` unless both have tensors of the same names, shapes and types."""
    _require(isinstance(found, Mapping) and found.keys() == wanted.keys(), f"{what}: the names are others")
    for name, tensor in wanted.items():
        other = found[name]
        alike = isinstance(other, Tensor) and (other.shape, other.dtype, other.layout) == (
            tensor.shape,
            tensor.dtype,
            tensor.layout,
        )
        _require(alike, f"{what}: {name} is of another shape or type")


def state_digest(state: Mapping[str, Any], seal: Seal) -> str:
    """Digest of a saved state under a seal, 64 hex digits: of the bytes of its tensors and all else in it."""
    hasher = hashlib.sha256()
    _add(hasher.update, state)
    return seal.hash(0, "state", "", hasher.hexdigest(), GENESIS)


def _add(update: Callable[[bytes | memoryview], None], value: object) -> None:
    """Feed a value, with its type and length, so that no two values feed the same."""
    if isinstance(value, Tensor):
        update(f"tensor {value.dtype} {tuple(value.shape)};".encode())
        update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    elif isinstance(value, Mapping):
        update(f"mapping {len(value)};".encode())
        for name, part in value.items():
            _add(update, name)
            _add(update, part)
    elif isinstance(value, list | tuple):
        update(f"list {len(value)};".encode())
        for part in value:
            _add(update, part)
    else:
        update(f"{type(value).__name__} {value!a};".encode())
