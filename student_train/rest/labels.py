"""Cross-entropy on the labels of rows that nobody was asked about."""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from student_train.rest.base import RestBatch, RestLoss

# What fits the best of the weights that were tried, which lay between these (docs/rest.md, "Which settings").
_POWER, _LEAST, _MOST = 0.4, 1.0, 4.0


class Labels(RestLoss):
    """-log softmax(s)[label], batch mean, of labelled rows."""

    name: ClassVar[str] = "ce"
    source: ClassVar[str] = "the labels' own term of Hinton et al. 2015, arXiv:1503.02531, section 2"
    reads_labels: ClassVar[bool] = True
    constrains_logits: ClassVar[bool] = True

    def __init__(self, ratio: float = 1.0, weight: float | None = None, ramp: float = 0.0) -> None:
        super().__init__(ratio, weight, ramp)

    def usual_weight(self, rows: int, answered: int) -> float:
        """The labelled rows for each row of the method to the power of 0.4, between 1 and 4: the fewer were asked
        about, the more labels have to say. Found by validation (docs/rest.md, "Which settings").
        """
        return min(_MOST, max(_LEAST, float((rows / answered) ** _POWER)))

    def forward(self, batch: RestBatch) -> Tensor:
        """See `RestLoss.forward`."""
        return F.cross_entropy(batch.logits(batch.student, batch.look("student")), batch.labels)
