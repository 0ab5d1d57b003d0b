"""Masked generative distillation (MGD): a teacher's map, generated from what is left of the student's.

Source: Yang et al. 2022, Masked Generative Distillation, ECCV, arXiv:2205.01529.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import torch
from torch import Tensor, nn

from ground.errors import UnknownName
from student_train.binding import Binding
from student_train.losses.base import Recipe
from student_train.losses.connectors import to_channels
from student_train.losses.kinds import NONE, Kinds
from student_train.losses.layerwise import LayerwiseLoss
from student_train.losses.requirements import are_maps
from student_train.losses.tensors import MAPS, at_one_size, same_shape, sum_of_squares
from student_train.signals import Signals

MASKS = ("channels", "positions")


def mgd(generated: Tensor, teacher: Tensor) -> Tensor:
    """Squared error of two maps, summed over all elements, mean over the batch.

    Source: Yang et al. 2022, arXiv:2205.01529, section 3; divided by the batch as in the released code.

    Args:
        generated: (B, C, H, W), the teacher's map as generated from the masked one of the student.
        teacher: (B, C, H, W).

    Raises:
        ValueError: the shapes differ.
    """
    generated, teacher = same_shape(generated, teacher, MAPS, 4)
    return sum_of_squares(generated - teacher) / len(teacher)


def kept(maps: Tensor, what: str, lambda_mgd: float, generator: torch.Generator) -> Tensor:
    """1 for what stays and 0 for what is masked, independently with probability `lambda_mgd`.

    Source: Yang et al. 2022, arXiv:2205.01529, section 3 (positions); the released code for classification: channels.

    Args:
        maps: (B, C, H, W).
        what: of `MASKS`: whole channels (B, C, 1, 1), or positions in all channels (B, 1, H, W).
        generator: on the CPU.
    """
    samples, channels, height, width = maps.shape
    shapes = {"channels": (samples, channels, 1, 1), "positions": (samples, 1, height, width)}
    drawn = torch.rand(shapes[what], generator=generator)
    return (drawn >= lambda_mgd).to(device=maps.device, dtype=maps.dtype)


class MGD(LayerwiseLoss):
    """Sum over elements of (G(a(s) * mask) - t)^2, batch mean; G: two learned 3x3 convolutions and a ReLU.

    Args:
        layers: which maps, as in `Needs.outputs`; layer3 is the last stage of the CIFAR ResNets and wide ResNets.
            Where channels differ, the student's pass a learned 1x1 convolution a; the larger map is pooled.
        lambda_mgd: probability that something is masked, in [0, 1); the released classification code has 0.15, and
            0.5 in its documentation.
        mask: what is masked: channels, as in the released code for classification, or positions, as in the paper.

    Recipe:
        alpha of the paper and of the released code for classification.

    Checked:
        shares of masks, the same mask in a repeated step.
    """

    name: ClassVar[str] = "mgd"
    source: ClassVar[str] = "Yang et al. 2022 (MGD), arXiv:2205.01529, section 3"
    recipe: ClassVar[Recipe] = Recipe(weight=7e-5, ce=1.0)
    kinds: ClassVar[Kinds] = NONE
    requires = (are_maps,)

    def __init__(self, layers: str = "layer3", lambda_mgd: float = 0.15, mask: str = "channels") -> None:
        super().__init__(layers)
        if not 0 <= lambda_mgd < 1:
            raise ValueError(f"lambda_mgd must be in [0, 1), got {lambda_mgd}")
        if mask not in MASKS:
            raise UnknownName("mask", mask, MASKS)
        self.layers, self.lambda_mgd, self.mask = layers, lambda_mgd, mask
        self.aligners, self.generators = nn.ModuleList(), nn.ModuleList()

    def build(self, binding: Binding) -> None:
        """A generator for each pair of maps, and an aligner where channels differ."""
        for student, teacher in binding.shapes(self.pairs):
            self.aligners.append(to_channels(student, teacher))
            channels = teacher[0]
            first, second = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))
            self.generators.append(nn.Sequential(first, nn.ReLU(), second))

    def summands(self, signals: Signals) -> Iterator[Tensor]:
        """One for each pair of maps; a step's masks are the same whenever it is repeated."""
        random = signals.moment.generator("mgd")
        for align, generate, pair in zip(self.aligners, self.generators, self.outputs(signals), strict=True):
            student, teacher = at_one_size(*pair)
            aligned = align(student)
            yield mgd(generate(aligned * kept(aligned, self.mask, self.lambda_mgd, random)), teacher)
