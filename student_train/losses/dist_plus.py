"""DIST+: DIST's relations, between features instead of predictions.

Source: Huang et al. 2025, DIST+: Knowledge Distillation from a Stronger Adaptive Teacher, IEEE TPAMI 47(7), 5571-5585.
The abstract says that DIST+ extends the DIST loss from logits to features; the authors published no formula. What is
here is our reading: the relations of DIST (Huang et al. 2022, arXiv:2205.10536, section 4), on maps as DIST's own
released segmentation code takes them, where every position is a sample; without softmax, as features are no
probabilities. The other half of DIST+, a teacher that is acclimated to the student, needs a live teacher: no store
can serve it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from student_train.binding import Binding
from student_train.losses.base import Recipe
from student_train.losses.connectors import to_channels
from student_train.losses.kinds import CENTRED, Kinds
from student_train.losses.layerwise import LayerwiseLoss
from student_train.losses.requirements import are_of_one_kind
from student_train.losses.tensors import at_one_size, same_shape
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
    inter, intra = pearson(ours, theirs, 1).mean(), pearson(ours, theirs, 0).mean()
    return beta * (1 - inter) + gamma * (1 - intra)


def pearson(one: Tensor, other: Tensor, dim: int) -> Tensor:
    """Pearson's correlation of two tensors along a dimension, which is dropped; 0, without gradient, for constants.

    DIST adds 1e-8 to the product of the norms instead. A channel that is dead in the student would then get a gradient
    of 1e8: softmax outputs are never constant, features are.

    Args:
        one: the gradient is its alone.
        other: no gradient.
    """
    found: Tensor = _Pearson.apply(one, other.detach(), dim)
    return found.squeeze(dim)


class _Pearson(torch.autograd.Function):
    """`pearson`, the dimension kept.

    Its gradient is (theirs / |theirs| - r * ours / |ours|) / |ours|, both centred: two passes over what the forward
    keeps, where autograd goes back through means, norms and products one by one.
    """

    @staticmethod
    def forward(ctx: Any, one: Tensor, other: Tensor, dim: int) -> Tensor:
        (ours, inverse), (theirs, other_inverse) = _centred(one, dim), _centred(other, dim)
        found = (ours * theirs).sum(dim=dim, keepdim=True) * inverse * other_inverse
        # Of constants one inverse is 0, and there is no gradient.
        ctx.save_for_backward(ours, theirs, found * inverse * inverse, inverse * other_inverse)
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor, None, None]:
        ours, theirs, own, cross = ctx.saved_tensors
        return torch.addcmul(theirs * (outer * cross), ours, outer * own, value=-1), None, None


def _centred(tensor: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Less its mean, and 1 / how long that is; 0 where nothing but rounding is left."""
    mean = tensor.mean(dim=dim, keepdim=True)
    centred = tensor - mean
    # Squares are summed: torch's norm takes thirty times as long along the first dimension.
    squares = centred.square().sum(dim=dim, keepdim=True)
    length, whole = squares.sqrt(), (squares + tensor.shape[dim] * mean.square()).sqrt()
    constant = length <= (_CONSTANT * whole).clamp(min=_TINY)
    return centred, torch.where(constant, 0.0, 1 / length)


def _positions(features: Tensor) -> Tensor:
    """(samples x positions, channels): of maps channels last a view."""
    return features.movedim(1, -1).flatten(0, -2)


class DISTPlus(LayerwiseLoss):
    """beta * (1 - mean r across channels) + gamma * (1 - mean r across samples and positions); r: Pearson correlation.

    Every position of a map counts as a sample. Correlations leave scale and shift of the features open.

    Args:
        layers: which maps or vectors, as in `Needs.outputs`. Where channels differ, the student's pass a learned
            linear map, a 1x1 convolution; the larger map is pooled.
        beta: weight of the relations between channels.
        gamma: weight of the relations between samples and positions.

    Note:
        the authors published no formula: ours is a reading of the abstract, without the adaptation of the teacher,
        which needs a live one. torchdistill (1.1.5) ships a form of its own, which was run against ours: its channel
        term is the correlation itself, so that descent drives it to -1 and equal features cost 1 (a sign error, it
        seems); one less it is the first term here, to 1e-10. Its second correlates sums over channels, for each
        position across samples; ours correlates each channel, across samples and positions.

    Recipe:
        no weights of DIST+ are public; these are the ones of DIST's released code, beta and gamma included.

    Checked:
        no change by scale and shift.
    """

    name: ClassVar[str] = "dist_plus"
    source: ClassVar[str] = (
        "Huang et al. 2025 (DIST+), TPAMI 47(7), features only, in our reading; DIST: arXiv:2205.10536"
    )
    recipe: ClassVar[Recipe] = Recipe(weight=1.0, ce=1.0)
    kinds: ClassVar[Kinds] = CENTRED
    requires = (are_of_one_kind,)
    # Correlations leave the level open.
    constrains_logits = False

    def __init__(self, layers: str = "stages", beta: float = 1.0, gamma: float = 1.0) -> None:
        super().__init__(layers)
        self.layers, self.beta, self.gamma = layers, beta, gamma
        self.projections = nn.ModuleList()

    def build(self, binding: Binding) -> None:
        """A projection for each pair whose widths differ."""
        for student, teacher in binding.shapes(self.pairs):
            self.projections.append(to_channels(student, teacher))

    def summands(self, signals: Signals) -> Iterator[Tensor]:
        """One for each pair of maps or vectors."""
        for projection, pair in zip(self.projections, self.outputs(signals), strict=True):
            student, teacher = at_one_size(*pair) if pair[0].dim() == 4 else pair
            yield dist_plus(projection(student), teacher, self.beta, self.gamma)
