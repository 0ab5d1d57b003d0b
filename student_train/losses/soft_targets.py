"""Other distances between softened probabilities: cross-entropy, Jensen-Shannon divergence, and KL the other way.

Sources: Hinton et al. 2015, arXiv:1503.02531; Lin 1991, IEEE Trans. Inf. Theory 37(1); Agarwal et al. 2024 (GKD),
arXiv:2306.13649; Gu et al. 2024 (MiniLLM), arXiv:2306.08543. The last two compare sequences of tokens; here it is one
class per image.
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from storage.answers import Kind
from student_train.losses.base import DistillationLoss, Recipe
from student_train.losses.kd import kd
from student_train.losses.kinds import AMONG_NAMED, AS_CERTAIN, LINEAR, OF_ROWS, Kinds
from student_train.losses.tensors import log_probabilities, require_positive, same_logits
from student_train.signals import Signals


def soft_cross_entropy(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """Cross-entropy of the student with the teacher's softened probabilities: nats, batch mean.

    Its gradient is that of the KL divergence; its minimum is the teacher's entropy, not 0. Not multiplied by T**2.

    Source: Hinton et al. 2015, arXiv:1503.02531, section 2; at T = 1 the soft term of mixup with a fixed teacher.

    Args:
        student: (B, K) logits.
        teacher: (B, K) logits.
        temperature: above 0, of both.

    Raises:
        ValueError: the shapes differ or the temperature is not positive.
    """
    student, teacher = same_logits(student, teacher)
    require_positive(temperature=temperature)
    return F.cross_entropy(student / temperature, F.softmax(teacher / temperature, dim=1))


def jsd(student: Tensor, teacher: Tensor, temperature: float = 1.0, beta: float = 0.5) -> Tensor:
    """Jensen-Shannon divergence of softened probabilities, times temperature squared: nats, batch mean.

    With m = beta * p_t + (1 - beta) * p_s it is beta * KL(p_t || m) + (1 - beta) * KL(p_s || m); at beta = 1/2 that is
    symmetric and at most ln 2 (before T**2). Near 0 it tends to beta * KL(p_t || p_s), near 1 to
    (1 - beta) * KL(p_s || p_t).

    Source: Lin 1991, section 4; beta as in Agarwal et al. 2024, arXiv:2306.13649, section 2. The factor T**2 is KD's.

    Args:
        student: (B, K) logits.
        teacher: (B, K) logits.
        temperature: above 0.
        beta: share of the teacher in the mixture, between 0 and 1, both excluded.

    Raises:
        ValueError: the shapes differ, or a number is out of range.
    """
    student_log_probs, teacher_log_probs = log_probabilities(student, teacher, temperature)
    _require_share(beta)
    gap = student_log_probs - teacher_log_probs
    teacher_to_mixture = -(teacher_log_probs.exp() * _log_mixture(gap, 1 - beta)).sum(dim=1)
    student_to_mixture = -(student_log_probs.exp() * _log_mixture(-gap, beta)).sum(dim=1)
    return temperature**2 * (beta * teacher_to_mixture + (1 - beta) * student_to_mixture).mean()


def _require_share(beta: float) -> None:
    require_positive(beta=beta)
    if not beta < 1:
        raise ValueError(f"beta must be below 1, got {beta}")


def _log_mixture(gap: Tensor, share: float) -> Tensor:
    """log(1 - share + share * exp(gap)), exactly 0 at 0 and finite for any gap, of either sign."""
    below = torch.log1p(share * torch.expm1(gap.clamp(max=0)))
    above = gap + torch.log1p((1 - share) * torch.expm1(-gap.clamp(min=0)))
    return torch.where(gap > 0, above, below)


def reverse_kl(student: Tensor, teacher: Tensor, temperature: float = 4.0) -> Tensor:
    """KL(student || teacher) of softened probabilities, times temperature squared: nats, batch mean.

    It forgives classes that the student leaves out, and punishes those that only the student gives weight.

    Source: Gu et al. 2024, arXiv:2306.08543, eq. 1, of classes; temperature and T**2 are KD's.

    Args:
        student: (B, K) logits.
        teacher: (B, K) logits.
        temperature: above 0.

    Raises:
        ValueError: the shapes differ or the temperature is not positive.
    """
    student, teacher = same_logits(student, teacher)
    return kd(teacher, student, temperature=temperature)


class SoftCrossEntropy(DistillationLoss):
    """-sum of softmax(t/T) * log softmax(s/T) over classes, batch mean.

    Args:
        temperature: above 0, of both.

    Note:
        not multiplied by T^2; at T = 1 it is what mixup adds.
    """

    name: ClassVar[str] = "soft_ce"
    source: ClassVar[str] = "Hinton et al. 2015, arXiv:1503.02531, section 2"
    recipe: ClassVar[Recipe] = Recipe(weight=1.0, ce=1.0)
    kinds: ClassVar[Kinds] = Kinds(OF_ROWS | AMONG_NAMED | LINEAR | AS_CERTAIN)
    pulls_to_teacher: ClassVar[bool] = True

    def __init__(self, temperature: float = 1.0) -> None:
        super().__init__()
        require_positive(temperature=temperature)
        self.temperature = temperature

    def forward(self, signals: Signals) -> Tensor:
        """Logits of single samples, or differences of logits."""
        return soft_cross_entropy(*self.logits(signals), temperature=self.temperature)

    def of_weights(self, signals: Signals) -> Tensor:
        """-sum of w * log softmax(s) over classes, batch mean: at temperature 1."""
        student, weights = same_logits(*self.logits(signals))
        return -(weights * F.log_softmax(student, dim=1)).sum(dim=1).mean()


class JensenShannon(DistillationLoss):
    """T^2 * (b * KL(p || m) + (1 - b) * KL(q || m)), p = softmax(t/T), q = softmax(s/T), m = b * p + (1 - b) * q.

    Args:
        temperature: above 0.
        beta: b, the share of the teacher in the mixture; 0.5 is the symmetric Jensen-Shannon divergence.

    Note:
        T^2 as in KD.

    Checked:
        symmetric and at most ln 2 at beta = 0.5.
    """

    name: ClassVar[str] = "jsd"
    source: ClassVar[str] = "Lin 1991, section 4; Agarwal et al. 2024, arXiv:2306.13649, section 2"
    recipe: ClassVar[Recipe] = Recipe(weight=1.0, ce=1.0)
    kinds: ClassVar[Kinds] = Kinds(OF_ROWS | AMONG_NAMED | AS_CERTAIN)
    pulls_to_teacher: ClassVar[bool] = True

    def __init__(self, temperature: float = 1.0, beta: float = 0.5) -> None:
        super().__init__()
        require_positive(temperature=temperature)
        _require_share(beta)
        self.temperature, self.beta = temperature, beta

    def forward(self, signals: Signals) -> Tensor:
        """Logits of single samples, or differences of logits."""
        return jsd(*self.logits(signals), temperature=self.temperature, beta=self.beta)


class ReverseKL(DistillationLoss):
    """T^2 * KL(softmax(s/T) || softmax(t/T)), summed over classes, batch mean.

    Args:
        temperature: above 0.

    Checked:
        zero for equal logits.
    """

    name: ClassVar[str] = "reverse_kl"
    source: ClassVar[str] = "Gu et al. 2024 (MiniLLM), arXiv:2306.08543, eq. 1"
    recipe: ClassVar[Recipe] = Recipe(weight=1.0, ce=1.0)
    kinds: ClassVar[Kinds] = Kinds(
        OF_ROWS | AMONG_NAMED,
        {Kind.LABEL: "it is infinite where the student gives anything to a class that a label leaves out"},
    )
    pulls_to_teacher: ClassVar[bool] = True

    def __init__(self, temperature: float = 4.0) -> None:
        super().__init__()
        require_positive(temperature=temperature)
        self.temperature = temperature

    def forward(self, signals: Signals) -> Tensor:
        """Logits of single samples, or differences of logits."""
        return reverse_kl(*self.logits(signals), temperature=self.temperature)
