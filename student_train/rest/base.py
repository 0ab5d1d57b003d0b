"""What every loss of the rest is: a module that makes a number of a batch of images that nobody was asked about."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from ground.spec import Settings, argument_names, split_spec
from ground.user_code import UserCode
from models import Network
from models.compute import Compute
from student_train.rest.rows import RestRows


@dataclass(frozen=True, slots=True)
class RestBatch:
    """Images of the rest as a loss sees them.

    Args:
        rows: (B,) int64 on the CPU, of those that the loss learns from.
        labels: (B,) int64 on the device, `UNLABELLED` where there is none.
        student: the network that is trained.
        look: of a role, "student", "teacher" or "strong": network inputs (B, 3, h, w); each role sees a view of its
            own, and "strong" one that is changed more.
        logits: of a network and inputs: what it says, (B, K) of at least float32, with gradient, over all ranks.
    """

    rows: Tensor
    labels: Tensor
    student: Network
    look: Callable[[str], Tensor]
    logits: Callable[[Network, Tensor], Tensor]


class RestLoss(nn.Module, ABC):
    """A scalar from images without an answer.

    Args:
        ratio: images in a batch for each of `--batch-size`.
        weight: of the loss in the sum; None for its `usual_weight`.
        ramp: epochs in which the weight rises to that, as exp(-5 (1 - t)^2) (Laine & Aila 2017, arXiv:1610.02242,
            section 3); 0 for all of it at once.

    Raises:
        ValueError: one of them is out of its range.

    Attributes:
        name: what `--rest` calls it.
        source: paper and equation.
        reads_labels: whether it learns from labelled rows alone.
        constrains_logits: whether it determines the level of the logits by itself.
    """

    name: ClassVar[str]
    source: ClassVar[str]
    reads_labels: ClassVar[bool] = False
    constrains_logits: ClassVar[bool] = False

    def __init__(self, ratio: float, weight: float | None, ramp: float) -> None:
        super().__init__()
        if not 0 < ratio <= 64:
            raise ValueError(f"ratio is above 0 and at most 64, got {ratio}")
        if weight is not None and not weight > 0:
            raise ValueError(f"weight is above 0, got {weight}; leave the loss out where it is to have none")
        if ramp < 0:
            raise ValueError(f"ramp is a number of epochs of at least 0, got {ramp}")
        self.ratio, self.weight, self.ramp = ratio, weight, ramp

    @classmethod
    def arguments(cls, text: str) -> dict[str, Any]:
        """What `text`, as `--rest` takes it, has it made with; raises `InvalidInput` for what it does not take."""
        name, values = split_spec(text)
        settings = Settings("loss of the rest", name, values)
        arguments = settings.arguments(cls)
        settings.finish()
        settings.call(cls, arguments)  # what the loss itself refuses is told with the name that was typed
        return arguments

    def describe(self) -> dict[str, Any]:
        """What it was made with, for the record, in plain values."""
        return {name: getattr(self, name) for name in argument_names(type(self))}

    def usual_weight(self, rows: int, answered: int) -> float:
        """Its weight where none is given, beside so many rows of the method, with so many of the rest of its own."""
        return 1.0

    def risen(self, epoch: float) -> float:
        """What part of its weight it has after so many epochs, in (0, 1]."""
        return 1.0 if epoch >= self.ramp else math.exp(-5 * (1 - epoch / self.ramp) ** 2)

    def begin(self, student: Network, rows: RestRows, compute: Compute, code: UserCode) -> None:
        """Make what it needs of the student and of the rows that it learns from; called once, before training.

        Args:
            code: what is done with networks that are code from outside this program.
        """

    @abstractmethod
    def forward(self, batch: RestBatch) -> Tensor:
        """The loss of a batch, a scalar of at least float32."""

    def after_step(self, student: Network) -> None:
        """Follow the student, whose weights have changed."""
