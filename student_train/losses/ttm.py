"""TTM and WTTM: match a teacher that was softened with a student that was not.

Source: Zheng and Yang 2024, arXiv:2402.11148, eq. 2 and 23.
"""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from student_train.losses.base import DistillationLoss, Recipe
from student_train.losses.kd import kd
from student_train.losses.kinds import AMONG_NAMED, AS_CERTAIN, OF_ROWS, Kinds
from student_train.losses.tensors import require_positive, same_logits
from student_train.signals import Signals


def ttm(student: Tensor, teacher: Tensor, gamma: float = 0.1) -> Tensor:
    """KL(teacher's probabilities to the power gamma, normalised || student): nats, batch mean.

    The power is a temperature of 1 / gamma, of the teacher alone; nothing is multiplied by T**2.

    Source: Zheng and Yang 2024, arXiv:2402.11148, eq. 2.

    Args:
        student: (B, K) logits.
        teacher: (B, K) logits.
        gamma: above 0; the authors tuned it for each pair of networks, between 0.1 and 0.4 on CIFAR-100.

    Raises:
        ValueError: the shapes differ or gamma is not positive.
    """
    student, teacher = same_logits(student, teacher)
    require_positive(gamma=gamma)
    return kd(student, gamma * teacher, temperature=1.0)


def wttm(student: Tensor, teacher: Tensor, gamma: float = 0.1) -> Tensor:
    """`ttm` with each sample weighted by the power sum U of the teacher's probabilities, more where they are smooth.

    U = sum over classes of p_t ** gamma, from 1 for a one-hot teacher to K ** (1 - gamma) for a uniform one.

    Source: Zheng and Yang 2024, arXiv:2402.11148, eq. 22 (U) and 23.

    Args:
        student: (B, K) logits.
        teacher: (B, K) logits.
        gamma: above 0; smooth teachers weigh more below 1.

    Raises:
        ValueError: the shapes differ or gamma is not positive.
    """
    student, teacher = same_logits(student, teacher)
    require_positive(gamma=gamma)
    power_sums = (gamma * F.log_softmax(teacher, dim=1)).logsumexp(dim=1).exp()
    student_log_probs, softened = F.log_softmax(student, dim=1), F.log_softmax(gamma * teacher, dim=1)
    divergences = F.kl_div(student_log_probs, softened, reduction="none", log_target=True).sum(dim=1)
    return (power_sums * divergences).mean()


class SoftenedTeacher(DistillationLoss):
    """What both share: a teacher that alone is softened.

    Args:
        gamma: the power of its probabilities, above 0.
    """

    def __init__(self, gamma: float = 0.1) -> None:
        super().__init__()
        require_positive(gamma=gamma)
        self.gamma = gamma

    def logit_target(self, signals: Signals) -> Tensor:
        """The teacher's logits, softened: what the student's are compared with."""
        return self.gamma * self.logits(signals)[1]


class TTM(SoftenedTeacher):
    """KL(softmax(gamma * t) || softmax(s)), summed over classes, batch mean.

    Args:
        gamma: the power of the teacher's probabilities, 1 / temperature; the authors tuned it, and the weight, for each
            pair of networks: on CIFAR-100 0.1 to 0.4 with weights from 7 to 101.

    Recipe:
        the authors' code has no default; its example (README, VGG13 to VGG8) has gamma 0.1 and weight 45. For WRN-40-2
        to WRN-16-2 the paper's table gives weight 101.

    Checked:
        zero for a student equal to gamma times the teacher.
    """

    name: ClassVar[str] = "ttm"
    source: ClassVar[str] = "Zheng and Yang 2024, arXiv:2402.11148, eq. 2"
    recipe: ClassVar[Recipe] = Recipe(weight=45.0, ce=1.0)
    kinds: ClassVar[Kinds] = Kinds(OF_ROWS | AMONG_NAMED | AS_CERTAIN)

    def forward(self, signals: Signals) -> Tensor:
        """Logits of single samples, or differences of logits."""
        return ttm(*self.logits(signals), gamma=self.gamma)


class WTTM(SoftenedTeacher):
    """Batch mean of U * KL(softmax(gamma * t) || softmax(s)), U = sum of softmax(t)^gamma over classes.

    Args:
        gamma: the power of the teacher's probabilities, 1 / temperature; the authors tuned it, and the weight, for each
            pair of networks: on CIFAR-100 0.1 to 0.4 with weights from 1.4 to 16.

    Recipe:
        the authors' code has no default; for VGG13 to VGG8, their example for TTM, table 8 has gamma 0.1 and weight
        2.25, and weight 4 for WRN-40-2 to WRN-16-2.

    Checked:
        U at both of its extremes.
    """

    name: ClassVar[str] = "wttm"
    source: ClassVar[str] = "Zheng and Yang 2024, arXiv:2402.11148, eq. 22 and 23"
    recipe: ClassVar[Recipe] = Recipe(weight=2.25, ce=1.0)
    kinds: ClassVar[Kinds] = Kinds(OF_ROWS | AMONG_NAMED | AS_CERTAIN)

    def forward(self, signals: Signals) -> Tensor:
        """Logits of single samples, or differences of logits."""
        return wttm(*self.logits(signals), gamma=self.gamma)
