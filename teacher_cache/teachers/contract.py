"""What a teacher is to this project: a card, and answers to views.

`Teacher.call` is the one place where a forward on data happens, so the one place where calls are made.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
from torch import Tensor

from ground.geometry import Rendering
from storage.answers import AnswerForm
from storage.identity import TeacherIdentity

# Output name -> (C, ...), one row a call, on whatever device the teacher runs.
Answers = Mapping[str, Tensor]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Card:
    """All of what is known of a teacher before its first call.

    Args:
        identity: what stores and ledgers know it by.
        rendering: how it is shown images.
        outputs: everything it can say of a view, answers over the classes first where it has any, then its layers in
            order -> shape.
        parameters: of the teacher itself, as float32: head/weight (K, D) and head/bias (K,) where its logits come out
            of a linear layer; norm/LAYER/scale and norm/LAYER/shift (C,) of batch norms that make pre-activations.
        device: where it runs, for the record.
        answer: the form of its answers over the classes, whose outputs are among its own where it gives any.
        strength: what its fingerprint is worth: `content`, weights were hashed; `declared`, the server was asked.
    """

    identity: TeacherIdentity
    rendering: Rendering
    outputs: Mapping[str, tuple[int, ...]]
    parameters: Mapping[str, np.ndarray] = field(repr=False)
    device: str
    answer: AnswerForm = field(default_factory=AnswerForm)
    strength: Literal["content", "declared"] = "content"


class Teacher(Protocol):
    """Answers for views."""

    @property
    def card(self) -> Card:
        """Known before the first call."""

    def call(self, views: Tensor, outputs: Sequence[str]) -> Answers:
        """One teacher call per view, each made once.

        Args:
            views: (C, 3, h, w) uint8: squares, cut as the card's rendering says; or boxes, at the size it says.
            outputs: names of what will be kept, of the card's.
        """

    def seconds_per_call(self, outputs: Sequence[str], batch_size: int) -> float:
        """An estimate, made without a call."""

    def close(self) -> None:
        """Give back what it holds; it is not called any more."""
