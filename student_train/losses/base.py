"""What every loss is: a module that binds a formula to signals and declares what it needs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor, nn

from student_train.signals import Signals


class DistillationLoss(nn.Module, ABC):
    """A scalar from signals; learned parts, if any, are its parameters and are trained with the student.

    Attributes:
        needs: names of teacher outputs that must be in the store: "logits" or layer names.
        comparable: whether it means something on differences between samples.
        constrains_logits: whether, uncompared, it determines the level of the logits.
    """

    needs: ClassVar[frozenset[str]] = frozenset()
    comparable: ClassVar[bool] = True
    constrains_logits: ClassVar[bool] = True

    @property
    def settings(self) -> dict[str, float | int | str]:
        """The numbers and texts it was made with, for the record."""
        public = {name: value for name, value in vars(self).items() if not name.startswith("_") and name != "training"}
        return {name: value for name, value in public.items() if isinstance(value, (int, float, str))}

    @abstractmethod
    def forward(self, signals: Signals) -> Tensor:
        """The loss of a batch, or of comparisons."""

    def over_all_pairs(self, signals: Signals) -> Tensor | None:
        """The loss over all ordered pairs of a batch in closed form, or None where there is none."""
        return None

    def logit_target(self, signals: Signals) -> Tensor | None:
        """Logits (B, K) that the loss, uncompared, pulls samples to; None if it does not say."""
        return None
