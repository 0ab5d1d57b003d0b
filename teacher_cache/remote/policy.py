"""How a teacher that is elsewhere is asked, and how often again where an attempt gave no answer."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from ground.errors import InvalidInput
from storage.price import Price

MOST_IN_FLIGHT = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How often an input is asked for again, and when.

    Delays grow by `factor` and are drawn at random from 0 up to what they have grown to ("full jitter"), so that
    builders which failed together do not come back together. What the server asks for is waited for at least.

    Args:
        attempts: most of one input in one build; those that the server put off by its rate limit do not count, but as
            many of these in a row, with no answer in between, are the last too.
        unknowns: how often one may be asked again that was perhaps, or certainly, billed: it can be billed twice.
        base_seconds, factor, cap_seconds: of the delay.
    """

    attempts: int = 6
    unknowns: int = 1
    base_seconds: float = 0.5
    factor: float = 2.0
    cap_seconds: float = 60.0

    def delay(self, failures: int, draw: Callable[[], float] = random.random) -> float:
        """Seconds to wait after so many failures, from 1 on.

        Args:
            draw: gives numbers from 0 to 1.
        """
        # The exponent is bounded, as a float is.
        grown = self.base_seconds * self.factor ** min(failures - 1, 64)
        return draw() * min(self.cap_seconds, grown)


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerPolicy:
    """When a teacher that does not answer is left alone.

    Args:
        failures: so many in a row, and nothing is sent for a while.
        pause_seconds: that while, after which one request is sent to see.
        probes: so many of these without an answer, and nothing is sent any more.
    """

    failures: int = 8
    pause_seconds: float = 30.0
    probes: int = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class AskingConfig:
    """How a teacher that is elsewhere is asked, by one builder.

    Args:
        in_flight: requests at once.
        deadline_seconds: of one request.
        max_rpm, max_tpm: most requests, and tokens, a minute; None for no limit.
        price: of an attempt, where the teacher itself does not say it; goes before what that says.
    """

    in_flight: int = 8
    deadline_seconds: float = 60.0
    max_rpm: int | None = None
    max_tpm: int | None = None
    price: Price | None = None
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    breaker: BreakerPolicy = field(default_factory=BreakerPolicy)

    def __post_init__(self) -> None:
        if not 1 <= self.in_flight <= MOST_IN_FLIGHT:
            raise InvalidInput(f"--in-flight must be 1 to {MOST_IN_FLIGHT}, got {self.in_flight}")
        if not 0 < self.deadline_seconds <= 86400:
            raise InvalidInput(f"--deadline must be above 0 and at most 86400 seconds, got {self.deadline_seconds}")
        for name, value in (("rpm", self.max_rpm), ("tpm", self.max_tpm)):
            if value is not None and value < 1:
                raise InvalidInput(f"--max-{name} must be at least 1, got {value}")
