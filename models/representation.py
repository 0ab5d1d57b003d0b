"""What a network says of a batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor


# eq=False: == of tensors has no single truth value.
@dataclass(frozen=True, slots=True, eq=False)
class Representation:
    """Logits and named feature maps.

    Args:
        logits: (B, K), before softmax; K is 0 where there are none, as of a network without a head.
        features: layer name -> (B, C, H, W) map, (B, N, D) tokens or (B, D) vector, in the order of
            `Network.feature_names` (for the zoo, that of the CRD benchmark's feature list); then the extras that were
            asked for (`Network.extra_names`).
    """

    logits: Tensor
    features: Mapping[str, Tensor]

    def map(self, function: Callable[[Tensor], Tensor]) -> Representation:
        """The same with `function` applied to every tensor."""
        return Representation(
            function(self.logits),
            {name: function(tensor) for name, tensor in self.features.items()},
        )

    def only(self, names: Iterable[str]) -> Representation:
        """Logits and these features, in this order; raises `KeyError` for one that is not there."""
        return Representation(self.logits, {name: self.features[name] for name in names})
