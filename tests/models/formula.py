"""Weights and images from a formula, so that golden numbers do not hang on any random generator.

A table of 65,537 numbers in [0, 1) comes from splitmix64 (Steele et al. 2014) of 0, 1, 2, ...; every tensor
reads it from an offset that its name decides. Integers and exact float64 scaling: the same everywhere.
"""

from __future__ import annotations

import zlib

import numpy as np
import torch
from torch import Tensor, nn

_LENGTH = 65537  # prime: rows of power-of-two length do not repeat


def _splitmix64(counters: np.ndarray) -> np.ndarray:
    mixed = (counters + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


_TABLE = (_splitmix64(np.arange(_LENGTH, dtype=np.uint64)) >> np.uint64(11)).astype(np.float64) / 2.0**53


def uniform(name: str, shape: tuple[int, ...]) -> Tensor:
    """Float64 values in [0, 1) that `name` decides."""
    return torch.from_numpy(np.resize(np.roll(_TABLE, zlib.crc32(name.encode()) % _LENGTH), shape))


def formula_images(batch: int, size: int) -> Tensor:
    """(B, 3, size, size) in [-1, 1)."""
    return 2 * uniform("images", (batch, 3, size, size)) - 1


def fill_by_formula(network: nn.Module) -> None:
    """Replace every weight and buffer, on the meta device too; all become float64 on the CPU."""
    values = {key: _values(key, tensor) for key, tensor in network.state_dict().items()}
    network.load_state_dict(values, assign=True)


def _values(key: str, tensor: Tensor) -> Tensor:
    if not tensor.is_floating_point():
        return torch.ones(tensor.shape, dtype=tensor.dtype)
    values = uniform(key, tuple(tensor.shape))
    if tensor.dim() > 1:
        fan_in = tensor[0].numel()
        return (2 * values - 1) * (3 / fan_in) ** 0.5
    if key.endswith(("running_var", "weight")):
        return values + 0.5
    return values - 0.5
