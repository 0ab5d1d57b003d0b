"""The face that every network shows, wherever it comes from: logits, named features, and perhaps a linear head.

The zoo's networks share more than that; see `models.staged`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping

from torch import Tensor, nn

from models.representation import Representation


class Network(nn.Module, ABC):
    """What says something of square images, a classifier mostly; any size that survives its strides.

    Layers are named as `ground.layers` says; a feature is a map (B, C, H, W), tokens (B, N, D) or a vector (B, D).

    Attributes:
        num_classes: K; 0 for a network without a head, whose logits are (B, 0).
    """

    num_classes: int

    @property
    @abstractmethod
    def feature_names(self) -> tuple[str, ...]:
        """Layers that `represent` gives, in the order they are computed."""

    @property
    def extra_names(self) -> tuple[str, ...]:
        """Layers that `represent` adds when it is asked for them."""
        return ()

    @property
    def head(self) -> nn.Linear | None:
        """The last layer, pooled vector to logits; None for a network that ends in another way."""
        return None

    @property
    def stage_norms(self) -> Mapping[str, nn.BatchNorm2d]:
        """Stage -> the batch norm that makes its pre-activation, shortcuts aside; empty where no single one does.

        Source: the CRD benchmark's choice for OFD, Heo et al. 2019, arXiv:1904.01866.
        """
        return {}

    @property
    def source_digest(self) -> str | None:
        """SHA-256 of a network that is a file, program and weights; None where the state_dict holds all there is.

        Such a network runs in the numbers that its file says.
        """
        return None

    @abstractmethod
    def represent(self, images: Tensor, extras: Collection[str] = ()) -> Representation:
        """Logits and features of (B, 3, H, W) normalised images.

        Args:
            extras: of `extra_names`; they follow the other features, in that order.

        Raises:
            ValueError: an extra is none of those.
        """

    @property
    def layers(self) -> tuple[str, ...]:
        """Every layer that it can give, in order: `feature_names`, then `extra_names`."""
        return (*self.feature_names, *self.extra_names)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, K)."""
        return self.represent(images).logits


def require_extras(network: Network, extras: Collection[str]) -> None:
    """Raise `ValueError` for an extra that a network does not have."""
    unknown = sorted(set(extras) - set(network.extra_names))
    if unknown:
        raise ValueError(f"no extra is called {unknown[0]!r}; known: {', '.join(network.extra_names)}")
