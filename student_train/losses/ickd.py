"""Inter-channel correlation (ICKD-C): match which channels of a map are alike.

Source: Liu et al. 2021 (ICCV), arXiv:2202.03680, section 3; reductions and embedding of the authors' CIFAR code.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from student_train.binding import Binding
from student_train.losses.base import Recipe
from student_train.losses.kinds import NONE, Kinds
from student_train.losses.layerwise import LayerwiseLoss
from student_train.losses.requirements import are_maps
from student_train.losses.tensors import MAPS, gram, same_batch, sum_of_squares, unit
from student_train.signals import Signals


def ickd(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared differences of two channel-by-channel correlation matrices, summed over a row, mean over rows and batch.

    Source: Liu et al. 2021, arXiv:2202.03680, section 3. As in the authors' code: dot products of channels over
    positions, each row of them divided by its L2 norm, and the sum over (C, C) divided by C, not by the paper's C^2.

    Args:
        student: (B, C, H, W), already embedded in the teacher's channels.
        teacher: (B, C, H', W').

    Raises:
        ValueError: the numbers of samples or channels differ, or they are not maps.
    """
    student, teacher = same_batch(student, teacher, MAPS, 4, channels=True)
    difference = _correlations(student) - _correlations(teacher)
    return sum_of_squares(difference) / difference[..., 0].numel()


def _correlations(maps: Tensor) -> Tensor:
    # One factor for a whole sample cancels in the rows, and so does its gradient; without it, products of large maps
    # could overflow.
    size = torch.linalg.vector_norm(maps.detach(), dim=(1, 2, 3), keepdim=True)
    positions = (maps / torch.where(size > 0, size, 1.0)).movedim(1, 3).flatten(1, 2)
    return unit(gram(positions.mT), dim=2)


class ICKD(LayerwiseLoss):
    """Mean over channels i of sum over j of (G_s - G_t)^2; G: dot products of channels, rows of unit L2 norm.

    The student's map is embedded in the teacher's channels first, by a learned 1x1 convolution and batch norm.

    Args:
        layers: which maps, as in `Needs.outputs`. layer3 is the last stage of CIFAR's residual networks and the
            ShuffleNets, and the authors' choice there; for VGG, MobileNetV2 and ResNet50 say layer4, for one of each,
            as layer4:layer3.
        always_embed: learn an embedding where the channels are as many already, as the authors' code does; false
            compares the student's own channels there.

    Note:
        rows of the Gram matrix are normalised and the sum is divided by C, as in the authors' CIFAR code.

    Recipe:
        the authors' CIFAR-100 setting; they report another with kd=1.
    """

    name: ClassVar[str] = "ickd"
    source: ClassVar[str] = "Liu et al. 2021 (ICKD-C), arXiv:2202.03680, section 3"
    recipe: ClassVar[Recipe] = Recipe(weight=2.5, ce=1.0)
    kinds: ClassVar[Kinds] = NONE
    requires = (are_maps,)

    def __init__(self, layers: str = "layer3", always_embed: bool = True) -> None:
        super().__init__(layers)
        self.layers, self.always_embed = layers, always_embed
        self.embeddings = nn.ModuleList()

    def build(self, binding: Binding) -> None:
        """An embedding for each pair of maps."""
        for (inputs, *_), (outputs, *_) in binding.shapes(self.pairs):
            self.embeddings.append(self._embedding(inputs, outputs))

    def summands(self, signals: Signals) -> list[Tensor]:
        """One for each pair of maps."""
        pairs = zip(self.embeddings, self.outputs(signals), strict=True)
        return [ickd(embed(student), teacher) for embed, (student, teacher) in pairs]

    def _embedding(self, inputs: int, outputs: int) -> nn.Module:
        if inputs == outputs and not self.always_embed:
            return nn.Identity()
        return nn.Sequential(nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs))
