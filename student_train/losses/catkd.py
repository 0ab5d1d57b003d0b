"""CAT-KD: match class activation maps, which say where in the image a network sees each class.

Source: Guo et al. 2023, arXiv:2304.12777, section 3.
"""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from student_train.binding import Binding
from student_train.losses.base import DistillationLoss, Recipe
from student_train.losses.kinds import NONE, Kinds
from student_train.losses.teacher_head import teacher_head
from student_train.losses.tensors import pooled_to, raised, same_shape, unit
from student_train.needs import Needs
from student_train.signals import Signals


def class_activation_maps(maps: Tensor, weight: Tensor) -> Tensor:
    """What each position adds to each class: (B, K, H, W), without the bias, which has no place.

    Source: Guo et al. 2023, arXiv:2304.12777, section 3.

    Args:
        maps: (B, C, H, W), what is pooled before the last layer.
        weight: (K, C) of the last layer.
    """
    maps, weight = raised(maps, weight)
    return F.conv2d(maps, weight[:, :, None, None])


def catkd(student: Tensor, teacher: Tensor, size: int = 2, normalise: bool = True, binarise: bool = False) -> Tensor:
    """Mean squared error of class activation maps, over samples, classes and size * size positions.

    Source: Guo et al. 2023, arXiv:2304.12777, section 3, with the mean and the threshold of the released code.

    Args:
        student: (B, K, H, W) class activation maps.
        teacher: (B, K, H', W') class activation maps.
        size: both are average-pooled to so many positions along each side.
        normalise: divide each class's pooled map by its L2 norm.
        binarise: first set the teacher's maps to 1 above the mean of their absolute values, to 0 elsewhere.

    Raises:
        ValueError: samples or classes differ, or they are no maps.
    """
    if binarise and teacher.dim() == 4:
        above = (teacher > teacher.abs().mean(dim=(2, 3), keepdim=True)).to(teacher.dtype)
        # What is no number is above nothing, and must not look like zero.
        teacher = above.masked_fill(teacher.isnan(), float("nan"))
    student, teacher = raised(student, teacher)
    if student.dim() == teacher.dim() == 4:
        student, teacher = pooled_to(student, (size, size)), pooled_to(teacher, (size, size))
    student, teacher = same_shape(student, teacher, "class activation maps (samples, classes, height, width)", 4)
    student, teacher = student.flatten(2), teacher.flatten(2)
    if normalise:
        student, teacher = unit(student, dim=2), unit(teacher, dim=2)
    return F.mse_loss(student, teacher)


class CATKD(DistillationLoss):
    """Mean of (m(s) - m(t))^2; m: maps of each class by the last layer's weights, pooled to 2 x 2, of L2 norm 1.

    Args:
        size: positions along each side that maps are pooled to.
        normalise: whether maps are brought to norm 1; the released code does for pairs of different families.
        binarise: whether the teacher's maps only say where a class is, not how much.

    Note:
        low published weights (15 for resnet32x4 to resnet8x4) go with `normalise=false`.

    Recipe:
        the released code's default; its settings for single pairs go from 4.5 (not normalised) to 600.
    """

    name: ClassVar[str] = "catkd"
    source: ClassVar[str] = "Guo et al. 2023, arXiv:2304.12777, section 3"
    recipe: ClassVar[Recipe] = Recipe(weight=400.0, ce=1.0)
    kinds: ClassVar[Kinds] = NONE
    needs = Needs(outputs="last", head=True)

    weight: Tensor

    def __init__(self, size: int = 2, normalise: bool = True, binarise: bool = False) -> None:
        super().__init__()
        if size < 1:
            raise ValueError(f"size must be at least 1, got {size}")
        self.size, self.normalise, self.binarise = size, normalise, binarise
        # In a tuple, so that it is no part of this module: the student trains and saves it.
        self._student_head: tuple[nn.Linear, ...] = ()

    def build(self, binding: Binding) -> None:
        """Keep what the teacher's last layer is, and take note of the student's own."""
        assert binding.student_head is not None
        self._student_head = (binding.student_head,)
        weight, _ = teacher_head(binding, "catkd", self.pairs)
        # A fact of the store, not something to resume from.
        self.register_buffer("weight", weight, persistent=False)

    def forward(self, signals: Signals) -> Tensor:
        """Single samples or comparisons: the maps are linear in the features."""
        ((student, teacher),) = self.outputs(signals)
        (head,) = self._student_head
        ours, theirs = class_activation_maps(student, head.weight), class_activation_maps(teacher, self.weight)
        return catkd(ours, theirs, self.size, self.normalise, self.binarise)
