"""A student in training: everything that steps change, and so everything that is saved and brought back."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from models import Network
from student_train.bound_method import Losses
from student_train.protocol import Protocol
from student_train.train_config import TrainConfig


def make_optimizer(config: TrainConfig, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """What changes a student and what its losses learn."""
    return torch.optim.SGD(parameters, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay)


@dataclass(slots=True)
class StudentState:
    """One student between two steps; what steps it is elsewhere, and may step several.

    Args:
        student: what is trained and kept, on its device.
        learned: what its losses learn, there too.
        optimizer: of both.
        protocol: when to lower the learning rate and when to stop.

    Attributes:
        modules: both, for saving.
        best: weights of `modules` at the best validation accuracy.
        step: steps so far.
        rows: an evaluation each, as `metrics.csv` has them.
        losses: those of the steps since the last evaluation.
        seconds: of training, over all the times that it was resumed.
    """

    student: Network
    learned: nn.ModuleList
    optimizer: torch.optim.Optimizer
    protocol: Protocol
    step: int = 0
    rows: list[dict[str, Any]] = field(default_factory=list)
    losses: list[Losses] = field(default_factory=list)
    seconds: float = 0.0
    modules: nn.ModuleList = field(init=False)
    best: dict[str, Tensor] = field(init=False)

    def __post_init__(self) -> None:
        self.modules = nn.ModuleList([self.student, self.learned])
        self.remember()

    def set_lr(self, lr: float) -> None:
        """The learning rate of the steps to come."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr

    def remember(self) -> None:
        """These weights are the best so far."""
        self.best = {name: tensor.detach().clone() for name, tensor in self.modules.state_dict().items()}

    def go_back(self) -> None:
        """Return to the best weights; what pushed away from them is not carried over to them."""
        self.modules.load_state_dict(self.best)
        self.optimizer.state.clear()

    def take_losses(self) -> tuple[float, list[float | None]]:
        """Means over the steps since the last call: of the sum, and of each loss where it was recorded."""
        total = torch.stack([losses.total for losses in self.losses]).mean().item()
        terms = torch.stack([losses.terms for losses in self.losses]).mean(dim=0).tolist()
        self.losses = []
        return total, [None if math.isnan(term) else term for term in terms]

    def is_finite(self) -> bool:
        """Whether every weight of the student is a number."""
        return bool(torch.stack([parameter.isfinite().all() for parameter in self.student.parameters()]).all())

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
        """Go on from what was `saved`.

        Raises:
            KeyError, TypeError, ValueError, AttributeError, RuntimeError: it is damaged.
        """
        self.step, self.seconds = int(state["step"]), float(state["seconds"])
        totals = state["losses"].to(device)
        # Earlier releases kept the sum alone.
        unknown = totals.new_full((len(totals), len(self.learned)), math.nan)
        terms = state.get("terms", unknown).to(device)
        self.losses = [Losses(*both) for both in zip(totals, terms, strict=True)]
        self.rows = json.loads(state["rows"])
        self.protocol.restore(state["protocol"])
        self.modules.load_state_dict(state["best"])
        self.remember()
        self.modules.load_state_dict(state["modules"])
        self.optimizer.load_state_dict(state["optimizer"])
