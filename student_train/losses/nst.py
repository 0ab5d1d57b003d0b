"""Neuron selectivity transfer (NST): match the distributions of where the channels of a map are active.

Source: Huang and Wang 2017, arXiv:1707.01219, section 4, with the polynomial kernel (x.y)^2.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from student_train.losses.base import Recipe
from student_train.losses.kinds import NONE, Kinds
from student_train.losses.layerwise import LayerwiseLoss
from student_train.losses.requirements import are_maps
from student_train.losses.tensors import gram, maps_of_one_size, sum_of_squares
from student_train.signals import Signals

# Channels of no more than this L2 norm count as zero.
_SHORT = 1e-12


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
    ours, theirs = (maps.movedim(1, 3).flatten(1, 2) for maps in (student, teacher))
    scales = _inverse_lengths(ours), _inverse_lengths(theirs)
    if ours.shape[1] < max(ours.shape[2], theirs.shape[2]):
        return _by_positions(ours * scales[0], theirs * scales[1])
    # The student on the right, so that its gradient is a product in the layout of its maps.
    return (
        _mean_kernel(gram(theirs.mT), scales[1], scales[1])
        + _mean_kernel(gram(ours.mT), scales[0], scales[0])
        - 2 * _mean_kernel(theirs.mT @ ours, scales[1], scales[0])
    )


def _inverse_lengths(maps: Tensor) -> Tensor:
    """(B, 1, C), 1 / the L2 norm of each channel of (B, P, C); 0, with gradient 0, where that is next to nothing."""
    squares = sum_of_squares(maps, dim=1)[:, None]
    short = squares <= _SHORT**2
    return torch.where(short, 0.0, torch.where(short, 1.0, squares).rsqrt())


def _mean_kernel(products: Tensor, scale: Tensor, other_scale: Tensor) -> Tensor:
    """Mean of (x.y)^2 over the batch and all pairs of channels: products (B, C, C') are scaled, not maps."""
    cosines = products * scale.mT * other_scale
    return sum_of_squares(cosines) / cosines.numel()


def _by_positions(ours: Tensor, theirs: Tensor) -> Tensor:
    """The same discrepancy from P x P matrices in place of C x C: (x.y)^2 is the product of x x^T and y y^T."""
    moments = [gram(channels) / channels.shape[2] for channels in (ours, theirs)]
    return sum_of_squares(moments[0] - moments[1]) / len(ours)


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
