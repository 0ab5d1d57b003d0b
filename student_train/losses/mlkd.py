"""Multi-level logit distillation (MLKD): probabilities alike for each sample, between samples and between classes.

Source: Jin et al., CVPR 2023, Multi-Level Logit Distillation, section 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from ground.spec import to_float
from student_train.binding import Binding
from student_train.losses.base import DistillationLoss, Recipe
from student_train.losses.kinds import AS_CERTAIN, OF_ROWS, Kinds
from student_train.losses.tensors import log_probabilities, require_positive, same_logits
from student_train.needs import Needs
from student_train.signals import Signals

TEMPERATURES = (4.0, 2.0, 3.0, 5.0, 6.0)


def instance_alignment(
    student: Tensor, teacher: Tensor, temperature: float = 4.0, weights: Tensor | None = None
) -> Tensor:
    """KL(teacher || student) of softened probabilities, times temperature squared: mean over the batch.

    Source: Jin et al., CVPR 2023, section 3, instance level.

    Args:
        student: (B, K) logits.
        teacher: (B, K) logits.
        temperature: above 0.
        weights: (B,), of the samples; None for 1.

    Raises:
        ValueError: the shapes differ or the temperature is not positive.
    """
    ours, theirs = log_probabilities(student, teacher, temperature)
    divergences = F.kl_div(ours, theirs, reduction="none", log_target=True).sum(dim=1)
    return temperature**2 * _weighted_mean(divergences, weights)


def batch_alignment(
    student: Tensor, teacher: Tensor, temperature: float = 4.0, weights: Tensor | None = None
) -> Tensor:
    """Squared difference of the Gram matrices P P^T of samples (B x B), summed, divided by B.

    Source: Jin et al., CVPR 2023, section 3, batch level.

    Args:
        student: (B, K) logits.
        teacher: (B, K) logits.
        temperature: above 0.
        weights: (B,), of the rows; None for 1.

    Raises:
        ValueError: the shapes differ or the temperature is not positive.
    """
    ours, theirs = (log_probs.exp() for log_probs in log_probabilities(student, teacher, temperature))
    return _weighted_mean((ours @ ours.T - theirs @ theirs.T).square().sum(dim=1), weights)


def class_alignment(
    student: Tensor, teacher: Tensor, temperature: float = 4.0, weights: Tensor | None = None
) -> Tensor:
    """Squared difference of the Gram matrices P^T P of classes (K x K), summed, divided by K.

    Nothing of K x K is made: with d = s - t and m = s + t, s's - t't is half of d'm + m'd, and the sum over classes of
    a product of such matrices is one over samples (B x B). Every summand holds d twice, so that none cancels another.

    Source: Jin et al., CVPR 2023, section 3, class level.

    Args:
        student: (B, K) logits.
        teacher: (B, K) logits.
        temperature: above 0.
        weights: (K,), of the rows; None for 1.

    Raises:
        ValueError: the shapes differ or the temperature is not positive.
    """
    ours, theirs = (log_probs.exp() for log_probs in log_probabilities(student, teacher, temperature))
    difference, total = ours - theirs, ours + theirs
    weights = ours.new_ones(ours.shape[1]) if weights is None else weights
    summed = _gram_product(difference, total, difference, total, weights)
    summed = summed + 2 * _gram_product(difference, total, total, difference, weights)
    summed = summed + _gram_product(total, difference, total, difference, weights)
    return summed / 4 / ours.shape[1]


def mlkd(
    student: Tensor,
    teacher: Tensor,
    views: int = 2,
    temperatures: Sequence[float] = TEMPERATURES,
    select: bool = False,
) -> Tensor:
    """The three levels on the first (weak) view and the instance level on the others, summed over temperatures.

    As in the released code the weak view counts only by the samples (classes) that the teacher is least sure of: those
    of at most median confidence (at most median total probability). The released code takes the mean of these masks
    after it has summed over the batch, so that they only scale, by about a half; `select` leaves samples and classes
    out instead. Departure: at temperatures 2 and 6 the released instance level takes the weak view for the strong one.

    Source: Jin et al., CVPR 2023, section 3; masks, views and temperatures of the released code.

    Args:
        student: (V * B, K) logits of V views: first the weak view of all images, then the next view of all, ...
        teacher: (V * B, K) logits, in the same order.
        views: V, at least 2.
        temperatures: above 0.
        select: see above.

    Raises:
        ValueError: the shapes differ, there are not so many views, or a temperature is not positive.
    """
    student, teacher = same_logits(student, teacher)
    if views < 2 or len(student) % views:
        raise ValueError(f"{len(student)} rows do not hold {views} views of each image; give 2 views or more")
    images = len(student) // views
    (weak, weak_target), (strong, strong_target) = (
        (student[part], teacher[part]) for part in (slice(images), slice(images, None))
    )
    samples, classes = (mask if select else mask.mean().expand_as(mask) for mask in least_sure(weak_target))
    total = student.new_zeros(())
    for temperature in temperatures:
        total = total + instance_alignment(weak, weak_target, temperature, samples)
        total = total + batch_alignment(weak, weak_target, temperature, samples)
        total = total + class_alignment(weak, weak_target, temperature, classes)
        total = total + instance_alignment(strong, strong_target, temperature)
    return total


def least_sure(teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Masks (B,) and (K,) of zeros and ones: samples of at most median confidence, classes of at most median sum.

    Args:
        teacher: (B, K) logits.
    """
    probs = F.softmax(teacher.detach(), dim=1)
    confidence, mass = probs.amax(dim=1), probs.sum(dim=0)
    # torch's median of an even number is the lower one: the same half as below the mean of the middle two.
    return (confidence <= confidence.median()).to(probs.dtype), (mass <= mass.median()).to(probs.dtype)


