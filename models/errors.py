"""Errors about networks and their weights that a user can act on.

ModelError              exit 2
├── UnknownModel        no such network: pick one of the names listed
├── CheckpointError     a file is not a checkpoint that can be read safely
└── CheckpointMismatch  it is one, of another network or another number of classes
"""

from __future__ import annotations


class ModelError(ValueError):
    """A network, device or checkpoint cannot be used; `exit_code` is what a command returns."""

    exit_code = 2


class UnknownModel(ModelError):
    """No network has this name; the message lists the nearest."""


class CheckpointError(ModelError):
    """A file is missing, damaged, or holds more than tensors and numbers."""


class CheckpointMismatch(ModelError):
    """A checkpoint's tensors are not those of the network."""
