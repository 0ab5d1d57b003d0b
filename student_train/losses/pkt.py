"""Probabilistic knowledge transfer (PKT): match which samples are likely neighbours of which.

Source: Passalis and Tefas 2018, arXiv:1803.10837, section 3, with the cosine kernel.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from student_train.losses.base import Recipe
from student_train.losses.kinds import CENTRED, Kinds
from student_train.losses.layerwise import LayerwiseLoss
from student_train.losses.tensors import VECTORS, flat, same_batch, unit
from student_train.signals import Signals

_EPS = 1e-7


def pkt(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over all N^2 of p_t * log((p_t + eps) / (p_s + eps)), rows of p being (cosine + 1) / 2 scaled to sum 1.

    Source: Passalis and Tefas 2018, arXiv:1803.10837, section 3. As in the authors' code: a mean in place of the
    paper's sum, the diagonal (a sample as its own neighbour) included, and eps = 1e-7. A zero vector is at cosine 0 of
    all.

    Args:
        student: (N, D).
        teacher: (N, D'); D' may differ.

    Raises:
        ValueError: the numbers of samples differ, or they are not vectors.
    """
    student, teacher = same_batch(student, teacher, VECTORS, 2)
    ours, theirs = _neighbours(student), _neighbours(teacher)
    return (theirs * ((theirs + _EPS).log() - (ours + _EPS).log())).mean()


def _neighbours(vectors: Tensor) -> Tensor:
    directions = unit(vectors)
    # Rounding can take a cosine below -1, and eps may not be enough for the logarithm then.
    similarities = ((directions @ directions.mT + 1) / 2).clamp(min=0)
    return similarities / similarities.sum(dim=1, keepdim=True)


class PKT(LayerwiseLoss):
    """Mean over i, j of p_t * log(p_t / p_s); p: (cosine of samples + 1) / 2, rows of sum 1; 1e-7 added inside the log.

    Args:
        on: which representation, as in `Needs.outputs`; maps are flattened.

    Note:
        the shifted cosine is kept from going below 0 by rounding.
    """

    name: ClassVar[str] = "pkt"
    source: ClassVar[str] = "Passalis and Tefas 2018, arXiv:1803.10837, section 3"
    recipe: ClassVar[Recipe] = Recipe(weight=30000.0, ce=1.0)
    kinds: ClassVar[Kinds] = CENTRED

    def __init__(self, on: str = "pooled") -> None:
        super().__init__(on)
        self.on = on

    def summands(self, signals: Signals) -> list[Tensor]:
        """One for each pair of representations."""
        return [pkt(flat(student), flat(teacher)) for student, teacher in self.outputs(signals)]
