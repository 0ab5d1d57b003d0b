"""SDD: KD on the logits of regions at several scales, more weight where a region disagrees with the whole image.

Source: Luo 2024 (Scale Decoupled Distillation), arXiv:2403.13512, section 3.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ground.errors import UnknownName
from student_train.binding import Binding
from student_train.losses.base import DistillationLoss, Recipe
from student_train.losses.dkd import dkd
from student_train.losses.kd import kd
from student_train.losses.kinds import NONE, Kinds
from student_train.losses.targets import require_classes, require_epochs, warmed_up
from student_train.losses.teacher_head import teacher_head
from student_train.losses.tensors import raised, require_positive, same_shape
from student_train.needs import Needs
from student_train.signals import Signals

Divergence = Callable[[Tensor, Tensor, Tensor], Tensor]


def local_logits(maps: Tensor, weight: Tensor, bias: Tensor, scales: Sequence[int]) -> Tensor:
    """Logits of the cells of a map at several scales: (B, L, K), L the sum of the squared scales.

    The last layer is linear, so the mean of a cell's logits is the logits of its mean.

    Source: Luo 2024, arXiv:2403.13512, section 3. The released code pools scales 1 and 2 from scale 4; the same where 4
    divides the map, or the map has at most 2 x 2.

    Args:
        maps: (B, C, H, W), what is pooled before the last layer.
        weight, bias: (K, C) and (K,) of the last layer.
        scales: cells along each side; 1 is the whole image.
    """
    maps, weight, bias = raised(maps, weight, bias)
    cells = [F.adaptive_avg_pool2d(maps, scale).flatten(2) for scale in scales]
    return F.linear(torch.cat(cells, dim=2).transpose(1, 2), weight, bias)


def kd_of_regions(student: Tensor, teacher: Tensor, _: Tensor, temperature: float = 4.0) -> Tensor:
    """`kd`, which needs no labels, as a base of `sdd`."""
    return kd(student, teacher, temperature=temperature)


def sdd(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    complementary: float = 2.0,
    base: Divergence = kd_of_regions,
) -> Tensor:
    """Divergence of consistent regions + `complementary` * that of the others, mean over samples and regions.

    A region is consistent if the teacher is right about it and about the whole image, or wrong about both.

    Source: Luo 2024, arXiv:2403.13512, section 3, with the released code's mean over all regions.

    Args:
        student: (B, L, K) logits of L regions; the first is the whole image.
        teacher: (B, L, K) logits.
        labels: (B,) int64 classes.
        complementary: weight of the regions that are not consistent.
        base: from (N, K) logits of both and (N,) labels to the batch mean of something that is 0 for equal logits.

    Raises:
        ValueError: the shapes differ, or there is not one class per sample.
    """
    student, teacher = same_shape(student, teacher, "local logits (samples, regions, classes)", 3)
    require_classes(labels, teacher)
    right = teacher.argmax(dim=2) == labels[:, None]
    consistent = (right == right[:, :1]).flatten()[:, None]
    targets = labels.repeat_interleave(student.shape[1])
    student, teacher = student.flatten(0, 1), teacher.flatten(0, 1)
    # Regions of the other kind are given the teacher's logits: they add nothing to a sum, and take no gradient.
    agreeing = base(torch.where(consistent, student, teacher), teacher, targets)
    return agreeing + complementary * base(torch.where(consistent, teacher, student), teacher, targets)


def _dkd(student: Tensor, teacher: Tensor, labels: Tensor, temperature: float) -> Tensor:
    # alpha 1 and beta 8, as in all of the released settings for CIFAR-100.
    return dkd(student, teacher, labels, temperature=temperature)


BASES: dict[str, Callable[..., Tensor]] = {"kd": kd_of_regions, "dkd": _dkd}


class SDD(DistillationLoss):
    """KD (or DKD) of the logits of 1x1, 2x2 and 4x4 cells; weight 2 where the teacher is right only here or only whole.

    Args:
        base: "kd" or "dkd".
        temperature: above 0.
        scales: cells along each side, with + between, 1 first; the released code takes 1+2 for pairs of one family.
        complementary: weight of the regions that disagree with the whole image.
        warmup: epochs over which the weight grows linearly; the released code takes 20 with dkd; 0 for none.

    Note:
        each scale is pooled directly.

    Recipe:
        the released settings for CIFAR-100; it replaces KD.

    Checked:
        gradient reaches the student's own head, of which nothing is saved.
    """

    name: ClassVar[str] = "sdd"
    source: ClassVar[str] = "Luo 2024, arXiv:2403.13512, section 3"
    recipe: ClassVar[Recipe] = Recipe(weight=0.9, ce=0.1)
    kinds: ClassVar[Kinds] = NONE
    pulls_to_teacher: ClassVar[bool] = True
    needs = Needs(outputs="last", head=True, labels=True)
    # Logits of the whole image are among those it matches.
    constrains_logits = True

    weight: Tensor
    bias: Tensor

    def __init__(
        self,
        base: str = "kd",
        temperature: float = 4.0,
        scales: str = "1+2+4",
        complementary: float = 2.0,
        warmup: int = 0,
    ) -> None:
        super().__init__()
        if base not in BASES:
            raise UnknownName("base of sdd", base, BASES)
        require_positive(temperature=temperature)
        require_epochs(warmup)
        self.base, self.temperature, self.scales = base, temperature, scales
        self.complementary, self.warmup = complementary, warmup
        self._sides = _read_scales(scales)
        # In a tuple, so that it is no part of this module: the student trains and saves it.
        self._student_head: tuple[nn.Linear, ...] = ()

    def build(self, binding: Binding) -> None:
        """Keep what the teacher's last layer is, and take note of the student's own."""
        assert binding.student_head is not None
        self._student_head = (binding.student_head,)
        weight, bias = teacher_head(binding, "sdd", self.pairs)
        # Facts of the store, not something to resume from.
        self.register_buffer("weight", weight, persistent=False)
        self.register_buffer("bias", bias, persistent=False)

    def forward(self, signals: Signals) -> Tensor:
        """Single samples."""
        ((student, teacher),) = self.outputs(signals)
        (head,) = self._student_head
        ours = local_logits(student, head.weight, head.bias, self._sides)
        theirs = local_logits(teacher, self.weight, self.bias, self._sides)
        base = partial(BASES[self.base], temperature=self.temperature)
        loss = sdd(ours, theirs, signals.labels, self.complementary, base)
        return warmed_up(signals.moment, self.warmup) * loss


def _read_scales(text: str) -> tuple[int, ...]:
    parts = text.split("+")
    if parts[0] != "1" or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise ValueError(f"scales must be whole numbers with + between, 1 first, as 1+2+4; got {text!r}")
    return tuple(map(int, parts))
