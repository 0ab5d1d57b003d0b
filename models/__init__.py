"""The network zoo that both stages share: teachers and students are the same kind of thing."""

from __future__ import annotations

from models.checkpoint import Weights, load_weights, read_weights, save_weights, weights_digest
from models.network import Network
from models.registry import NetworkShape, canonical_name, create_model, model_names, network_shape
from models.representation import Representation

__all__ = [
    "Network",
    "NetworkShape",
    "Representation",
    "Weights",
    "canonical_name",
    "create_model",
    "load_weights",
    "model_names",
    "network_shape",
    "read_weights",
    "save_weights",
    "weights_digest",
]
