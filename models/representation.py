"""What a network says of a batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor


# eq=False: == of tensors has no single truth value.
@dataclass(frozen=True, slots=True, eq=False)
class Representation:
    """Logits and named feature maps.

    Args:
        logits: (B, K), before softmax.
        features: layer name -> (B, C, H, W) map, in the order of the CRD benchmark's feature list; the last
            one is `pooled`, (B, D).
        preactivations: layer name -> the map before its last ReLU; empty unless asked for.
    """

    logits: Tensor
    features: Mapping[str, Tensor]
    preactivations: Mapping[str, Tensor] = field(default_factory=dict)

    def map(self, function: Callable[[Tensor], Tensor]) -> Representation:
        """The same with `function` applied to every tensor."""
        return Representation(
            function(self.logits),
            {name: function(tensor) for name, tensor in self.features.items()},
            {name: function(tensor) for name, tensor in self.preactivations.items()},
        )
