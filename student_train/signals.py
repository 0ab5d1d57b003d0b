"""What a distillation loss is given: both networks' representations, the labels and the sample index."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from models import Representation


@dataclass(frozen=True, slots=True)
class Signals:
    """One batch as a loss sees it, of B samples or of G comparisons.

    Args:
        student: float32, with gradient.
        teacher: float32, from the store; None for methods that learn from labels alone.
        labels: (B,) int64 classes, or (G, K) float32 differences of one-hot labels once compared.
        index: (B,) int64 rows of the sample; None once compared, where an entry is no single row.
    """

    student: Representation
    teacher: Representation | None
    labels: Tensor
    index: Tensor | None

    @property
    def label_targets(self) -> Tensor:
        """Labels as vectors, (B, K) one-hot or (G, K) compared."""
        if self.labels.is_floating_point():
            return self.labels
        return F.one_hot(self.labels, self.student.logits.shape[1]).to(self.student.logits.dtype)
