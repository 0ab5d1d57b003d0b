"""Accuracy of a network on labelled batches."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from models.compute import Compute
from models.network import Network


def accuracy(network: Network, batches: Iterable[tuple[Tensor, Tensor]], compute: Compute) -> float:
    """Top-1 accuracy in [0, 1]; see `count_correct`.

    Raises:
        ValueError: there are no images.
    """
    correct, total = count_correct(network, batches, compute)
    if not total:
        raise ValueError("there are no images to measure an accuracy on")
    return correct / total


def count_correct(network: Network, batches: Iterable[tuple[Tensor, Tensor]], compute: Compute) -> tuple[int, int]:
    """How many images it names right, and how many there are; the network is left in the mode it was in.

    Args:
        batches: pairs of inputs (B, 3, h, w) and labels (B,), on the compute's device.
    """
    was_training = network.training
    network.eval()
    # Counted on the device: one transfer for the whole set.
    correct = torch.zeros((), dtype=torch.int64, device=compute.device)
    total = 0
    with torch.inference_mode():
        for images, labels in batches:
            with compute.autocast():
                logits = network(images)
            correct += (logits.argmax(dim=1) == labels).sum()
            total += len(labels)
    network.train(was_training)
    return int(correct.item()), total
