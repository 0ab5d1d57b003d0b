"""KDSVD: match how the leading singular vectors of consecutive maps relate.

Source: Lee et al. 2018 (ECCV), arXiv:1807.06819, section 3; reductions of the CRD benchmark's code.

A singular vector has no sign of its own, and its gradient grows without bound where two singular values meet. Here the
teacher's vectors are signed so that the entry of largest magnitude is positive, the student's follow the teacher's,
and the gradient takes no gap between eigenvalues to be smaller than `_GAP`.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from student_train.losses.base import DistillationLoss, Recipe
from student_train.losses.kinds import NONE, Kinds
from student_train.losses.requirements import are_consecutive, have_equal_channels
from student_train.losses.tensors import MAPS, gram, require_positive, same_batch, unit
from student_train.needs import Needs
from student_train.signals import Signals

# Eigenvalues are shares of a map's squared norm. Closer ones than _GAP turn the vectors as if they were that far apart,
# fading to not at all where they are equal; those below _NOTHING are of the float32 noise, and their vectors are zero.
_GAP = 1e-3
_NOTHING = 1e-6
# Maps of a smaller norm count as zero.
_SMALL = 1e-12
# 2 * sigma^2 of the radial basis function, sigma = 2.
_WIDTH = 8.0


def kdsvd(student: Sequence[Tensor], teacher: Sequence[Tensor], rank: int = 1, spare: int = 3) -> Tensor:
    """Squared differences of radial basis functions of consecutive maps' singular vectors: sum, batch mean.

    Source: Lee et al. 2018, arXiv:1807.06819, section 3, as the CRD benchmark computes it: the right singular vectors
    of (positions, channels) matrices are scaled by the teacher's singular values, themselves of unit norm, and
    exp(-(x - y)^2 / 8) relates every entry x of one map's vector with every entry y of the next one's.

    Args:
        student: (B, C_l, H_l, W_l) of each layer l, in order.
        teacher: (B, C_l, H_l', W_l') of each layer; sizes may differ from the student's.
        rank: singular vectors of the teacher; the student's that points the same way best is matched with each.
        spare: how many more of the student's are candidates.

    Raises:
        ValueError: fewer than two layers, not as many of both, shapes that do not fit, rank below 1, or spare
            below 0.
    """
    if len(student) != len(teacher) or len(student) < 2:
        raise ValueError(f"needs as many layers of both, two at least; got {len(student)} and {len(teacher)}")
    _check(rank, spare)
    vectors = [_matched(ours, theirs, rank, spare) for ours, theirs in zip(student, teacher, strict=True)]
    steps = [
        (_relation(ours, our_next) - _relation(theirs, their_next)).square().sum()
        for (ours, theirs), (our_next, their_next) in pairwise(vectors)
    ]
    return torch.stack(steps).sum() / len(student[0])


def leading_vectors(maps: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Largest singular values and right singular vectors of maps as (positions, channels) matrices.

    The values carry no gradient and are relative to each map's norm; the vectors' gradient is exact as long as their
    squared values are `_GAP` away from all others, and bounded where they are not.

    Args:
        maps: (B, C, H, W).

    Returns:
        (B, count) and (B, C, count): values, and vectors of arbitrary sign; zero where there are no more.
    """
    norms = torch.linalg.vector_norm(maps.detach(), dim=(1, 2, 3))
    # Singular vectors do not depend on a constant factor, so neither does their gradient on that of the norm.
    positions = maps.movedim(1, 3).flatten(1, 2) / norms.clamp(min=_SMALL)[:, None, None]
    wide = positions.shape[2] > positions.shape[1]
    # The smaller of the two Gram matrices has all that is not zero.
    squares, vectors = _eigenvectors(gram(positions if wide else positions.mT), count)
    if wide:
        vectors = F.normalize(positions.mT @ vectors, dim=1)
    vectors = vectors * (squares > _NOTHING)[:, None]
    missing = (0, count - squares.shape[1])
    return F.pad(squares.clamp(min=0).sqrt(), missing), F.pad(vectors, missing)


