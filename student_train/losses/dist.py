"""DIST: correlate the student's probabilities with the teacher's, across classes and across the batch.

Source: Huang et al. 2022, arXiv:2205.10536, eq. 8 and 9.
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from student_train.losses.base import DistillationLoss, Recipe
from student_train.losses.kinds import AS_CERTAIN, OF_ROWS, Kinds, restricted_with
from student_train.losses.tensors import require_positive, same_logits
from student_train.signals import Signals

_EPS = 1e-8


def dist(student: Tensor, teacher: Tensor, beta: float = 1.0, gamma: float = 1.0, temperature: float = 4.0) -> Tensor:
    """One minus the Pearson correlation of probabilities, of each sample and of each class, times T**2.

    A row without variance (a class nobody predicts, a batch of one sample) counts as uncorrelated.

    Source: Huang et al. 2022, arXiv:2205.10536, eq. 8 (over classes) and 9 (over the batch); T**2 and the 1e-8 that is
    added to the product of norms are the released code's.

    Args:
        student: (B, K) logits.
        teacher: (B, K) logits.
        beta: weight of the correlation across classes, a mean over samples.
        gamma: weight of the correlation across the batch, a mean over classes.
        temperature: above 0.

    Raises:
        ValueError: the shapes differ or the temperature is not positive.
    """
    student, teacher = same_logits(student, teacher)
    require_positive(temperature=temperature)
    student_probs = F.softmax(student / temperature, dim=1)
    teacher_probs = F.softmax(teacher / temperature, dim=1)
    across_classes = 1 - _correlations(student_probs, teacher_probs, dim=1).mean()
    across_batch = 1 - _correlations(student_probs, teacher_probs, dim=0).mean()
    return temperature**2 * (beta * across_classes + gamma * across_batch)


def _correlations(one: Tensor, other: Tensor, dim: int) -> Tensor:
    """Pearson's, along `dim`."""
    one, other = (tensor - tensor.mean(dim=dim, keepdim=True) for tensor in (one, other))
    norms = torch.linalg.vector_norm(one, dim=dim) * torch.linalg.vector_norm(other, dim=dim)
    correlations: Tensor = (one * other).sum(dim=dim) / (norms + _EPS)
    return correlations


class DIST(DistillationLoss):
    """T^2 * (beta * (1 - mean over samples of r across classes) + gamma * (1 - mean over classes of r across samples)).

    r is Pearson's correlation of softmax(s/T) with softmax(t/T).

    Args:
        beta: weight of the part across classes.
        gamma: weight of the part across the batch.
        temperature: above 0.

    Note:
        a student whose logits are almost all equal gets a finite gradient of up to 1e7, from the 1e-8 of the released
        formula.

    Checked:
        NumPy's corrcoef; no change by scale and shift of a row of probabilities.
    """

    name: ClassVar[str] = "dist"
    source: ClassVar[str] = "Huang et al. 2022, arXiv:2205.10536, eq. 8 and 9"
    recipe: ClassVar[Recipe] = Recipe(weight=2.0, ce=1.0, kd=1.0)
    kinds: ClassVar[Kinds] = Kinds(OF_ROWS | restricted_with("gamma", 0.0) | AS_CERTAIN)
    pulls_to_teacher: ClassVar[bool] = True

    def __init__(self, beta: float = 1.0, gamma: float = 1.0, temperature: float = 4.0) -> None:
        super().__init__()
        require_positive(temperature=temperature)
        self.beta, self.gamma, self.temperature = beta, gamma, temperature

    def forward(self, signals: Signals) -> Tensor:
        """Logits of single samples, or differences of logits."""
        return dist(*self.logits(signals), beta=self.beta, gamma=self.gamma, temperature=self.temperature)
