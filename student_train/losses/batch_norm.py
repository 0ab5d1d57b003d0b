"""Batch norm that a batch with one value per channel does not stop.

Torch's own refuses such a batch (one map of one position): it has no statistics.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class LenientBatchNorm2d(nn.BatchNorm2d):
    """Of maps (B, C, H, W): one map of one position is normalised with the running statistics."""

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, H, W) normalised."""
        return _by_running_statistics(self, input) if _has_no_statistics(self, input) else super().forward(input)


def _has_no_statistics(norm: nn.BatchNorm2d, values: Tensor) -> bool:
    return norm.training and values.numel() == norm.num_features


def _by_running_statistics(norm: nn.BatchNorm2d, values: Tensor) -> Tensor:
    return F.batch_norm(values, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)
