"""What losses that know the class of each sample share: the class as a mask, and warm-up by epochs."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from student_train.signals import Moment


def target_mask(labels: Tensor, logits: Tensor) -> Tensor:
    """(B, K) booleans, true at the class of each sample.

    Args:
        labels: (B,) int64, below K.
        logits: (B, K).

    Raises:
        ValueError: there is not one class per sample.
    """
    require_classes(labels, logits)
    return torch.zeros_like(logits, dtype=torch.bool).scatter(1, labels.unsqueeze(1), True)


def require_classes(labels: Tensor, logits: Tensor) -> None:
    """Raise `ValueError` unless labels (B,) are the classes of the samples that the logits (B, K) are of."""
    if labels.shape != logits.shape[:1] or labels.is_floating_point():
        raise ValueError(
            f"labels are {labels.dtype} of shape {tuple(labels.shape)}, logits {tuple(logits.shape)}; "
            f"give the class of each sample, ({len(logits)},) integers"
        )


def epoch_number(moment: Moment) -> int:
    """The epoch that is under way, counted from 1 as released training loops count."""
    return math.floor(moment.epoch) + 1


def warmed_up(moment: Moment, epochs: int) -> float:
    """A factor that rises to 1 over so many epochs, in steps of one epoch: 1 / epochs in the first; 1 for 0 epochs."""
    return min(epoch_number(moment) / epochs, 1.0) if epochs else 1.0


def require_epochs(warmup: int) -> None:
    """Raise `ValueError` for a number of epochs below 0."""
    if warmup < 0:
        raise ValueError(f"warmup must be 0 or more epochs, got {warmup}")
