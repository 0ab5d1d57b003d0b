"""Weights averaged over steps: a network beside the one that is trained, which follows it slowly.

Source: Polyak and Juditsky 1992 for the average; the exponential one with this warm-up is TensorFlow's
`ExponentialMovingAverage(decay, num_updates)`.
"""

from __future__ import annotations

import copy
from itertools import chain

import torch
from torch import Tensor, nn

from ground.errors import InvalidInput
from models import Network
from models.file_network import first_line


class AveragedWeights(nn.Module):
    """An exponential moving average of a network's weights over its steps.

    The t-th update, from 0, keeps min(decay, (1 + t) / (10 + t)) of what there is, so that the average soon forgets how
    the network began. Buffers of floating point (those of batch norm) are averaged too, others are copied. All there is
    is in the state dict, so an average that is loaded goes on as the one that was saved.

    Args:
        network: what is followed; it stays the caller's.
        decay: above 0 and below 1.

    Attributes:
        network: the average, on the same device, in evaluation mode and without gradients.
        updates: () int64, how many there were.

    Raises:
        ValueError: the decay is none.
        InvalidInput: the network cannot be copied.
    """

    updates: Tensor

    def __init__(self, network: Network, decay: float) -> None:
        super().__init__()
        if not 0 < decay < 1:
            raise ValueError(f"a decay is above 0 and below 1, got {decay}")
        self.decay = decay
        self.network = _copied(network).eval().requires_grad_(False)
        device = next(network.parameters()).device
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64, device=device))

    @torch.no_grad()
    def update(self, network: Network) -> None:
        """Take in the weights of a network of the same kind, after a step of it."""
        # On the device, so that no step waits for the number.
        count = self.updates.double()
        share = 1 - ((1 + count) / (10 + count)).clamp(max=self.decay)
        for own, new in zip(_tensors(self.network), _tensors(network), strict=True):
            if own.is_floating_point():
                own.lerp_(new, share.to(own.dtype))
            else:
                own.copy_(new)
        self.updates += 1


def _copied(network: Network) -> Network:
    try:
        return copy.deepcopy(network)
    except Exception as error:  # code of others fails in any way
        raise InvalidInput(
            f"the network cannot be copied ({first_line(error)}), and an average of its weights is a copy of it; leave "
            "the average out, or give another network"
        ) from error


def _tensors(network: nn.Module) -> chain[Tensor]:
    return chain(network.parameters(), network.buffers())
