"""Neuron selectivity transfer (NST): match the distributions of where the channels of a map are active.

Source: Huang and Wang 2017, arXiv:1707.01219, section 4, with the polynomial kernel (x.y)^2.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from student_train.binding import Binding
from student_train.losses.base import DistillationLoss, Recipe
from student_train.losses.relations import same_batch
from student_train.losses.tensors import pooled_to, smaller_size, unit
from student_train.needs import Needs
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
    student, teacher = same_batch(student, teacher, "maps (samples, channels, height, width)", 4)
    size = smaller_size(student, teacher)
    ours, theirs = (unit(pooled_to(maps, size).flatten(2), dim=2) for maps in (student, teacher))
    if size[0] * size[1] < max(ours.shape[1], theirs.shape[1]):
        return _by_positions(ours, theirs)
    return _mean_kernel(theirs, theirs) + _mean_kernel(ours, ours) - 2 * _mean_kernel(ours, theirs)


def _mean_kernel(one: Tensor, other: Tensor) -> Tensor:
    """Mean of (x.y)^2 over the batch and all pairs of channels x of (B, C, P) and y of (B, C', P)."""
    return (one @ other.mT).square().mean()


def _by_positions(ours: Tensor, theirs: Tensor) -> Tensor:
    """The same discrepancy from P x P matrices in place of C x C: (x.y)^2 is the product of x x^T and y y^T."""
    moments = [channels.mT @ channels / channels.shape[1] for channels in (ours, theirs)]
    return (moments[0] - moments[1]).square().sum() / len(ours)


class NST(DistillationLoss):
    """mean k(t, t') + mean k(s, s') - 2 mean k(s, t) over pairs of channels, k = (x.y)^2 on unit vectors.

    Args:
        layers: which maps, as in `Needs.outputs`; the losses of all are added.
    """

    name: ClassVar[str] = "nst"
    source: ClassVar[str] = "Huang and Wang 2017, arXiv:1707.01219, section 4"
    recipe: ClassVar[Recipe] = Recipe(weight=50.0, ce=1.0)

    def __init__(self, layers: str = "stages") -> None:
        super().__init__()
        self.layers = layers

    @property
    def needs(self) -> Needs:
        """The maps."""
        return Needs(outputs=self.layers)

    def build(self, binding: Binding) -> None:
        """Refuse what is no map."""
        binding.map_shapes("nst", self.pairs)

    def forward(self, signals: Signals) -> Tensor:
        """Sum over the layers."""
        return torch.stack([nst(*pair) for pair in self.outputs(signals)]).sum()
