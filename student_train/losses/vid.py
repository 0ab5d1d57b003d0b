"""Variational information distillation (VID): the student predicts the teacher's map, and how sure it is of it.

Source: Ahn et al. 2019, arXiv:1904.05835.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from student_train.binding import Binding
from student_train.losses.base import Recipe
from student_train.losses.kinds import NONE, Kinds
from student_train.losses.layerwise import LayerwiseLoss
from student_train.losses.requirements import are_maps
from student_train.losses.tensors import maps_of_one_size, raised, require_positive, same_shape, sum_of_squares
from student_train.signals import Signals

_EPS = 1e-5


def vid(predicted_mean: Tensor, log_scale: Tensor, target: Tensor, eps: float = _EPS) -> Tensor:
    """Negative log-likelihood of the teacher's map under a normal per channel: nats less a constant, element mean.

    Source: Ahn et al. 2019, arXiv:1904.05835, the normal q(t | s) of feature maps, with the mean of the CRD benchmark's
    code; the paper has the sum over channels and positions. Without the constant log(2 pi) / 2 it may be negative.

    Args:
        predicted_mean: (B, C, H, W), made from the student's map.
        log_scale: (C,); the variance of a channel is softplus(log_scale) + eps.
        target: (B, C, H, W), the teacher's map.
        eps: the smallest variance, above 0.

    Raises:
        ValueError: the shapes differ, or eps is not positive.
    """
    predicted_mean, target = same_shape(predicted_mean, target, "maps", 4)
    require_positive(eps=eps)
    if log_scale.shape != target.shape[1:2]:
        raise ValueError(f"log_scale is {tuple(log_scale.shape)}; maps of {target.shape[1]} channels need one for each")
    (log_scale,) = raised(log_scale)
    # softplus where the released code has log(1 + exp(x)), which overflows.
    variance = F.softplus(log_scale) + eps
    # One variance divides all of a channel's errors, so their sum comes first.
    errors = sum_of_squares(predicted_mean - target, dim=(0, 2, 3)) / (target.numel() / len(variance))
    return 0.5 * (errors / variance + variance.log()).mean()


class VID(LayerwiseLoss):
    """0.5 * mean of (m(s) - t)^2 / v + log v, summed over layers; m is learned, and a variance v per channel.

    Args:
        layers: which maps, as in `Needs.outputs`; the larger is average-pooled to the smaller.
        variance: what v starts at.

    Note:
        a stable softplus makes v.

    Recipe:
        kd=1 as in CKD's white-box runs (white_box.yml: w_kd 1); the CRD benchmark's own run has kd=0.
    """

    name: ClassVar[str] = "vid"
    source: ClassVar[str] = "Ahn et al. 2019, arXiv:1904.05835, the normal q(t | s) of feature maps"
    recipe: ClassVar[Recipe] = Recipe(weight=1.0, ce=1.0, kd=1.0)
    kinds: ClassVar[Kinds] = NONE
    requires = (are_maps,)

    def __init__(self, layers: str = "stages", variance: float = 5.0) -> None:
        super().__init__(layers)
        if not variance > _EPS:
            raise ValueError(f"variance must be above {_EPS}, got {variance}")
        self.layers, self.variance = layers, variance
        self.regressors = nn.ModuleList()
        self.log_scales = nn.ParameterList()

    def build(self, binding: Binding) -> None:
        """A regressor and a variance for each pair of maps."""
        softplus = self.variance - _EPS
        log_scale = softplus + math.log(-math.expm1(-softplus))
        for (channels, *_), (outputs, *_) in binding.shapes(self.pairs):
            self.regressors.append(mean_regressor(channels, outputs))
            self.log_scales.append(nn.Parameter(torch.full((outputs,), log_scale)))

    def summands(self, signals: Signals) -> Iterator[Tensor]:
        """One for each pair of maps."""
        for learned, log_scale, pair in zip(self.regressors, self.log_scales, self.outputs(signals), strict=True):
            student, teacher = maps_of_one_size(*pair)
            yield vid(learned(student), log_scale, teacher)


def mean_regressor(channels: int, outputs: int) -> nn.Sequential:
    """Three 1x1 convolutions without bias, as wide as the teacher, ReLU between: the CRD benchmark's."""
    return nn.Sequential(
        nn.Conv2d(channels, outputs, 1, bias=False),
        nn.ReLU(inplace=True),
        nn.Conv2d(outputs, outputs, 1, bias=False),
        nn.ReLU(inplace=True),
        nn.Conv2d(outputs, outputs, 1, bias=False),
    )
