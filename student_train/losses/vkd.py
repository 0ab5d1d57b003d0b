"""VkD: an orthogonal projection of the student's features to the teacher's, which are normalised.

Source: Miles, Elezi and Deng 2024, VkD: Improving Knowledge Distillation using Orthogonal Projections, CVPR,
arXiv:2403.06213.
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ground.errors import UnknownName
from student_train.binding import Binding
from student_train.losses.base import Recipe
from student_train.losses.kinds import CENTRED, Kinds
from student_train.losses.layerwise import LayerwiseLoss
from student_train.losses.requirements import are_vectors_or_maps
from student_train.losses.srd import averaged, standardised
from student_train.losses.tensors import same_shape
from student_train.signals import Signals

NORMS = ("sample", "batch")


def vkd(student: Tensor, teacher: Tensor, norm: str = "sample") -> Tensor:
    """Smooth L1 of projected student and normalised teacher, mean over samples and values.

    Source: Miles et al. 2024, arXiv:2403.06213, section 3; distance and normalisation as in the released code.

    Args:
        student: (B, D), already projected to the teacher's width.
        teacher: (B, D).
        norm: of `NORMS`: each sample's values to mean 0 and variance 1 (layer norm), or each value over the batch.

    Raises:
        ValueError: the shapes differ or the norm is unknown.
    """
    student, teacher = same_shape(student, teacher, "vectors (samples, values)", 2)
    if norm not in NORMS:
        raise ValueError(f"norm must be one of {', '.join(NORMS)}, got {norm!r}")
    target = standardised(teacher) if norm == "batch" else F.layer_norm(teacher, teacher.shape[1:])
    return F.smooth_l1_loss(student, target)


class VkD(LayerwiseLoss):
    """Mean of smooth_L1(P s - norm(t)) over samples and values; P: a learned projection with orthonormal columns.

    Args:
        on: which vectors, as in `Needs.outputs`; maps are averaged over positions. Where the student's are the wider
            ones, the rows of P are orthonormal: it then drops directions, and the rest keeps its lengths and angles.
        norm: sample: layer norm of the teacher, as released for classification. batch: standardised over the batch, as
            released for detection. The paper's whitening is for generation and not offered.

    Note:
        the released detection code also standardises the student, with the unbiased deviation; with `norm=batch` ours
        leaves the student's level and scale to be learned, as the classification code does. P is a Cayley transform:
        the parametrisation of the released code becomes zero under weight decay.

    Recipe:
        the released ImageNet code, with KD at temperature 1 where ours is 4; none was released for CIFAR.

    Checked:
        orthonormal after 100 steps with momentum and weight decay.
    """

    name: ClassVar[str] = "vkd"
    source: ClassVar[str] = "Miles et al. 2024 (VkD), arXiv:2403.06213, section 3"
    recipe: ClassVar[Recipe] = Recipe(weight=1.0, ce=1.0, kd=1.0)
    kinds: ClassVar[Kinds] = CENTRED
    requires = (are_vectors_or_maps,)
    # The projection is learned, and the teacher's level is normalised away.
    constrains_logits = False

    def __init__(self, on: str = "pooled", norm: str = "sample") -> None:
        super().__init__(on)
        if norm not in NORMS:
            raise UnknownName("norm", norm, NORMS)
        self.on, self.norm = on, norm
        self.projectors = nn.ModuleList()

    def build(self, binding: Binding) -> None:
        """A projector for each pair, also where widths agree."""
        for student, teacher in binding.shapes(self.pairs):
            self.projectors.append(OrthogonalProjector(student[0], teacher[0]))

    def summands(self, signals: Signals) -> list[Tensor]:
        """One for each pair of vectors."""
        pairs = zip(self.projectors, self.outputs(signals), strict=True)
        return [vkd(project(averaged(ours)), averaged(theirs), self.norm) for project, (ours, theirs) in pairs]


class OrthogonalProjector(nn.Module):
    """Linear map, without bias, whose matrix has orthonormal columns, or rows where it narrows.

    The matrix is the Cayley transform (I - A/2)^-1 (I + A/2) of A = M B^T - B M^T, applied to a fixed random
    orthonormal B; M is learned, and starts at zero. A is skew, so the result is orthonormal whatever the optimiser does
    to M, and weight decay only draws it to B. (The paper's matrix exponential costs a cube of the teacher's width.
    torch.nn.utils.parametrizations.orthogonal, which the released code uses, becomes zero after one step with weight
    decay: it rounds the entries that hold its signs towards zero.)
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.narrows = outputs < inputs
        base = nn.init.orthogonal_(torch.empty(max(inputs, outputs), min(inputs, outputs)))
        self.register_buffer("base", base)
        self.motion = nn.Parameter(torch.zeros_like(base))

    @property
    def matrix(self) -> Tensor:
        """(outputs, inputs)."""
        base = self.get_buffer("base")
        # A = left @ right.mT has rank 2 * columns: by Woodbury's identity the system to solve is of that size.
        left, right = torch.cat([self.motion, base], dim=1), torch.cat([base, -self.motion], dim=1)
        system = torch.eye(left.shape[1], dtype=left.dtype, device=left.device) - right.mT @ left / 2
        turned: Tensor = base + left @ torch.linalg.solve(system, right.mT @ base)
        return turned.mT if self.narrows else turned

    def forward(self, vectors: Tensor) -> Tensor:
        """(B, inputs) to (B, outputs)."""
        return F.linear(vectors, self.matrix)
