"""Curriculum temperature (CTKD): KD at one learned temperature that works against the student.

Source: Li et al., AAAI 2023, arXiv:2211.16231, the global version.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function

from storage.answers import Kind
from student_train.binding import Binding
from student_train.losses.base import DistillationLoss, Recipe
from student_train.losses.kinds import AMONG_NAMED, OF_ROWS, Kinds
from student_train.losses.targets import epoch_number
from student_train.losses.tensors import require_positive, same_logits
from student_train.signals import Signals


class _Reversal(Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, strength: float) -> Tensor:
        ctx.strength = strength
        return tensor.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return -ctx.strength * gradient, None


def reverse(tensor: Tensor, strength: float) -> Tensor:
    """The same tensor; its gradient is multiplied by -strength, so that descent climbs.

    Source: Ganin and Lempitsky 2015, arXiv:1409.7495.
    """
    reversed_tensor: Tensor = _Reversal.apply(tensor, strength)
    return reversed_tensor


def reversal_strength(epoch: float, loops: float) -> float:
    """Half a cosine from 0 at epoch 0 to 1 at epoch `loops`, then 1.

    Source: Li et al., AAAI 2023, arXiv:2211.16231, the cosine curriculum with lambda from 0 to 1.
    """
    return (1 - math.cos(math.pi * min(max(epoch / loops, 0.0), 1.0))) / 2


def kd_at(student: Tensor, teacher: Tensor, temperature: Tensor) -> Tensor:
    """KL(teacher || student) times temperature squared, batch mean, differentiable in the temperature too.

    Source: Li et al., AAAI 2023, arXiv:2211.16231, eq. 1; both the softmaxes and T**2 pass gradients to it.

    Args:
        student: (B, K) logits.
        teacher: (B, K) logits.
        temperature: () or (B, 1), above 0: one number, or one for each sample.

    Raises:
        ValueError: the shapes differ.
    """
    student, teacher = same_logits(student, teacher)
    student_log_probs = F.log_softmax(student / temperature, dim=1)
    teacher_log_probs = F.log_softmax(teacher / temperature, dim=1)
    divergence = F.kl_div(student_log_probs, teacher_log_probs, reduction="none", log_target=True)
    return (temperature**2 * divergence).sum(dim=1).mean()


class CTKD(DistillationLoss):
    """T^2 * KL(softmax(t/T) || softmax(s/T)), batch mean; T = start + span * sigmoid(learned) climbs the loss.

    The gradient of the learned number is reversed, its size rising from 0 to 1 over the first epochs.

    Args:
        start: lowest temperature, above 0.
        span: how far above `start` it can go.
        loops: epochs until the reversed gradient has its full size.

    Note:
        the global temperature; the instance-wise one is not here.

    Recipe:
        -r 0.1 -a 0.9 of the released script.

    Checked:
        the reversal: identity forward, times -lambda backward; the gradient in T.
    """

    name: ClassVar[str] = "ctkd"
    source: ClassVar[str] = (
        "Li et al., AAAI 2023, arXiv:2211.16231, eq. 1 and the cosine curriculum; global temperature"
    )
    recipe: ClassVar[Recipe] = Recipe(weight=0.9, ce=0.1)
    kinds: ClassVar[Kinds] = Kinds(
        OF_ROWS | AMONG_NAMED, {Kind.LABEL: "it learns a temperature, and a label is the same at all of them"}
    )
    pulls_to_teacher: ClassVar[bool] = True

    position: nn.Parameter

    def __init__(self, start: float = 1.0, span: float = 20.0, loops: float = 10.0) -> None:
        super().__init__()
        require_positive(start=start, span=span, loops=loops)
        self.start, self.span, self.loops = start, span, loops

    def build(self, binding: Binding) -> None:
        """The learned number, 1 at first: T = 15.6 with the defaults."""
        self.position = nn.Parameter(torch.ones(()))

    @property
    def temperature(self) -> Tensor:
        """The temperature now, without a reversed gradient."""
        return self._temperature(self.position)

    def _temperature(self, position: Tensor) -> Tensor:
        return self.start + self.span * position.sigmoid()

    def forward(self, signals: Signals) -> Tensor:
        """Single samples, or differences of logits."""
        strength = reversal_strength(epoch_number(signals.moment), self.loops)
        return kd_at(*self.logits(signals), self._temperature(reverse(self.position, strength)))
