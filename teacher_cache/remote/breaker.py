"""A circuit breaker: a teacher that fails again and again is left alone for a while, then asked once, then given up."""

from __future__ import annotations

import time
from collections.abc import Callable

from teacher_cache.remote.policy import BreakerPolicy


class Breaker:
    """Whether requests may be sent; used from one thread.

    Each request belongs to the *epoch* in which it was sent: what was under way when the circuit opened says nothing
    about how it is afterwards, unless it is an answer.
    """

    def __init__(self, policy: BreakerPolicy, clock: Callable[[], float] = time.monotonic) -> None:
        self._policy, self._clock = policy, clock
        self._failures = self._probes = 0
        self._open_until: float | None = None
        self._is_probing = False
        self.epoch = 0
        self.is_broken = False

    def wait(self) -> float:
        """Seconds until it is worth asking again whether a request may be sent; 0 lets one through.

        While the circuit is half open, that is one request alone.
        """
        if self._open_until is None:
            return 0.0
        left = self._open_until - self._clock()
        if left > 0:
            return left
        if self._is_probing:
            return self._policy.pause_seconds
        self._is_probing = True
        return 0.0

    def answered(self) -> None:
        """The teacher is there: the circuit is closed."""
        self._failures = self._probes = 0
        self._open_until, self._is_probing = None, False

    def failed(self, epoch: int) -> None:
        """A request that was sent in an epoch gave no answer."""
        if epoch != self.epoch:
            return
        self._failures += 1
        if self._is_probing:
            self._probes += 1
            self.is_broken = self._probes >= self._policy.probes
        elif self._failures < self._policy.failures:
            return
        self.epoch += 1
        self._open_until, self._is_probing = self._clock() + self._policy.pause_seconds, False
