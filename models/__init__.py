"""The network zoo that both stages share: teachers and students are the same kind of thing.

What needs torch is loaded when it is first asked for: a command that only reads names does without the two seconds
that torch takes.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from models.names import canonical_name, locate, model_names

if TYPE_CHECKING:
    from models.checkpoint import (
        Loaded,
        Weights,
        load_weights,
        num_classes_in,
        read_metadata,
        read_weights,
        save_weights,
        weights_digest,
    )
    from models.network import Network
    from models.registry import NetworkShape, create_model, network_shape
    from models.representation import Representation

__all__ = [
    "Loaded",
    "Network",
    "NetworkShape",
    "Representation",
    "Weights",
    "canonical_name",
    "create_model",
    "load_weights",
    "locate",
    "model_names",
    "network_shape",
    "num_classes_in",
    "read_metadata",
    "read_weights",
    "save_weights",
    "weights_digest",
]

_NEED_TORCH = {
    "checkpoint": (
        "Loaded",
        "Weights",
        "load_weights",
        "num_classes_in",
        "read_metadata",
        "read_weights",
        "save_weights",
        "weights_digest",
    ),
    "network": ("Network",),
    "registry": ("NetworkShape", "create_model", "network_shape"),
    "representation": ("Representation",),
}
_HOMES = {name: module for module, names in _NEED_TORCH.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
