"""FitNets: match a teacher's feature map after a learned convolution.

Source: Romero et al. 2015, arXiv:1412.6550, eq. 3; the regressor and the mean are the CRD benchmark's.
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from student_train.binding import Binding, Shape
from student_train.losses.base import DistillationLoss, Recipe
from student_train.losses.tensors import same_shape
from student_train.needs import LayerPair, Needs
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
    return F.mse_loss(*same_shape(student, teacher, "maps"))


class Hint(DistillationLoss):
    """Mean of (r(s) - t)^2 over a map; r is a learned convolution, batch norm and ReLU.

    Args:
        layers: which maps, as in `Needs.outputs`.
        relu: whether the regressor ends in a ReLU, as in the CRD benchmark's and in CKD's code. It then cannot reach
            what is negative: in differences between samples, in the maps of wide residual networks.
    """

    name: ClassVar[str] = "hint"
    source: ClassVar[str] = "Romero et al. 2015 (FitNets), arXiv:1412.6550, eq. 3"
    # kd=1 as in CKD's white-box runs (white_box.yml: w_kd 1); the CRD benchmark's own run has kd=0.
    recipe: ClassVar[Recipe] = Recipe(weight=100.0, ce=1.0, kd=1.0)

    def __init__(self, layers: str = "layer2", relu: bool = True) -> None:
        super().__init__()
        self.layers, self.relu = layers, relu
        self.regressors = nn.ModuleList()

    @property
    def needs(self) -> Needs:
        """The maps."""
        return Needs(outputs=self.layers)

    def build(self, binding: Binding) -> None:
        """A regressor for each pair of maps."""
        shapes = binding.map_shapes(self.name, self.pairs)
        for pair, (student, teacher) in zip(self.pairs, shapes, strict=True):
            last = [nn.ReLU()] if self.relu else []
            self.regressors.append(nn.Sequential(*resizing_layers(self.name, binding, pair, student, teacher), *last))

    def forward(self, signals: Signals) -> Tensor:
        """Sum over the layers."""
        pairs = zip(self.regressors, self.outputs(signals), strict=True)
        return torch.stack([hint(regressor(student), teacher) for regressor, (student, teacher) in pairs]).sum()


def resizing_layers(loss: str, binding: Binding, pair: LayerPair, student: Shape, teacher: Shape) -> list[nn.Module]:
    """A learned convolution to the teacher's shape, and its batch norm.

    Raises:
        InvalidInput: no convolution leads there.
    """
    convolution = resizing_convolution(student, teacher)
    if convolution is None:
        reason = "the teacher's map is larger, and not twice as large in both directions; choose other layers"
        raise binding.misfit(loss, reason, [pair])
    return [convolution, nn.BatchNorm2d(teacher[0])]


def resizing_convolution(student: Shape, teacher: Shape) -> nn.Module | None:
    """A convolution from maps of one shape (C, H, W) to another, or None where the sizes do not allow it.

    1x1 where the size stays, 3x3 with stride 2 to half, 4x4 transposed to double, and without padding to any
    smaller size: the regressors of the CRD benchmark's code.
    """
    (channels, height, width), (outputs, *size) = student, teacher
    if [height, width] == size:
        return nn.Conv2d(channels, outputs, 1)
    if [height, width] == [2 * side for side in size]:
        return nn.Conv2d(channels, outputs, 3, stride=2, padding=1)
    if [2 * height, 2 * width] == size:
        return nn.ConvTranspose2d(channels, outputs, 4, stride=2, padding=1)
    if height >= size[0] and width >= size[1]:
        return nn.Conv2d(channels, outputs, (1 + height - size[0], 1 + width - size[1]))
    return None
