"""What rules have in common that choose by features of images."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping

import numpy as np
from torch import Tensor

from teacher_cache.selection.candidates import (
    block_bytes,
    candidates,
    require_candidates,
    require_memory,
    require_subset,
)
from teacher_cache.selection.contract import Pool, Selector
from teacher_cache.selection.encoders import PIXELS, Encoder, open_encoder

# Of a feature, and of an image's index, twice.
_FLOAT_BYTES, _INDEX_BYTES = 4, 16


class FeatureRule(Selector):
    """Chooses by features of the images that are left and of those that were bought, which memory holds all of.

    Args:
        encoder: what makes them; see `teacher_cache.selection.encoders`.
        subset: how many images to choose among, the first of the sample's order; None is all.
    """

    def __init__(self, encoder: str = PIXELS, subset: int | None = None) -> None:
        require_subset(subset)
        self.encoder_text, self.subset = encoder, subset
        self._encoder: Encoder | None = None

    @abstractmethod
    def pick(self, features: Tensor, num_left: int, count: int, rng: np.random.Generator) -> np.ndarray:
        """Places among the first `num_left` images, (count,), the most wanted first.

        Args:
            features: (M, D) float32, of those that may be chosen, and after them of those that were bought; it may be
                changed.
        """

    @abstractmethod
    def bytes_beside(self, left: int, bought: int, count: int, width: int) -> int:
        """What `pick` takes at most beside the features; it does not fall as `left` grows."""

    def encoder(self, pool: Pool) -> Encoder:
        """What makes features; opened at the first use."""
        if self._encoder is None:
            self._encoder = open_encoder(self.encoder_text, pool)
        return self._encoder

    def require(self, pool: Pool, count: int) -> None:
        """See `Selector.require`."""
        require_candidates(self.name, pool, count, self.subset)
        encoder, bought = self.encoder(pool), len(pool.bought)

        def bytes_for(left: int) -> int:
            features = (_FLOAT_BYTES * encoder.width + _INDEX_BYTES) * (left + bought)
            shown = block_bytes(pool, encoder.rendering.size)
            return features + max(shown, self.bytes_beside(left, bought, count, encoder.width))

        require_memory(self.name, pool, count, self.subset, bytes_for)

    def choose(self, pool: Pool, count: int, rng: np.random.Generator) -> np.ndarray:
        """See `Selector.choose`."""
        left = candidates(pool, self.subset)
        features = self.encoder(pool).features(pool, np.concatenate([left, pool.bought]))
        chosen: np.ndarray = left[self.pick(features, len(left), count, rng)]
        return chosen

    def looked_at(self) -> Mapping[str, str]:
        """See `Selector.looked_at`: the digest of the encoder's weights, once it was opened."""
        return {} if self._encoder is None else {"encoder": self._encoder.digest}
