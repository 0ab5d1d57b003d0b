"""Relational knowledge distillation (RKD): match distances and angles between samples.

Source: Park et al. 2019, arXiv:1904.05068, section 3.2; reductions of the CRD benchmark's code.
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ground.errors import InvalidInput
from student_train.losses.base import Recipe
from student_train.losses.kinds import CENTRED, Kinds
from student_train.losses.layerwise import LayerwiseLoss
from student_train.losses.tensors import VECTORS, flat, same_batch, unit
from student_train.signals import Signals


def rkd_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Smooth L1 of pairwise Euclidean distances, each side's divided by their mean; mean over all N^2.

    Source: Park et al. 2019, arXiv:1904.05068, section 3.2.1 (distance-wise loss). As in the CRD benchmark's code the
    mean is over distances above zero and is differentiated through, and the zero distances of the diagonal are among
    the N^2. Here rows that are equal have distance zero; that code clips it at 1e-6 and counts it into the mean.

    Args:
        student: (N, D).
        teacher: (N, D'); D' may differ.

    Raises:
        ValueError: the numbers of samples differ, or they are not vectors.
    """
    student, teacher = same_batch(student, teacher, VECTORS, 2)
    return F.smooth_l1_loss(_relative_distances(student), _relative_distances(teacher))


def rkd_angle(student: Tensor, teacher: Tensor) -> Tensor:
    """Smooth L1 of the cosines of the angles of all triplets; mean over all N^3, degenerate ones included as zero.

    Source: Park et al. 2019, arXiv:1904.05068, section 3.2.2 (angle-wise loss). Takes memory of N^3 numbers, a few
    times, for any D.

    Args:
        student: (N, D).
        teacher: (N, D'); D' may differ.

    Raises:
        ValueError: the numbers of samples differ, or they are not vectors.
    """
    student, teacher = same_batch(student, teacher, VECTORS, 2)
    return F.smooth_l1_loss(_cosines(student), _cosines(teacher))


def _relative_distances(vectors: Tensor) -> Tensor:
    """(N, N); zero where there is no distance to relate to."""
    distances = _distances(vectors)
    above_zero = (distances > 0).sum()
    mean = distances.sum() / above_zero.clamp(min=1)
    return distances / torch.where(above_zero > 0, mean, 1.0)


def _cosines(vectors: Tensor) -> Tensor:
    """(N, N, N): at [j, i, k] the cosine of the angle at j between the directions to i and to k."""
    compact = _compact(vectors)
    # Equal rows have no direction between them, whatever rounding has made of them.
    apart = _distances(vectors.detach()) > 0
    directions = unit(compact[None] - compact[:, None], dim=2) * apart[..., None]
    return directions @ directions.mT


def _distances(vectors: Tensor) -> Tensor:
    # Not through the Gram matrix: its rounding gives equal rows a distance.
    return torch.cdist(vectors, vectors, compute_mode="donot_use_mm_for_euclid_dist")


def _compact(vectors: Tensor) -> Tensor:
    """(N, D) vectors in coordinates of the space they span, at most N of them: the same dot products.

    The basis needs no gradient: a step that leaves the space changes no dot product to first order.
    """
    if vectors.shape[1] <= len(vectors):
        return vectors
    basis: Tensor = torch.linalg.qr(vectors.detach().mT).Q
    return vectors @ basis


# Above it, one side of the angles takes 4 GB.
_MAX_ANGLES = 1024


class RKD(LayerwiseLoss):
    """distance * smoothL1(d_s / mean d_s, d_t / mean d_t) + angle * smoothL1(cos_s, cos_t), over pairs and triplets.

    Args:
        distance, angle: weights inside the loss; 25 and 50 are the CRD benchmark's and CKD's. With 0 that part is not
            computed: angles of N comparisons take N^3 numbers.
        on: which representation, as in `Needs.outputs`; maps are flattened. CKD's code takes the logits, the CRD
            benchmark's `pooled`.

    Note:
        equal rows have distance 0 (the released code: 1e-6). With D > N the angle works in the span of the samples.

    Recipe:
        the CKD paper's setting; the CRD benchmark's has kd=0 and ordinary batches.

    Checked:
        no change by rotation and shift; equal rows.
    """

    name: ClassVar[str] = "rkd"
    source: ClassVar[str] = "Park et al. 2019, arXiv:1904.05068, sections 3.2.1 and 3.2.2"
    recipe: ClassVar[Recipe] = Recipe(weight=1.0, ce=1.0, kd=1.0, per_class=5)
    kinds: ClassVar[Kinds] = CENTRED
    # Distances and angles stay the same when one vector is added to every sample.
    constrains_logits = False

    def __init__(self, distance: float = 25.0, angle: float = 50.0, on: str = "logits") -> None:
        super().__init__(on)
        if min(distance, angle) < 0 or not distance + angle > 0:
            raise ValueError(f"distance and angle must be at least 0 and not both 0, got {distance} and {angle}")
        self.distance, self.angle, self.on = distance, angle, on

    def summands(self, signals: Signals) -> list[Tensor]:
        """Distances, then angles, of each pair of representations.

        Raises:
            InvalidInput: there are so many differences that their angles fit no memory.
        """
        count = len(signals.student.logits)
        if self.angle and count > _MAX_ANGLES:
            raise InvalidInput(
                f"rkd: the angles of {count} comparisons take {count}^3 numbers; set angle=0, lower --batch-size, or "
                "compare with --comparison sampled"
            )
        parts = [(self.distance, rkd_distance), (self.angle, rkd_angle)]
        return [
            weight * formula(flat(student), flat(teacher))
            for student, teacher in self.outputs(signals)
            for weight, formula in parts
            if weight
        ]