def _gram_product(a: Tensor, b: Tensor, c: Tensor, d: Tensor, weights: Tensor) -> Tensor:
    """Sum over classes j, k of w_j * (a'b)_jk * (c'd)_jk, for (B, K) matrices and (K,) weights, by way of B x B."""
    return ((a * weights) @ c.T * (b @ d.T)).sum()


def _weighted_mean(rows: Tensor, weights: Tensor | None) -> Tensor:
    return (rows if weights is None else weights * rows).mean()


class MLKD(DistillationLoss):
    """Sum over T of T^2 KL(P_t || P_s) + |P_t P_t' - P_s P_s'|^2 / B + |P_t' P_t - P_s' P_s|^2 / K, P = softmax(z/T).

    The first stored view has all three, scaled by the share of samples and classes that the teacher is least sure of;
    the other views have the first.

    Args:
        temperatures: with + between.
        select: leave the surer half of samples and classes out, rather than scale by the share that is left.

    Note:
        view 0 is the weak one. The released masks only scale it by about a half. Needs a store built with `--views 2`
        or more. With `standardised=true` all three levels see standardised logits; the released code of LSKD
        standardises those of the instance level alone.

    Recipe:
        the released weights are 0.9, and 0.1 for the sum of both views' cross-entropies, 0.2 for their mean.

    Checked:
        each level alone.
    """

    name: ClassVar[str] = "mlkd"
    source: ClassVar[str] = "Jin et al., CVPR 2023, Multi-Level Logit Distillation, section 3 and released code"
    recipe: ClassVar[Recipe] = Recipe(weight=0.9, ce=0.2)
    kinds: ClassVar[Kinds] = Kinds(OF_ROWS | AS_CERTAIN)
    needs = Needs(outputs="logits", views=True)

    def __init__(self, temperatures: str = "4+2+3+5+6", select: bool = False) -> None:
        super().__init__()
        self.temperatures, self.select = temperatures, select
        self._temperatures = _numbers(temperatures)

    def build(self, binding: Binding) -> None:
        """Refuse a store of single views."""
        if binding.num_views < 2:
            reason = (
                "it aligns several views of each image and the store holds one; build the store with --views 2 or more"
            )
            raise binding.misfit("mlkd", reason, self.pairs)

    def forward(self, signals: Signals) -> Tensor:
        """All views of a batch of images."""
        return mlkd(*self.logits(signals), signals.views, self._temperatures, self.select)


def _numbers(text: str) -> tuple[float, ...]:
    try:
        numbers = tuple(to_float(item) for item in text.split("+"))
    except ValueError as error:
        raise ValueError(f"temperatures must be numbers with + between, as 4+2+3, got {text!r}") from error
    for number in numbers:
        require_positive(temperatures=number)
    return numbers
