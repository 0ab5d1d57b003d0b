"""Neuron selectivity transfer (NST): match the distributions of where the channels of a map are active.

Source: Huang and Wang 2017, arXiv:1707.01219, section 4, with the polynomial kernel (x.y)^2.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from student_train.losses.base import Recipe
from student_train.losses.kinds import NONE, Kinds
from student_train.losses.layerwise import LayerwiseLoss
from student_train.losses.requirements import are_maps
from student_train.losses.tensors import maps_of_one_size, unit
from student_train.signals import Signals


def nst(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared maximum mean discrepancy between the channels of two maps, kernel (x.y)^2; batch mean.

    Source: Huang and Wang 2017, arXiv:1707.01219, section 4. Channels are vectors over positions, of unit L2 norm; the
    larger map is average-pooled to the smaller, as in the CRD benchmark's code.

    Args:
        student: (B, C, H, W).
        teacher: (B, C', H', W').

    Raises:
        ValueError: the numbers of samples differ, or they are not maps.
    """
    student, teacher = maps_of_one_size(student, teacher)
    ours, theirs = (unit(maps.flatten(2), dim=2) for maps in (student, teacher))
    if ours.shape[2] < max(ours.shape[1], theirs.shape[1]):
        return _by_positions(ours, theirs)
    return _mean_kernel(theirs, theirs) + _mean_kernel(ours, ours) - 2 * _mean_kernel(ours, theirs)


def _mean_kernel(one: Tensor, other: Tensor) -> Tensor:
    """Mean of (x.y)^2 over the batch and all pairs of channels x of (B, C, P) and y of (B, C', P)."""
    return (one @ other.mT).square().mean()


def _by_positions(ours: Tensor, theirs: Tensor) -> Tensor:
    """The same discrepancy from P x P matrices in place of C x C: (x.y)^2 is the product of x x^T and y y^T."""
    moments = [channels.mT @ channels / channels.shape[1] for channels in (ours, theirs)]
    return (moments[0] - moments[1]).square().sum() / len(ours)


class NST(LayerwiseLoss):
    """mean k(t, t') + mean k(s, s') - 2 mean k(s, t) over pairs of channels, k = (x.y)^2 on unit vectors.

    Args:
        layers: which maps, as in `Needs.outputs`; the losses of all are added.

    Note:
        the larger map is average-pooled to the smaller, as in the CRD benchmark's code.

    Checked:
        channels x channels and positions x positions give the same.
    """

    name: ClassVar[str] = "nst"
    source: ClassVar[str] = "Huang and Wang 2017, arXiv:1707.01219, section 4"
    recipe: ClassVar[Recipe] = Recipe(weight=50.0, ce=1.0)
    kinds: ClassVar[Kinds] = NONE
    requires = (are_maps,)

    def __init__(self, layers: str = "stages") -> None:
        super().__init__(layers)
        self.layers = layers

    def summands(self, signals: Signals) -> list[Tensor]:
        """One for each pair of maps."""
        return [nst(*pair) for pair in self.outputs(signals)]
