"""Cross-entropy on the labels of rows that nobody was asked about."""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from student_train.rest.base import RestBatch, RestLoss


class Labels(RestLoss):
    """-log softmax(s)[label], batch mean, of labelled rows."""

    name: ClassVar[str] = "ce"
    source: ClassVar[str] = "the labels' own term of Hinton et al. 2015, arXiv:1503.02531, section 2"
    reads_labels: ClassVar[bool] = True
    constrains_logits: ClassVar[bool] = True

    def __init__(self, ratio: float = 1.0, weight: float = 1.0, ramp: float = 0.0) -> None:
        super().__init__(ratio, weight, ramp)

    def forward(self, batch: RestBatch) -> Tensor:
        """See `RestLoss.forward`."""
        return F.cross_entropy(batch.logits(batch.student, batch.look("student")), batch.labels)