def _eigenvectors(matrices: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Largest eigenvalues (B, n), without gradient, and eigenvectors (B, N, n) of symmetric (B, N, N), n <= count."""
    fixed = matrices.detach()
    # LAPACK raises for what is not finite; let a student that diverged give NaN, as everywhere else.
    values, vectors = torch.linalg.eigh(fixed.nan_to_num(0.0, 0.0, 0.0))
    values, vectors = values.flip(1), vectors.flip(2)
    leading = vectors[:, :, :count]
    # First-order perturbation theory. The change is zero here and only carries the gradient: autograd's own divides
    # by gaps between eigenvalues, which may be zero.
    gaps = values[:, None, :count] - values[:, :, None]
    turns = vectors.mT @ (matrices - fixed) @ leading * gaps / gaps.square().clamp(min=_GAP**2)
    return values[:, :count], leading + vectors @ turns


def _check(rank: int, spare: int) -> None:
    require_positive(rank=rank)
    if spare < 0:
        raise ValueError(f"spare must be at least 0, got {spare}")


def _matched(student: Tensor, teacher: Tensor, rank: int, spare: int) -> tuple[Tensor, Tensor]:
    """Singular vectors (B, C, rank) of both: the teacher's signed, the student's aligned to them."""
    student, teacher = same_batch(student, teacher, MAPS, 4, channels=True)
    values, targets = leading_vectors(teacher, rank)
    _, candidates = leading_vectors(student, rank + spare)
    targets, scale = _signed(targets), unit(values)[:, None]
    return _aligned(candidates, targets) * scale, targets * scale


def _signed(vectors: Tensor) -> Tensor:
    largest = vectors.abs().argmax(dim=1, keepdim=True)
    return vectors * vectors.gather(1, largest).sign()


def _aligned(candidates: Tensor, targets: Tensor) -> Tensor:
    """For each target the candidate of largest absolute cosine, with the sign of that cosine."""
    cosines = candidates.detach().mT @ targets
    best = cosines.abs().argmax(dim=1, keepdim=True)
    return candidates.gather(2, best.expand_as(targets)) * cosines.gather(1, best).sign()


def _relation(vectors: Tensor, following: Tensor) -> Tensor:
    """(B, C, C', rank) of vectors (B, C, rank) and (B, C', rank)."""
    return torch.exp(-(vectors[:, :, None] - following[:, None]).square() / _WIDTH)


class KDSVD(DistillationLoss):
    """Sum of (r_s - r_t)^2, batch mean; r = exp(-(x - y)^2 / 8), x, y: entries of consecutive maps' singular vectors.

    Args:
        layers: at least two maps, as in `Needs.outputs`, in order; student and teacher must have as many channels.
        rank: singular vectors of the teacher's maps.
        spare: how many more of the student's are candidates to match them.

    Note:
        the entry of largest magnitude of a teacher's vector is positive and the student follows; gaps of eigenvalues
        are floored at 1e-3 of the squared norm in the gradient.

    Recipe:
        the CRD benchmark implements it without naming a weight.

    Checked:
        NumPy's SVD; torch's own gradient where values are apart; random signs of LAPACK; repeated and rank-one spectra.
    """

    name: ClassVar[str] = "kdsvd"
    source: ClassVar[str] = "Lee et al. 2018 (ECCV), arXiv:1807.06819, section 3"
    recipe: ClassVar[Recipe] = Recipe(weight=1.0, ce=1.0)
    kinds: ClassVar[Kinds] = NONE
    requires = (are_consecutive, have_equal_channels)

    def __init__(self, layers: str = "stages", rank: int = 1, spare: int = 3) -> None:
        super().__init__()
        _check(rank, spare)
        self.layers, self.rank, self.spare = layers, rank, spare

    @property
    def needs(self) -> Needs:
        """The maps."""
        return Needs(outputs=self.layers)

    def forward(self, signals: Signals) -> Tensor:
        """Sum over consecutive layers."""
        student, teacher = zip(*self.outputs(signals), strict=True)
        return kdsvd(student, teacher, self.rank, self.spare)
