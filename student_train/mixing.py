"""Mixing: one input made of several images of a batch, whose labels and teacher answers it shares.

The teacher is fixed: it saw each image alone. The loss of a mixed input is the sum of its losses against each of its
images, by their share; for cross-entropies that is the cross-entropy with the mixed probabilities.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ground.errors import InvalidInput

_MAX_IMAGES = 64


@dataclass(frozen=True, slots=True)
class Part:
    """One of the images that every mixed input is made of.

    Args:
        share: of the input, in [0, 1]; those of all parts sum to 1.
        order: (B,) int64, which image of the batch each input has as this part.
    """

    share: float
    order: Tensor


class Mixing(ABC):
    """Turns a batch of inputs into a batch of mixed ones."""

    @abstractmethod
    def mix(self, inputs: Tensor, generator: np.random.Generator) -> tuple[Tensor, Sequence[Part]]:
        """(B, 3, H, W) in and out, and what each is made of."""


@dataclass(frozen=True)
class Mixup(Mixing):
    """A weighted mean of images (Zhang et al. 2018, arXiv:1710.09412), weights drawn once per batch.

    Args:
        alpha: of the Beta, or for more than two images Dirichlet, distribution of the weights.
        images: how many are mixed; 3 is an ablation of the CKD paper.
    """

    alpha: float = 1.0
    images: int = 2

    def __post_init__(self) -> None:
        if not (np.isfinite(self.alpha) and self.alpha > 0):
            raise InvalidInput(f"alpha of mixup must be a finite number above 0, got {self.alpha}")
        if not 2 <= self.images <= _MAX_IMAGES:
            raise InvalidInput(f"mixup takes 2 to {_MAX_IMAGES} images, got {self.images}")

    def mix(self, inputs: Tensor, generator: np.random.Generator) -> tuple[Tensor, Sequence[Part]]:
        """See `Mixing.mix`."""
        shares = generator.dirichlet([self.alpha] * self.images).tolist()
        parts = _parts(len(inputs), shares, generator)
        mixed = sum(part.share * inputs[part.order.to(inputs.device)] for part in parts)
        assert isinstance(mixed, Tensor)
        return mixed, parts


@dataclass(frozen=True)
class CutMix(Mixing):
    """A box of one image pasted into another (Yun et al. 2019, arXiv:1905.04899), one box per batch.

    Args:
        alpha: of the Beta distribution of the share that is kept; what the clipped box leaves is what counts.
    """

    alpha: float = 1.0

    def __post_init__(self) -> None:
        if not (np.isfinite(self.alpha) and self.alpha > 0):
            raise InvalidInput(f"alpha of cutmix must be a finite number above 0, got {self.alpha}")

    def mix(self, inputs: Tensor, generator: np.random.Generator) -> tuple[Tensor, Sequence[Part]]:
        """See `Mixing.mix`."""
        height, width = inputs.shape[2:]
        side = float(np.sqrt(1.0 - generator.beta(self.alpha, self.alpha)))
        rows, columns = (_interval(size, side, generator) for size in (height, width))
        pasted = (rows.stop - rows.start) * (columns.stop - columns.start) / (height * width)
        parts = _parts(len(inputs), [1.0 - pasted, pasted], generator)
        mixed = inputs.clone()
        mixed[:, :, rows, columns] = inputs[parts[1].order.to(inputs.device)][:, :, rows, columns]
        return mixed, parts


def _parts(count: int, shares: Sequence[float], generator: np.random.Generator) -> list[Part]:
    """The first part of every input is the image in its place."""
    orders = [np.arange(count), *(generator.permutation(count) for _ in shares[1:])]
    return [Part(share, torch.from_numpy(order)) for share, order in zip(shares, orders, strict=True)]


def _interval(size: int, share: float, generator: np.random.Generator) -> slice:
    """A stretch of about `share` of a side around a uniform centre, clipped at the border."""
    length, centre = int(size * share), int(generator.integers(size))
    return slice(max(0, centre - length // 2), min(size, centre + length // 2))
