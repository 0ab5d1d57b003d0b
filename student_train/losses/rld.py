"""Refined logit distillation (RLD): the teacher's confidence, and its order of the classes it ranks below the true one.

Source: Sun et al. 2024, arXiv:2408.07703 (ICCV 2025).
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from student_train.losses.base import DistillationLoss, Recipe
from student_train.losses.kd import kd
from student_train.losses.kinds import LABEL_OUTSIDE, OF_ROWS, Kinds
from student_train.losses.targets import require_classes, require_epochs, target_mask, warmed_up
from student_train.losses.tensors import require_positive, same_logits
from student_train.needs import Needs
from student_train.signals import Signals

# In place of minus infinity, whose differences are NaN: a row of nothing else is uniform, with gradient zero.
_NOTHING = -1e9


def sample_confidence(student: Tensor, teacher: Tensor, labels: Tensor, temperature: float = 4.0) -> Tensor:
    """KL of (p_max, 1 - p_max) of the teacher from (p_true, 1 - p_true) of the student, times T^2: nats, batch mean.

    Zero for equal logits where the teacher is right; where it errs, its confidence is meant for the true class.

    Source: Sun et al. 2024, arXiv:2408.07703, section 3, L_SCD.

    Args:
        student: (B, K) logits.
        teacher: (B, K) logits.
        labels: (B,) int64 classes.
        temperature: above 0.

    Raises:
        ValueError: the shapes differ or the temperature is not positive.
    """
    student, teacher = same_logits(student, teacher)
    require_positive(temperature=temperature)
    ours = _one_or_another(student / temperature, target_mask(labels, student))
    theirs = _one_or_another(teacher / temperature, target_mask(teacher.argmax(dim=1), teacher))
    return temperature**2 * kd(ours, theirs, temperature=1.0)


def masked_correlation(student: Tensor, teacher: Tensor, labels: Tensor, temperature: float = 4.0) -> Tensor:
    """KL(teacher || student) among the classes that the teacher ranks below the true one, times T^2: nats, batch mean.

    Source: Sun et al. 2024, arXiv:2408.07703, section 3, L_MCD with the mask "greater or equal".

    Args:
        student: (B, K) logits.
        teacher: (B, K) logits.
        labels: (B,) int64 classes.
        temperature: above 0.

    Raises:
        ValueError: the shapes differ or the temperature is not positive.
    """
    student, teacher = same_logits(student, teacher)
    require_classes(labels, teacher)
    left_out = teacher >= teacher.gather(1, labels.unsqueeze(1))
    ours, theirs = (logits.masked_fill(left_out, _NOTHING) for logits in (student, teacher))
    return kd(ours, theirs, temperature)


def rld(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    alpha: float = 1.0,
    beta: float = 8.0,
    temperature: float = 4.0,
    confidence_temperature: float | None = None,
) -> Tensor:
    """alpha * `sample_confidence` + beta * `masked_correlation`.

    Source: Sun et al. 2024, arXiv:2408.07703, section 3, L_RLD without its cross-entropy.

    Args:
        student: (B, K) logits.
        teacher: (B, K) logits.
        labels: (B,) int64 classes.
        alpha, beta: weights of the two.
        temperature: above 0.
        confidence_temperature: of `sample_confidence`; None for the same.

    Raises:
        ValueError: the shapes differ or a temperature is not positive.
    """
    own = temperature if confidence_temperature is None else confidence_temperature
    confidence = sample_confidence(student, teacher, labels, own)
    return alpha * confidence + beta * masked_correlation(student, teacher, labels, temperature)


def _one_or_another(logits: Tensor, chosen: Tensor) -> Tensor:
    """(B, 2): logits of the chosen class and of any other."""
    parts = [logits.masked_fill(mask, _NOTHING).logsumexp(dim=1) for mask in (~chosen, chosen)]
    return torch.stack(parts, dim=1)


class RLD(DistillationLoss):
    """alpha * T^2 * KL(b_t || b_s) + beta * T^2 * KL(q_t || q_s), batch mean.

    b is (p_max, 1 - p_max) of the teacher and (p_true, 1 - p_true) of the student; q the softmax over the classes that
    the teacher ranks below the true one.

    Args:
        alpha, beta: weights of the two.
        temperature: above 0.
        confidence_temperature: of b; None for the same, as in the paper and the released command; the released code's
            own default is 1.
        warmup: epochs over which the weight grows linearly, in steps of an epoch; the released recipe has 20, 0 is
            none.

    Checked:
        ties, and a teacher that ranks the true class last.
    """

    name: ClassVar[str] = "rld"
    source: ClassVar[str] = "Sun et al. 2024, arXiv:2408.07703, section 3"
    recipe: ClassVar[Recipe] = Recipe(weight=1.0, ce=1.0)
    kinds: ClassVar[Kinds] = Kinds(OF_ROWS, LABEL_OUTSIDE)
    needs = Needs(outputs="logits", labels=True)

    def __init__(
        self,
        alpha: float = 1.0,
        beta: float = 8.0,
        temperature: float = 4.0,
        confidence_temperature: float | None = None,
        warmup: int = 0,
    ) -> None:
        super().__init__()
        require_positive(temperature=temperature)
        require_epochs(warmup)
        if confidence_temperature is not None:
            require_positive(confidence_temperature=confidence_temperature)
        self.alpha, self.beta, self.temperature = alpha, beta, temperature
        self.confidence_temperature, self.warmup = confidence_temperature, warmup

    def forward(self, signals: Signals) -> Tensor:
        """Single samples."""
        student, teacher = self.logits(signals)
        temperatures = self.temperature, self.confidence_temperature
        loss = rld(student, teacher, signals.labels, self.alpha, self.beta, *temperatures)
        return warmed_up(signals.moment, self.warmup) * loss
