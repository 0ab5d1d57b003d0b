"""Pseudo-labels (FixMatch): what the student is sure of in one view, it learns to say of a view that is changed more.

Source: Sohn et al. 2020, arXiv:2001.07685.
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from student_train.rest.base import RestBatch, RestLoss


def pseudo_label_loss(weak: Tensor, strong: Tensor, confidence: float) -> Tensor:
    """Cross-entropy of the strong view with the weak view's class, where that is sure enough; mean over all rows.

    Source: arXiv:2001.07685, eq. 4.

    Args:
        weak: (B, K) logits; no gradient reaches them.
        strong: (B, K) logits.
        confidence: the least probability of the class.
    """
    probability, label = weak.detach().softmax(dim=1).max(dim=1)
    each = F.cross_entropy(strong, label, reduction="none")
    return (each * (probability >= confidence)).mean()


class PseudoLabels(RestLoss):
    """FixMatch's term of unlabelled images.

    Args:
        confidence: the paper's threshold is 0.95.
    """

    name: ClassVar[str] = "pseudo"
    source: ClassVar[str] = "Sohn et al. 2020, arXiv:2001.07685, eq. 4, with TrivialAugment as the strong view"

    def __init__(self, confidence: float = 0.95, ratio: float = 1.0, weight: float = 1.0, ramp: float = 0.0) -> None:
        super().__init__(ratio, weight, ramp)
        if not 0 <= confidence <= 1:
            raise ValueError(f"confidence is a probability, got {confidence}")
        self.confidence = confidence

    def forward(self, batch: RestBatch) -> Tensor:
        """See `RestLoss.forward`; batch norm sees each view's batch alone."""
        with torch.no_grad():
            weak = batch.logits(batch.student, batch.look("teacher"))
        return pseudo_label_loss(weak, batch.logits(batch.student, batch.look("strong")), self.confidence)
