"""Simple recipe distillation (SRD): a linear projector, batch norm and a soft maximum.

Source: Miles and Mikolajczyk 2024, Understanding the Role of the Projector in Knowledge Distillation, AAAI,
arXiv:2303.11098.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from student_train.binding import Binding
from student_train.losses.base import Recipe
from student_train.losses.kinds import CENTRED, Kinds
from student_train.losses.layerwise import LayerwiseLoss
from student_train.losses.requirements import are_vectors_or_maps
from student_train.losses.tensors import same_shape
from student_train.signals import Signals

_FLOOR = 1e-5


def srd(student: Tensor, teacher: Tensor, alpha: float = 4.0) -> Tensor:
    """log(1e-5 + sum over samples and values of |s - t|^alpha), both standardised over the batch.

    Without the 1e-5, which the released DeiT code has and its ImageNet code has not, equal inputs would give minus
    infinity and no gradient.

    Source: Miles and Mikolajczyk 2024, arXiv:2303.11098, the LogSum distance; sums and eps as in the released code.

    Args:
        student: (B, D), already projected to the teacher's width.
        teacher: (B, D).
        alpha: at least 1; 4 to 5 did best in the paper.

    Raises:
        ValueError: the shapes differ or alpha is below 1.
    """
    student, teacher = same_shape(student, teacher, "vectors (samples, values)", 2)
    if not alpha >= 1:
        raise ValueError(f"alpha must be at least 1, got {alpha}")
    difference = standardised(student) - standardised(teacher)
    return (_FLOOR + difference.abs().pow(alpha).sum()).log()


def standardised(vectors: Tensor, eps: float = 1e-4) -> Tensor:
    """(B, D) less its mean over the batch, divided by its standard deviation: batch norm without parameters.

    Args:
        eps: added to the variance; the released ImageNet code's. A batch of one sample becomes zero.
    """
    centred = vectors - vectors.mean(dim=0)
    return centred / (centred.square().mean(dim=0) + eps).sqrt()


def averaged(tensor: Tensor) -> Tensor:
    """(B, D) as it is; (B, C, H, W) averaged over positions."""
    return tensor if tensor.dim() == 2 else tensor.flatten(2).mean(dim=2)


class SRD(LayerwiseLoss):
    """log sum |BN(P s) - BN(t)|^alpha over samples and values; P: a learned linear projector, BN: batch norm.

    Args:
        on: which vectors, as in `Needs.outputs`; maps are averaged over positions.
        alpha: at least 1; the larger, the more the worst matches count.

    Note:
        1e-5 inside the logarithm, as in the authors' DeiT code.

    Recipe:
        the released ImageNet code, with KD at temperature 1 where ours is 4; none was released for CIFAR.
    """

    name: ClassVar[str] = "srd"
    source: ClassVar[str] = "Miles and Mikolajczyk 2024 (SRD), arXiv:2303.11098, LogSum distance"
    recipe: ClassVar[Recipe] = Recipe(weight=2.0, ce=1.0, kd=1.0)
    kinds: ClassVar[Kinds] = CENTRED
    requires = (are_vectors_or_maps,)
    # Batch norm takes the level out.
    constrains_logits = False

    def __init__(self, on: str = "pooled", alpha: float = 4.0) -> None:
        super().__init__(on)
        if not alpha >= 1:
            raise ValueError(f"alpha must be at least 1, got {alpha}")
        self.on, self.alpha = on, alpha
        self.projectors = nn.ModuleList()

    def build(self, binding: Binding) -> None:
        """A projector for each pair, also where widths agree."""
        for student, teacher in binding.shapes(self.pairs):
            self.projectors.append(nn.Linear(student[0], teacher[0]))

    def summands(self, signals: Signals) -> list[Tensor]:
        """One for each pair of vectors."""
        pairs = zip(self.projectors, self.outputs(signals), strict=True)
        return [srd(project(averaged(ours)), averaged(theirs), self.alpha) for project, (ours, theirs) in pairs]
