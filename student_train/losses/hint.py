"""FitNets: match a teacher's feature map after a learned convolution.

Source: Romero et al. 2015, arXiv:1412.6550, eq. 3; the regressor and the mean are the CRD benchmark's.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from torch import Tensor, nn

from student_train.binding import Binding
from student_train.losses.base import Recipe
from student_train.losses.connectors import resizing_layers
from student_train.losses.kinds import NONE, Kinds
from student_train.losses.layerwise import LayerwiseLoss
from student_train.losses.requirements import are_maps
from student_train.losses.tensors import mean_square, pooled_like, same_shape
from student_train.signals import Signals


def hint(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared error of two maps, over all elements.

    Source: Romero et al. 2015, arXiv:1412.6550, eq. 3, with the mean of the CRD benchmark's code; the paper has half
    the sum.

    Args:
        student: (B, C, H, W), already regressed to the teacher's shape.
        teacher: (B, C, H, W).

    Raises:
        ValueError: the shapes differ.
    """
    return mean_square(*same_shape(student, teacher, "maps"))


class Hint(LayerwiseLoss):
    """Mean of (r(s) - t)^2 over a map; r is a learned convolution, batch norm and ReLU.

    Args:
        layers: which maps, as in `Needs.outputs`.
        relu: whether the regressor ends in a ReLU, as in the CRD benchmark's and in CKD's code. It then cannot reach
            what is negative: in differences between samples, in the maps of wide residual networks.

    Note:
        a teacher's map that is larger than the student's, but not twice as large, is average-pooled to what r makes
        (ours, as the CRD benchmark's code does for AT; it has no regressor for such pairs).

    Recipe:
        kd=1 as in CKD's white-box runs (white_box.yml: w_kd 1); the CRD benchmark's own run has kd=0.

    Checked:
        the regressor reaches the smaller size of every pair; the value with a pooled map in float64.
    """

    name: ClassVar[str] = "hint"
    source: ClassVar[str] = "Romero et al. 2015 (FitNets), arXiv:1412.6550, eq. 3"
    recipe: ClassVar[Recipe] = Recipe(weight=100.0, ce=1.0, kd=1.0)
    kinds: ClassVar[Kinds] = NONE
    requires = (are_maps,)

    def __init__(self, layers: str = "layer2", relu: bool = True) -> None:
        super().__init__(layers)
        self.layers, self.relu = layers, relu
        self.regressors = nn.ModuleList()

    def build(self, binding: Binding) -> None:
        """A regressor for each pair of maps."""
        for student, teacher in binding.shapes(self.pairs):
            last = [nn.ReLU(inplace=True)] if self.relu else []
            self.regressors.append(nn.Sequential(*resizing_layers(student, teacher), *last))

    def summands(self, signals: Signals) -> Iterator[Tensor]:
        """One for each pair of maps."""
        for regressor, (student, teacher) in zip(self.regressors, self.outputs(signals), strict=True):
            regressed = regressor(student)
            yield hint(regressed, pooled_like(teacher, regressed))
