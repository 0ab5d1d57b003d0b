"""Mean Teacher: the student learns to agree with the average of its own weights, on another view of an image.

Source: Tarvainen & Valpola 2017, arXiv:1703.01780.
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ground.user_code import UserCode
from models import Network
from models.compute import Compute
from student_train.averaging import AveragedWeights
from student_train.rest.base import RestBatch, RestLoss
from student_train.rest.rows import RestRows


class MeanTeacher(RestLoss):
    """Mean squared difference of the probabilities of student and average, summed over classes, batch mean.

    Args:
        decay: of the average; the paper's is 0.999.
    """

    name: ClassVar[str] = "mean_teacher"
    source: ClassVar[str] = "Tarvainen & Valpola 2017, arXiv:1703.01780, eq. 1 and 2"

    def __init__(self, decay: float = 0.999, ratio: float = 1.0, weight: float = 1.0, ramp: float = 5.0) -> None:
        super().__init__(ratio, weight, ramp)
        if not 0 < decay < 1:
            raise ValueError(f"decay is above 0 and below 1, got {decay}")
        self.decay = decay
        self.average: AveragedWeights | None = None

    def begin(self, student: Network, rows: RestRows, compute: Compute, code: UserCode) -> None:
        """See `RestLoss.begin`."""
        self.average = AveragedWeights(student, self.decay)

    def forward(self, batch: RestBatch) -> Tensor:
        """See `RestLoss.forward`."""
        assert self.average is not None, "set by begin"
        with torch.no_grad():
            target = batch.logits(self.average.network, batch.look("teacher")).softmax(dim=1)
        said = batch.logits(batch.student, batch.look("student")).softmax(dim=1)
        return F.mse_loss(said, target, reduction="sum") / len(said)

    def after_step(self, student: Network) -> None:
        """See `RestLoss.after_step`."""
        assert self.average is not None, "set by begin"
        self.average.update(student)
