"""Random numbers that depend on what they are for, not on what was drawn before.

A run that is resumed at epoch 7 draws what an uninterrupted run draws there, because the generator of an epoch is
made from (seed, purpose, epoch).
"""

from __future__ import annotations

import hashlib
import json

import torch


def generator_for(seed: int, purpose: str, *position: int) -> torch.Generator:
    """A CPU generator for one purpose at one position, for instance an epoch or a step."""
    text = json.dumps([seed, purpose, *position])
    number = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little", signed=True)
    return torch.Generator().manual_seed(number)
