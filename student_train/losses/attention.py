"""Attention transfer (AT): match where in the image two networks respond, whatever their channels.

Source: Zagoruyko and Komodakis 2017, arXiv:1612.03928, section 3.1.
"""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from student_train.losses.base import Recipe
from student_train.losses.kinds import NONE, Kinds
from student_train.losses.layerwise import LayerwiseLoss
from student_train.losses.requirements import are_maps
from student_train.losses.tensors import flat, maps_of_one_size, root, sum_of_squares, unit
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
    return unit(flat(sum_of_squares(maps, dim=1) / maps.shape[1]))


class AttentionTransfer(LayerwiseLoss):
    """Mean of (q(s) - q(t))^2 over samples and positions, summed over layers; q = channel mean of f^2, L2-normalised.

    Args:
        layers: which maps, as in `Needs.outputs`; the larger is average-pooled to the smaller.
        squared: as in the released code; false for the paper's distance: half of the L2 norm of the difference,
            batch mean.
    """

    name: ClassVar[str] = "at"
    source: ClassVar[str] = "Zagoruyko and Komodakis 2017, arXiv:1612.03928, eq. 2"
    recipe: ClassVar[Recipe] = Recipe(weight=1000.0, ce=1.0)
    kinds: ClassVar[Kinds] = NONE
    requires = (are_maps,)

    def __init__(self, layers: str = "stages", squared: bool = True) -> None:
        super().__init__(layers)
        self.layers, self.squared = layers, squared

    def summands(self, signals: Signals) -> list[Tensor]:
        """One for each pair of maps."""
        formula = attention_transfer if self.squared else attention_distance
        return [formula(*pair) for pair in self.outputs(signals)]
