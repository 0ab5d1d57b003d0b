"""DIST+: DIST's relations, between features instead of predictions.

Source: Huang et al. 2025, DIST+: Knowledge Distillation from a Stronger Adaptive Teacher, IEEE TPAMI 47(7), 5571-5585.
The abstract says that DIST+ extends the DIST loss from logits to features; the formula itself is not public. What is
here is our reading: the relations of DIST (Huang et al. 2022, arXiv:2205.10536, section 4), on maps as DIST's own
released segmentation code takes them, where every position is a sample; without softmax, as features are no
probabilities. The other half of DIST+, a teacher that is acclimated to the student, needs a live teacher: no store
can serve it.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from student_train.binding import Binding, Shape
from student_train.losses.base import DistillationLoss, Recipe
from student_train.losses.tensors import pooled_to, same_shape, smaller_size
from student_train.needs import Needs
from student_train.signals import Signals

# Rounding leaves about this share of a constant's size when its mean is taken off in float32.
_CONSTANT = 1e-5
# Below this length a division by it would overflow in the gradient.
_TINY = 1e-12


def dist_plus(student: Tensor, teacher: Tensor, beta: float = 1.0, gamma: float = 1.0) -> Tensor:
    """beta * (1 - mean correlation across channels) + gamma * (1 - mean correlation across samples and positions).

    Source: our reading of Huang et al. 2025, see the module; DIST: arXiv:2205.10536, section 4.

    Args:
        student: (B, C) or (B, C, H, W), already of the teacher's shape.
        teacher: (B, C) or (B, C, H, W).
        beta: weight of the relations between channels, one for each sample and position.
        gamma: weight of the relations between samples and positions, one for each channel.

    Raises:
        ValueError: the shapes differ, or there are no channels.
    """
    student, teacher = same_shape(student, teacher, "features (samples, channels, ...)")
    if student.dim() < 2:
        raise ValueError(f"features must be (samples, channels, ...), got {tuple(student.shape)}")
    ours, theirs = _positions(student), _positions(teacher)
    inter, intra = pearson(ours, theirs, 1).mean(), pearson(ours, theirs, (0, 2)).mean()
    return beta * (1 - inter) + gamma * (1 - intra)


def pearson(one: Tensor, other: Tensor, dim: int | tuple[int, ...]) -> Tensor:
    """Pearson's correlation of two tensors along dimensions, which are dropped; 0, without gradient, for constants.

    DIST adds 1e-8 to the product of the norms instead. A channel that is dead in the student would then get a gradient
    of 1e8: softmax outputs are never constant, features are.
    """
    (ours, length), (theirs, other_length) = _centred(one, dim), _centred(other, dim)
    constant = (length <= 0) | (other_length <= 0)
    lengths = torch.where(constant, 1.0, length), torch.where(constant, 1.0, other_length)
    return torch.where(constant, 0.0, (ours * theirs).sum(dim=dim) / lengths[0] / lengths[1])


def _centred(tensor: Tensor, dim: int | tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Less its mean, and how long that is; length zero where nothing but rounding is left."""
    centred = tensor - tensor.mean(dim=dim, keepdim=True)
    length = torch.linalg.vector_norm(centred, dim=dim)
    rounding = _CONSTANT * torch.linalg.vector_norm(tensor.detach(), dim=dim)
    return centred, torch.where(length <= rounding.clamp(min=_TINY), 0.0, length)


def _positions(features: Tensor) -> Tensor:
    """(samples, channels, positions); a vector has one position."""
    return features[:, :, None].flatten(2)


class DISTPlus(DistillationLoss):
    """beta * (1 - mean r across channels) + gamma * (1 - mean r across samples and positions); r: Pearson correlation.

    Every position of a map counts as a sample. Correlations leave scale and shift of the features open.

    Args:
        layers: which maps or vectors, as in `Needs.outputs`. Where channels differ, the student's pass a learned
            linear map, a 1x1 convolution; the larger map is pooled.
        beta: weight of the relations between channels.
        gamma: weight of the relations between samples and positions.
    """

    name: ClassVar[str] = "dist_plus"
    source: ClassVar[str] = (
        "Huang et al. 2025 (DIST+), TPAMI 47(7), features only, in our reading; DIST: arXiv:2205.10536"
    )
    # No weights of DIST+ are public; these are the ones of DIST's released code, beta and gamma included.
    recipe: ClassVar[Recipe] = Recipe(weight=1.0, ce=1.0)

    def __init__(self, layers: str = "stages", beta: float = 1.0, gamma: float = 1.0) -> None:
        super().__init__()
        self.layers, self.beta, self.gamma = layers, beta, gamma
        self.projections = nn.ModuleList()

    @property
    def needs(self) -> Needs:
        """The maps or vectors."""
        return Needs(outputs=self.layers)

    @property
    def constrains_logits(self) -> bool:
        """Never: correlations leave the level open."""
        return False

    def build(self, binding: Binding) -> None:
        """A projection for each pair whose widths differ."""
        for pair, (student, teacher) in zip(self.pairs, binding.shapes(self.pairs), strict=True):
            if len(student) != len(teacher) or len(student) not in (1, 3):
                reason = "both must be maps, or both vectors; choose other layers"
                raise binding.misfit("dist_plus", reason, [pair])
            self.projections.append(_projection(student, teacher))

    def forward(self, signals: Signals) -> Tensor:
        """Sum over the layers."""
        losses = []
        for projection, (student, teacher) in zip(self.projections, self.outputs(signals), strict=True):
            if student.dim() == 4:
                size = smaller_size(student, teacher)
                student, teacher = pooled_to(student, size), pooled_to(teacher, size)
            losses.append(dist_plus(projection(student), teacher, self.beta, self.gamma))
        return torch.stack(losses).sum()


def _projection(student: Shape, teacher: Shape) -> nn.Module:
    """A learned linear map of channels, or nothing where they agree."""
    if student[0] == teacher[0]:
        return nn.Identity()
    return nn.Linear(student[0], teacher[0]) if len(student) == 1 else nn.Conv2d(student[0], teacher[0], 1)
