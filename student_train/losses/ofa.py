"""One-for-all distillation's adaptive target (OFA): soft labels with the true class enhanced, on final logits.

Source: Hao et al., NeurIPS 2023, arXiv:2310.19444. Its branches on intermediate stages are not here.
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from student_train.losses.base import DistillationLoss, Recipe
from student_train.losses.kinds import AS_CERTAIN, LABEL_OUTSIDE, OF_ROWS, Kinds
from student_train.losses.targets import target_mask
from student_train.losses.tensors import require_positive, same_logits
from student_train.needs import Needs
from student_train.signals import Signals


def ofa(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    eps: float = 1.0,
    temperature: float = 1.0,
    target_only: bool = False,
) -> Tensor:
    """-sum of ((p_t + y)^eps - y) * log p_s over classes, batch mean: nats; y is 1 at the true class.

    Taking y away leaves the plain cross-entropy to a term of its own, as the released code does. No temperature**2.

    Source: Hao et al., NeurIPS 2023, arXiv:2310.19444, eq. 5, as the released code computes it.

    Args:
        student: (B, K) logits.
        teacher: (B, K) logits.
        labels: (B,) int64 classes.
        eps: above 0; 1 is cross-entropy with the teacher's probabilities, more than 1 enhances the true class.
        temperature: above 0, of both softmaxes.
        target_only: raise to eps at the true class alone, as written in the paper; the released code raises all.

    Raises:
        ValueError: the shapes differ, or a setting is not positive.
    """
    student, teacher = same_logits(student, teacher)
    require_positive(eps=eps, temperature=temperature)
    is_target = target_mask(labels, teacher)
    probs = F.softmax(teacher / temperature, dim=1)
    others = probs if target_only else probs**eps
    # (1 + p)^eps - 1 with the digits of small p.
    enhanced = torch.expm1(eps * torch.log1p(probs))
    weights = torch.where(is_target, enhanced, others)
    return -(weights * F.log_softmax(student / temperature, dim=1)).sum(dim=1).mean()


class OFA(DistillationLoss):
    """-sum of ((p_t + y)^eps - y) * log p_s over classes, batch mean; y is 1 at the true class, else 0.

    Args:
        eps: above 0: 1 is the released default, 1.5 the value of its ImageNet command.
        temperature: above 0.
        target_only: raise to eps at the true class alone, as we read the paper; the released code raises all.

    Note:
        on final logits only, without the paper's branches on stages.

    Checked:
        eps = 1 is soft cross-entropy.
    """

    name: ClassVar[str] = "ofa"
    source: ClassVar[str] = "Hao et al., NeurIPS 2023, arXiv:2310.19444, eq. 5 and released code"
    recipe: ClassVar[Recipe] = Recipe(weight=1.0, ce=1.0)
    kinds: ClassVar[Kinds] = Kinds(OF_ROWS | AS_CERTAIN, LABEL_OUTSIDE)
    needs = Needs(outputs="logits", labels=True)

    def __init__(self, eps: float = 1.0, temperature: float = 1.0, target_only: bool = False) -> None:
        super().__init__()
        require_positive(eps=eps, temperature=temperature)
        self.eps, self.temperature, self.target_only = eps, temperature, target_only

    def forward(self, signals: Signals) -> Tensor:
        """Single samples."""
        return ofa(*self.logits(signals), signals.labels, **self.settings)
