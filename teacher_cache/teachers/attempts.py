"""One attempt to ask a teacher that is elsewhere: what comes back of it, and what asks.

Whoever implements `RemoteTeacher` makes one attempt for each image, and never repeats it: retries, limits, deadlines
and what is owed are the builder's, by one policy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np

from storage.bill import Billed, FailureKind
from storage.price import Price
from teacher_cache.teachers.contract import Card


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What a provider says that an attempt used, where it says so."""

    tokens_in: int | None = None
    tokens_out: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Answer:
    """What a teacher said of one image.

    Args:
        values: output name -> (...), as the card's outputs say; empty where it refused, which is paid all the same.
        model: that answered, as the provider resolved it: a version, a `system_fingerprint`.
        request_id: the provider's.
        seconds: that it took.
    """

    values: Mapping[str, np.ndarray] = field(repr=False)
    usage: Usage = Usage()
    model: str | None = None
    request_id: str | None = None
    seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why an attempt gave no answer.

    Args:
        why: one clause, for people; it holds no key, no header and no text of the server's that could hold one.
        retry_after: seconds that the server asks for.
        is_final: whether asking again cannot help: an unknown model, a key that is refused.
    """

    kind: FailureKind
    billed: Billed
    why: str
    retry_after: float | None = None
    is_final: bool = False
    usage: Usage = Usage()
    model: str | None = None
    request_id: str | None = None
    seconds: float = 0.0


@runtime_checkable
class RemoteTeacher(Protocol):
    """A teacher behind a network."""

    @property
    def card(self) -> Card:
        """Known before the first call."""

    @property
    def max_batch(self) -> int:
        """Images that one request may hold; 1 where the protocol has no batches."""

    @property
    def max_tokens_in(self) -> int:
        """The most tokens that one image can cost on its way in, prompt included; 0 where nobody counts any."""

    @property
    def max_tokens_out(self) -> int:
        """The same on the way back: the limit that the request itself sets."""

    @property
    def price(self) -> Price | None:
        """Of one attempt, where its card says so; what the user says goes first. None: it costs nothing."""

    @property
    def tolerance(self) -> float:
        """How far two answers to the same image may differ, in any value, and still be of the same teacher; 0: not at
        all.
        """

    async def ask(self, images: np.ndarray, deadline: float) -> Sequence[Answer | Failure]:
        """One request, one attempt for each of its images.

        Args:
            images: (C, 3, h, w) uint8, C of at most `max_batch`; cut and resized as the card's rendering says, so h
                and w are `Card.rendering.size`.
            deadline: seconds from now after which it is given up, which leaves each attempt `UNKNOWN` unless nothing
                was sent.

        Returns:
            One for each image, in order. Failures are values: it raises nothing but cancellation, after which each
            attempt counts as `UNKNOWN`. Called many times at once, from one event loop, in a thread of its own.
        """

    async def close(self) -> None:
        """Give connections back; it is not asked any more."""
