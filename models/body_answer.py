"""What a network without a head answers with, and the vector in it that stands for the image.

Transformers' models answer with a record that has `pooler_output` or `last_hidden_state`, others with a vector, tokens
or a map. The vector is what the network itself pools, else the class token, else the mean over positions.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isqrt
from typing import Any

from torch import Tensor

_MOST_PREFIX = 8
_POOLER, _TOKENS = "pooler_output", "last_hidden_state"


@dataclass(frozen=True, slots=True)
class Answer:
    """Where the vector is.

    Args:
        attribute: of the answer that holds it; None for the answer itself, or the first of a tuple.
        prefix: tokens before those of the image; the first of them is the class token.
        is_channels_last: a map is (B, h, w, C).
    """

    attribute: str | None
    prefix: int = 0
    is_channels_last: bool = False

    @classmethod
    def of(cls, answer: Any, prefix: int | None = None) -> Answer | None:
        """How an answer to square images is read; None where no vector is well defined.

        Args:
            prefix: as the network says; None finds it, if the other tokens are a square.
        """
        attribute = next((name for name in (_POOLER, _TOKENS) if isinstance(getattr(answer, name, None), Tensor)), None)
        said = _held(answer, attribute)
        if said is None:
            return None
        if said.ndim == 3:
            square = square_of(said.shape[1], prefix)
            return None if square is None else cls(attribute, prefix=square[0])
        if said.ndim == 4 and said.shape[2] == said.shape[3]:
            return cls(attribute)
        if said.ndim == 4 and said.shape[1] == said.shape[2]:
            return cls(attribute, is_channels_last=True)
        return cls(attribute) if said.ndim == 2 else None

    def vector_in(self, answer: Any) -> Tensor:
        """(B, D)."""
        said = _held(answer, self.attribute)
        assert said is not None, "an answer of another kind than the one that was looked through"
        if said.ndim == 4:
            return said.mean(dim=(1, 2) if self.is_channels_last else (2, 3))
        if said.ndim == 3:
            return said[:, 0] if self.prefix else said.mean(dim=1)
        return said


def square_of(tokens: int, prefix: int | None) -> tuple[int, int] | None:
    """(prefix, side) of so many tokens; None where they are no square.

    Args:
        prefix: as the network says; None tries a few.
    """
    for before in range(_MOST_PREFIX) if prefix is None else (prefix, 0):
        side = isqrt(max(0, tokens - before))
        if side > 1 and side * side == tokens - before:
            return before, side
    return None


def _held(answer: Any, attribute: str | None) -> Tensor | None:
    first = answer[0] if attribute is None and isinstance(answer, (tuple, list)) and answer else answer
    found = first if attribute is None else getattr(answer, attribute)
    return found if isinstance(found, Tensor) and found.is_floating_point() else None
