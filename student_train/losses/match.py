"""Mean squared error on logits and on labels: compared, the two halves of CKD.

Source: Xu et al., WACV 2025, eq. 2 and 3; as in the released code, the student's logits are matched with the labels
as they are, without a softmax.
"""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from ground.errors import InvalidInput
from student_train.binding import Binding
from student_train.losses.base import DistillationLoss, Recipe
from student_train.losses.kinds import AS_VECTOR, NO_LOGITS, NONE, OF_CENTRED_ROWS, Kinds, restricted_with
from student_train.losses.tensors import same_logits
from student_train.needs import Needs
from student_train.signals import Signals


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
    student, teacher = same_logits(student, teacher)
    return F.mse_loss(pooled_classes(student, dims), pooled_classes(teacher, dims))


def all_pairs_comparison(student: Tensor, teacher: Tensor) -> Tensor:
    """`comparison` over all B * B ordered pairs of a batch, in O(B).

    With d = student - teacher, the mean over i, j and classes of (d_i - d_j)**2 is twice the variance of d over the
    batch. Taking the mean out first keeps the digits that the textbook form 2 B sum |d|**2 - 2 |sum d|**2 loses when
    d is nearly constant.

    Args:
        student: (B, K) logits of single samples.
        teacher: (B, K) logits of single samples.
    """
    student, teacher = same_logits(student, teacher)
    difference = student - teacher
    return 2 * (difference - difference.mean(dim=0)).square().mean()


def pooled_classes(logits: Tensor, dims: int | None) -> Tensor:
    """(G, K) averaged over neighbouring classes to (G, dims); all of them for None."""
    classes = logits.shape[1]
    if dims is None:
        return logits
    if dims < 1 or classes % dims:
        raise ValueError(f"{classes} classes cannot be pooled to {dims} values; give a divisor of {classes}")
    pooled: Tensor = logits.unflatten(1, (dims, classes // dims)).mean(dim=2)
    return pooled


class MatchLogits(DistillationLoss):
    """Mean over samples and classes of (s - t)^2 on logits; compared, the first half of CKD.

    Args:
        dims: average-pool the classes to this many values first (RKD_d); None keeps all.

    Checked:
        closed form over all pairs against the B^2 differences; the level of the logits changes no comparison.
    """

    name: ClassVar[str] = "match_logits"
    source: ClassVar[str] = "Xu et al., WACV 2025, eq. 2; uncompared: Ba and Caruana 2014, arXiv:1312.6184"
    kinds: ClassVar[Kinds] = Kinds(OF_CENTRED_ROWS | restricted_with("dims", None) | AS_VECTOR, NO_LOGITS)

    def __init__(self, dims: int | None = None) -> None:
        super().__init__()
        self.dims = dims

    def build(self, binding: Binding) -> None:
        """Refuse dimensions that do not divide the classes."""
        if self.dims is not None and (self.dims < 1 or binding.num_classes % self.dims):
            raise InvalidInput(
                f"match_logits: {binding.num_classes} classes cannot be pooled to {self.dims} values; "
                f"give a divisor of {binding.num_classes} as dims"
            )

    @property
    def constrains_logits(self) -> bool:
        """Pooled, the level of single classes is left open."""
        return self.dims is None

    def forward(self, signals: Signals) -> Tensor:
        """Single samples or comparisons."""
        return comparison(*self.logits(signals), dims=self.dims)

    def over_all_pairs(self, signals: Signals) -> Tensor:
        """See `all_pairs_comparison`: pooling is linear, so it can come first."""
        student, teacher = (pooled_classes(logits, self.dims) for logits in self.logits(signals))
        return all_pairs_comparison(student, teacher)

    def logit_target(self, signals: Signals) -> Tensor | None:
        """The teacher's logits."""
        return self.logits(signals)[1] if self.dims is None else None


class MatchLabels(DistillationLoss):
    """Mean over samples and classes of (s - y)^2, logits against one-hot labels; compared, the second half of CKD.

    Checked:
        as `match_logits`.
    """

    name: ClassVar[str] = "match_labels"
    source: ClassVar[str] = "Xu et al., WACV 2025, eq. 3"
    recipe: ClassVar[Recipe] = Recipe(ce=0.0)
    kinds: ClassVar[Kinds] = NONE
    # No teacher, and not the class of every sample: labels are averaged where a group holds several.
    needs = Needs(targets=True)
    constrains_logits = True

    def forward(self, signals: Signals) -> Tensor:
        """Single samples or comparisons."""
        return comparison(signals.student.logits, signals.label_targets)

    def over_all_pairs(self, signals: Signals) -> Tensor:
        """See `all_pairs_comparison`."""
        return all_pairs_comparison(signals.student.logits, signals.label_targets)

    def logit_target(self, signals: Signals) -> Tensor:
        """The labels."""
        return signals.label_targets
