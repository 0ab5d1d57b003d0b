"""What one attempt to call a teacher was billed; money is in whole micros, millionths of the price's currency."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Billed(StrEnum):
    """Whether the provider charges for an attempt; `UNKNOWN` counts as spent, at its upper bound."""

    YES = "yes"
    NO = "no"
    UNKNOWN = "unknown"


class FailureKind(StrEnum):
    """How an attempt failed.

    NOT_SENT: the request never left, so nobody can bill it.
    RATE_LIMITED: the provider's own 429, or its like.
    REJECTED: the provider did not take the request: 4xx, or 5xx before any work.
    REFUSED: the model answered that it will not answer; paid, and not to be asked again.
    UNKNOWN: sent, and then a time-out, a broken connection, or an answer that cannot be read.
    """

    NOT_SENT = "not_sent"
    RATE_LIMITED = "rate_limited"
    REJECTED = "rejected"
    REFUSED = "refused"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bill:
    """What became of one attempt.

    Args:
        billed: see `Billed`.
        cost_micros: what it cost; its upper bound where that is unknown, 0 where it is not billed.
        tokens_in, tokens_out: as the provider counts them, where it does.
        model: that answered, as the provider resolved it.
        request_id: the provider's, for who compares its bill.
        failure: None where it gave an answer.
    """

    billed: Billed
    cost_micros: int = 0
    tokens_in: int | None = None
    tokens_out: int | None = None
    model: str | None = None
    request_id: str | None = None
    failure: FailureKind | None = None
