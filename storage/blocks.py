"""Sample arrays a few rows at a time: where their rows come from, and the digests that the rows are checked by.

Each block of rows (`ArraySpec.block_rows`) has a digest of its own, and a manifest holds all of them: who reads rows
hashes the blocks that they are in, and an array that grows keeps the digests of its whole blocks.
"""

from __future__ import annotations

import hashlib
from typing import Protocol

import numpy as np

# Of SHA-256, in hex.
DIGEST_DIGITS = 64


class RowSource(Protocol):
    """The rows of one array, handed out a few at a time; an array in memory is one."""

    def __len__(self) -> int:
        """How many rows there are."""

    def __getitem__(self, rows: slice, /) -> np.ndarray:
        """Neighbouring rows, in order."""


class BlockHasher:
    """SHA-256 of each block of an array whose rows pass by in order, in pieces of any size.

    Args:
        block_bytes: of a whole block.
    """

    def __init__(self, block_bytes: int) -> None:
        self._block_bytes = block_bytes
        self._done: list[str] = []
        self._hasher, self._filled = hashlib.sha256(), 0

    def update(self, values: np.ndarray) -> None:
        """The next rows; in the array's own type."""
        content = np.ascontiguousarray(values).reshape(-1).view(np.uint8).data
        while content:
            piece = content[: self._block_bytes - self._filled]
            self._hasher.update(piece)
            self._filled += len(piece)
            content = content[len(piece) :]
            if self._filled == self._block_bytes:
                self._done.append(self._hasher.hexdigest())
                self._hasher, self._filled = hashlib.sha256(), 0

    def hexdigests(self) -> str:
        """Of every block so far, the last of which may be a part of one, one after the other."""
        return "".join([*self._done, *([self._hasher.hexdigest()] if self._filled else [])])
