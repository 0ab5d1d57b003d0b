"""Random numbers that depend on what they are for, not on what was drawn before.

A run that is resumed at epoch 7 draws what an uninterrupted run draws there, because the generator of an epoch is
made from (seed, purpose, epoch).
"""

from __future__ import annotations

import hashlib
import json

import numpy as np
import torch


def generator_for(seed: int, purpose: str, *position: int) -> torch.Generator:
    """A CPU generator for one purpose at one position, for instance an epoch or a step."""
    return torch.Generator().manual_seed(_number(seed, purpose, position))


def numpy_generator_for(seed: int, purpose: str, *position: int) -> np.random.Generator:
    """The same of numpy, which has more distributions."""
    return np.random.default_rng(_number(seed, purpose, position) % 2**64)


def _number(seed: int, purpose: str, position: tuple[int, ...]) -> int:
    text = json.dumps([seed, purpose, *position])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little", signed=True)
