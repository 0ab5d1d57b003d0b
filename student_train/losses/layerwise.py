"""Losses that are a sum over pairs of outputs, each pair on its own or with the next: most of those on layers."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable

import torch
from torch import Tensor

from student_train.losses.base import DistillationLoss
from student_train.needs import Needs
from student_train.signals import Signals


class LayerwiseLoss(DistillationLoss):
    """A sum over outputs of both networks.

    A subclass says in `summands` what it adds up, and in `requires` what the outputs must be.

    Args:
        outputs: which ones, as in `Needs.outputs`: the subclass's setting `layers` or `on`.
    """

    def __init__(self, outputs: str) -> None:
        super().__init__()
        self._outputs = outputs

    @property
    def needs(self) -> Needs:
        """Those outputs."""
        return Needs(outputs=self._outputs)

    @abstractmethod
    def summands(self, signals: Signals) -> Iterable[Tensor]:
        """Scalars, in the order of the outputs."""

    def forward(self, signals: Signals) -> Tensor:
        """Their sum."""
        return torch.stack(list(self.summands(signals))).sum()
