"""Similarity-preserving distillation (SP): match the similarities between the samples of a batch.

Source: Tung and Mori 2019, arXiv:1907.09682, section 3.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from student_train.losses.base import Recipe
from student_train.losses.kinds import CENTRED, Kinds
from student_train.losses.layerwise import LayerwiseLoss
from student_train.losses.tensors import same_batch, unit
from student_train.signals import Signals


def similarity_preserving(student: Tensor, teacher: Tensor) -> Tensor:
    """Sum of squared differences of two N x N similarity matrices, divided by N^2.

    Source: Tung and Mori 2019, arXiv:1907.09682, section 3: dot products of flattened maps, each row of them divided
    by its L2 norm.

    Args:
        student: (N, ...), maps or vectors.
        teacher: (N, ...'), of any other shape.

    Raises:
        ValueError: the numbers of samples differ.
    """
    student, teacher = same_batch(student, teacher, "maps or vectors (samples, ...)")
    return (_similarities(student) - _similarities(teacher)).square().mean()


def _similarities(features: Tensor) -> Tensor:
    # One factor for the whole batch cancels in the rows; without it, products of large maps could overflow.
    vectors = unit(features.flatten(), dim=0).view(len(features), -1)
    return unit(vectors @ vectors.mT)


class SP(LayerwiseLoss):
    """Mean over i, j of (G_s - G_t)^2; G: dot products of the samples' flattened maps, rows of unit L2 norm.

    Args:
        layers: which maps, as in `Needs.outputs`. layer3 is the last stage of CIFAR's residual networks and the
            ShuffleNets, and the CRD benchmark's choice there; for VGG, MobileNetV2 and ResNet50 say layer4, for one of
            each, as layer4:layer3.
    """

    name: ClassVar[str] = "sp"
    source: ClassVar[str] = "Tung and Mori 2019, arXiv:1907.09682, section 3"
    recipe: ClassVar[Recipe] = Recipe(weight=3000.0, ce=1.0)
    kinds: ClassVar[Kinds] = CENTRED

    def __init__(self, layers: str = "layer3") -> None:
        super().__init__(layers)
        self.layers = layers

    def summands(self, signals: Signals) -> list[Tensor]:
        """One for each pair of maps."""
        return [similarity_preserving(*pair) for pair in self.outputs(signals)]
