"""Requests and tokens a minute, and holding back where a server says that it is too many.

Requests are spaced, and not let go in a bunch at the beginning of a minute: so no minute, wherever it begins, holds
more than the limit and one request.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from teacher_cache.remote.policy import AskingConfig, RetryPolicy
from teacher_cache.teachers.attempts import RemoteTeacher


class Pace:
    """Something of which there is only so much a minute: a token bucket that starts empty and may go into debt."""

    def __init__(self, per_minute: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds_each, self._clock = 60.0 / per_minute, clock
        self._free_at = clock()

    def take(self, amount: float) -> float:
        """Use an amount; returns the seconds to wait before it is used."""
        now = self._clock()
        starts = max(now, self._free_at)
        self._free_at = starts + amount * self._seconds_each
        return starts - now

    def give_back(self, amount: float) -> None:
        """Less of it was used than was taken; negative for more."""
        self._free_at -= amount * self._seconds_each


class Limits:
    """What one builder holds itself to.

    Args:
        max_rpm, max_tpm: requests and tokens a minute; None for no limit.
    """

    def __init__(self, max_rpm: int | None, max_tpm: int | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._requests = None if max_rpm is None else Pace(max_rpm, clock)
        self._tokens, self._max_tpm = None if max_tpm is None else Pace(max_tpm, clock), max_tpm or 0

    def take(self, tokens: int) -> float:
        """One more request, of at most so many tokens; returns the seconds to wait before it is sent."""
        waits = [0.0]
        if self._requests is not None:
            waits.append(self._requests.take(1))
        if self._tokens is not None and tokens:
            waits.append(self._tokens.take(tokens))
        return max(waits)

    def used(self, most: int, tokens: int) -> None:
        """A request that was taken for at most so many tokens used fewer; or more, by what its server counts.

        That is no more than a minute's, whatever is said: or one answer could stop a build for years.
        """
        if self._tokens is not None:
            self._tokens.give_back(max(most - tokens, -self._max_tpm))


def seconds_under_limits(calls: int, teacher: RemoteTeacher, asking: AskingConfig) -> float | None:
    """How long so many calls take at least, each of as many tokens as it can have; None without a limit."""
    tokens = calls * (teacher.max_tokens_in + teacher.max_tokens_out)
    rates = ((-(-calls // teacher.max_batch), asking.max_rpm), (tokens, asking.max_tpm))
    return max((60.0 * amount / limit for amount, limit in rates if limit is not None), default=None)


class Hold:
    """Holds all requests back after the server put one off.

    Several that were under way together are one reason to wait, and not several.
    """

    def __init__(self, policy: RetryPolicy, clock: Callable[[], float] = time.monotonic) -> None:
        self._policy, self._clock = policy, clock
        self._until = self._since = clock()
        self.in_a_row = 0

    def wait(self) -> float:
        """Seconds for which nothing is sent."""
        return max(0.0, self._until - self._clock())

    def put_off(self, sent_at: float, retry_after: float | None) -> None:
        """A request that was sent then was put off, for so long if the server says for how long."""
        now = self._clock()
        if sent_at >= self._since:
            self._since, self.in_a_row = now, self.in_a_row + 1
            self._until = max(self._until, now + self._policy.delay(self.in_a_row))
        if retry_after is not None:
            self.leave_alone(retry_after)

    def leave_alone(self, seconds: float) -> None:
        """Send nothing for so long, as the server asks, whatever its reason."""
        self._until = max(self._until, self._clock() + seconds)

    def answered(self) -> None:
        """The server takes requests again."""
        self.in_a_row = 0
