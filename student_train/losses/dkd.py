"""DKD: KD taken apart into the target class and the other classes, which are weighted on their own.

Source: Zhao et al. 2022, arXiv:2203.08679, eq. 7.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from student_train.losses.base import DistillationLoss, Recipe
from student_train.losses.kd import kd
from student_train.losses.kinds import LABEL_OUTSIDE, OF_ROWS, Kinds
from student_train.losses.requirements import has_other_classes
from student_train.losses.targets import require_classes, require_epochs, warmed_up
from student_train.losses.tensors import require_positive, same_logits
from student_train.needs import Needs
from student_train.signals import Signals


def dkd(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    alpha: float = 1.0,
    beta: float = 8.0,
    temperature: float = 4.0,
) -> Tensor:
    """T**2 * (alpha * target-class KL + beta * KL among the other classes): nats, batch mean.

    With alpha = 1 and beta = 1 - (the teacher's softened probability of the target) it would be KD.

    Source: Zhao et al. 2022, arXiv:2203.08679, eq. 7. The target is left out of the other classes as in the paper;
    the released code lowers its scaled logit by 1000 instead, the same number unless scaled logits differ by hundreds.

    Args:
        student: (B, K) logits.
        teacher: (B, K) logits.
        labels: (B,) int64, the target class of each sample.
        alpha: weight of the KL between the probabilities of target and not target.
        beta: weight of the KL between the probabilities of the other classes given that it is not the target.
        temperature: above 0.

    Raises:
        ValueError: the shapes differ, there is only one class, or the temperature is not positive.
    """
    student, teacher = same_logits(student, teacher)
    require_positive(temperature=temperature)
    student, teacher = student / temperature, teacher / temperature
    student_others, teacher_others = without_target(student, labels), without_target(teacher, labels)
    student_target = _target_against(student, student_others, labels)
    teacher_target = _target_against(teacher, teacher_others, labels)
    target = kd(student_target, teacher_target, temperature=1.0)
    return temperature**2 * (alpha * target + beta * kd(student_others, teacher_others, temperature=1.0))


def without_target(logits: Tensor, labels: Tensor) -> Tensor:
    """(B, K) without each sample's target: (B, K - 1).

    Raises:
        ValueError: the labels are no classes of these samples, or there is only one class.
    """
    require_classes(labels, logits)
    if logits.shape[1] < 2:
        raise ValueError(f"the logits are {tuple(logits.shape)}; besides the target there must be another class")
    # Gathered by index: a boolean mask would make a GPU wait for the count.
    places = torch.arange(logits.shape[1] - 1, device=logits.device)
    return logits.gather(1, places + (places >= labels[:, None]))


def _target_against(logits: Tensor, others: Tensor, labels: Tensor) -> Tensor:
    """(B, 2) logits of target and not target."""
    return torch.cat([logits.gather(1, labels[:, None]), others.logsumexp(dim=1, keepdim=True)], dim=1)


class DKD(DistillationLoss):
    """T^2 * (alpha * KL(target or not: t || s) + beta * KL(other classes: t || s)) of softmax(./T), batch mean.

    Args:
        alpha: weight of the target-class part.
        beta: weight of the part among the other classes.
        temperature: above 0.
        warmup: epochs over which the weight grows linearly, in steps of an epoch: 1/warmup in the first; the released
            recipe has 20; 0 for none.

    Note:
        the target is removed exactly from the other classes.

    Checked:
        equals KD with alpha = 1 and beta = 1 - p_t[y]; equals the released form that lowers the target by 1000;
        warm-up.
    """

    name: ClassVar[str] = "dkd"
    source: ClassVar[str] = "Zhao et al. 2022, arXiv:2203.08679, eq. 7"
    recipe: ClassVar[Recipe] = Recipe(weight=1.0, ce=1.0)
    kinds: ClassVar[Kinds] = Kinds(OF_ROWS, LABEL_OUTSIDE)
    pulls_to_teacher: ClassVar[bool] = True
    needs = Needs(outputs="logits", labels=True)
    requires = (has_other_classes,)

    def __init__(self, alpha: float = 1.0, beta: float = 8.0, temperature: float = 4.0, warmup: int = 0) -> None:
        super().__init__()
        require_positive(temperature=temperature)
        require_epochs(warmup)
        self.alpha, self.beta, self.temperature, self.warmup = alpha, beta, temperature, warmup

    def forward(self, signals: Signals) -> Tensor:
        """Single samples."""
        student, teacher = self.logits(signals)
        loss = dkd(student, teacher, signals.labels, self.alpha, self.beta, self.temperature)
        return warmed_up(signals.moment, self.warmup) * loss
