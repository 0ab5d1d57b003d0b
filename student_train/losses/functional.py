"""The mathematics of the losses, as plain functions of tensors.

At least float32 inside: half precision is raised, float64 is kept. No state; teachers get no gradient unless they
ask for one. Each returns a scalar.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["all_pairs_comparison", "comparison", "kd"]


def kd(student: Tensor, teacher: Tensor, temperature: float = 4.0) -> Tensor:
    """KL(teacher || student) of softened probabilities, times temperature squared: nats, batch mean.

    Source: Hinton et al. 2015, arXiv:1503.02531, eq. 1; T**2 from section 2.

    Args:
        student: (B, K) logits.
        teacher: (B, K) logits.
        temperature: above 0.

    Raises:
        ValueError: the shapes differ or the temperature is not positive.
    """
    student, teacher = _same_logits(student, teacher)
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
    student_log_probs = F.log_softmax(student / temperature, dim=1)
    teacher_log_probs = F.log_softmax(teacher / temperature, dim=1)
    # T**2 keeps this gradient level with the hard-label term as T changes.
    return temperature**2 * F.kl_div(student_log_probs, teacher_log_probs, reduction="batchmean", log_target=True)


def comparison(student: Tensor, teacher: Tensor, dims: int | None = None) -> Tensor:
    """Mean squared error of compared logits, over comparisons and classes.

    Source: Xu et al., WACV 2025, eq. 2; `dims` is RKD_d of its figure 4.

    Args:
        student: (G, K) differences.
        teacher: (G, K) differences.
        dims: average-pool both to this many values first, kernel and stride K / dims; None keeps all K.

    Raises:
        ValueError: the shapes differ, or dims does not divide K.
    """
    student, teacher = _same_logits(student, teacher)
    if dims is not None:
        classes = student.shape[1]
        if dims < 1 or classes % dims:
            raise ValueError(f"{classes} classes cannot be pooled to {dims} values; give a divisor of {classes}")
        student, teacher = (values.unflatten(1, (dims, classes // dims)).mean(dim=2) for values in (student, teacher))
    return F.mse_loss(student, teacher)


def all_pairs_comparison(student: Tensor, teacher: Tensor) -> Tensor:
    """`comparison` over all B * B ordered pairs of a batch, in O(B).

    With d = student - teacher, the mean over i, j and classes of (d_i - d_j)**2 is twice the variance of d over the
    batch. Taking the mean out first keeps the digits that the textbook form 2 B sum |d|**2 - 2 |sum d|**2 loses when
    d is nearly constant.

    Args:
        student: (B, K) logits of single samples.
        teacher: (B, K) logits of single samples.
    """
    student, teacher = _same_logits(student, teacher)
    difference = student - teacher
    return 2 * (difference - difference.mean(dim=0)).square().mean()


def _same_logits(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    if student.shape != teacher.shape or student.dim() != 2:
        raise ValueError(
            f"student logits are {tuple(student.shape)}, stored teacher logits {tuple(teacher.shape)}; both must be "
            "(samples, classes): do the two share a label set?"
        )
    return _at_least_float32(student), _at_least_float32(teacher)


def _at_least_float32(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()
