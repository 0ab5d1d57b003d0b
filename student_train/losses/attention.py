"""Attention transfer (AT): match where in the image two networks respond, whatever their channels.

Source: Zagoruyko and Komodakis 2017, arXiv:1612.03928, section 3.1.
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from student_train.binding import Binding
from student_train.losses.base import DistillationLoss, Recipe
from student_train.losses.tensors import flat, pooled_to, raised, root, smaller_size, unit
from student_train.needs import Needs
from student_train.signals import Signals


def attention_transfer(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of two attention maps, over samples and positions.

    Source: Zagoruyko and Komodakis 2017, arXiv:1612.03928, eq. 2, with the squared difference of the authors' and the
    CRD benchmark's code; `attention_distance` is the paper's form.

    Args:
        student: (B, C, H, W).
        teacher: (B, C', H', W'); the larger of the two is average-pooled to the smaller.

    Raises:
        ValueError: they are no maps of one batch.
    """
    student, teacher = maps_of_one_size(student, teacher)
    return F.mse_loss(attention(student), attention(teacher))


def attention_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Half the L2 distance of two attention maps, batch mean: see `attention_transfer`.

    Source: Zagoruyko and Komodakis 2017, arXiv:1612.03928, eq. 2, p = 2.
    """
    student, teacher = maps_of_one_size(student, teacher)
    return root((attention(student) - attention(teacher)).square().sum(dim=1)).mean() / 2


def attention(maps: Tensor) -> Tensor:
    """(B, C, H, W) to (B, H * W): channel means of squares, each sample divided by its L2 norm."""
    # The mean in place of the paper's sum changes nothing once normalised.
    return unit(flat(maps.square().mean(dim=1)))


def maps_of_one_size(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Both raised, the larger average-pooled to the smaller's height and width; channels may differ.

    Raises:
        ValueError: they are no maps (B, C, H, W) of one batch.
    """
    if student.dim() != 4 or teacher.dim() != 4 or len(student) != len(teacher):
        raise ValueError(
            f"the student's maps are {tuple(student.shape)}, the stored ones of the teacher {tuple(teacher.shape)}; "
            f"they must be (samples, channels, height, width) of the same samples"
        )
    student, teacher = raised(student, teacher)
    size = smaller_size(student, teacher)
    return pooled_to(student, size), pooled_to(teacher, size)


class AttentionTransfer(DistillationLoss):
    """Mean of (q(s) - q(t))^2 over samples and positions, summed over layers; q = channel mean of f^2, L2-normalised.

    Args:
        layers: which maps, as in `Needs.outputs`.
        squared: as in the released code; false for the paper's half of the L2 distance itself.
    """

    name: ClassVar[str] = "at"
    source: ClassVar[str] = "Zagoruyko and Komodakis 2017, arXiv:1612.03928, eq. 2"
    recipe: ClassVar[Recipe] = Recipe(weight=1000.0, ce=1.0)

    def __init__(self, layers: str = "stages", squared: bool = True) -> None:
        super().__init__()
        self.layers, self.squared = layers, squared

    @property
    def needs(self) -> Needs:
        """The maps."""
        return Needs(outputs=self.layers)

    def build(self, binding: Binding) -> None:
        """Refuse what is no map."""
        binding.map_shapes(self.name, self.pairs)

    def forward(self, signals: Signals) -> Tensor:
        """Sum over the layers."""
        formula = attention_transfer if self.squared else attention_distance
        return torch.stack([formula(*pair) for pair in self.outputs(signals)]).sum()
