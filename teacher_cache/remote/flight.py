"""Requests to a teacher that is elsewhere, many under way at once, by asyncio in a thread of its own.

Whoever uses it hands requests in and takes what has landed out, and never waits for one in particular. As soon as one
lands the next is sent, so while there are requests to send there are always as many under way as may be.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np

from storage.bill import Billed, FailureKind
from teacher_cache.remote.breaker import Breaker
from teacher_cache.remote.limits import Hold, Limits
from teacher_cache.remote.policy import AskingConfig
from teacher_cache.teachers.attempts import Answer, Failure, RemoteTeacher

log = logging.getLogger(__name__)

# A teacher keeps its own deadline; one that does not is cut off this much later.
GRACE_SECONDS = 5.0
# A longer wait that a server asks for is said.
_LONG_SECONDS = 60.0
NOT_SENT = Failure(kind=FailureKind.NOT_SENT, billed=Billed.NO, why="the build ended before it was sent")
_CUT_OFF = Failure(kind=FailureKind.UNKNOWN, billed=Billed.UNKNOWN, why="no answer came before the deadline")
_BUG = Failure(kind=FailureKind.UNKNOWN, billed=Billed.UNKNOWN, why="asking for it raised an error")


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """One request of one or several attempts, which are charged.

    Args:
        calls: of the ledger, one for each image.
        images: (C, 3, h, w) uint8.
    """

    calls: Sequence[int]
    images: np.ndarray = field(repr=False)


@dataclass(frozen=True, slots=True, eq=False)
class Landed:
    """What came of a request: one for each of its images, and the seconds it was under way."""

    request: Request
    said: Sequence[Answer | Failure]
    seconds: float


class Flight:
    """The requests that are waiting or under way.

    Enter it to start its thread; leaving it gives up what is still under way, and closes the teacher.

    Args:
        limits: see `Limits`; the default is what `config` says.
    """

    def __init__(self, teacher: RemoteTeacher, config: AskingConfig, limits: Limits | None = None) -> None:
        self._teacher, self._config = teacher, config
        self._limits = Limits(config.max_rpm, config.max_tpm) if limits is None else limits
        self._tokens_each = teacher.max_tokens_in + teacher.max_tokens_out
        self._breaker, self._hold = Breaker(config.breaker), Hold(config.retry)
        self._landed: deque[Landed] = deque()
        self._news = threading.Condition()
        self._is_started, self._is_stopped = threading.Event(), False
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), name="flight", daemon=True)
        self.error: Exception | None = None

    def __enter__(self) -> Flight:
        self._thread.start()
        self._is_started.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_stopped = True
        with suppress(RuntimeError):  # the thread may have ended by itself
            self._loop.call_soon_threadsafe(self._closing.set)
        self._thread.join()

    @property
    def why_broken(self) -> str | None:
        """Why nothing is sent any more; None while that is not so."""
        if self._breaker.is_broken:
            policy = self._config.breaker
            pause = f"{policy.pause_seconds:g} s, {policy.probes} times" if policy.probes > 1 else "a while"
            return f"it failed {policy.failures} times in a row, and again after it was left alone for {pause}"
        if self._hold.in_a_row >= self._config.retry.attempts:
            return f"it put requests off {self._hold.in_a_row} times in a row; ask less of it, with --max-rpm"
        return None

    def send(self, request: Request) -> None:
        """Have a request sent as soon as it may be."""
        self._loop.call_soon_threadsafe(self._enqueue, request)

    def stop(self) -> None:
        """Send nothing more: what waits lands as `NOT_SENT` at once, what is under way when it is answered."""
        self._loop.call_soon_threadsafe(self._stop)

    def landed(self, timeout: float) -> list[Landed]:
        """What has landed since it was last asked; waits so many seconds for the first."""
        with self._news:
            self._news.wait_for(lambda: self._landed, timeout)
            found = list(self._landed)
            self._landed.clear()
            return found

    async def _run(self) -> None:
        self._loop, self._closing = asyncio.get_running_loop(), asyncio.Event()
        self._waiting: asyncio.Queue[Request] = asyncio.Queue()
        self._turn, self._changed = asyncio.Lock(), asyncio.Event()
        workers = [asyncio.create_task(self._work()) for _ in range(self._config.in_flight)]
        self._is_started.set()
        try:
            await self._closing.wait()
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)
            await self._teacher.close()

    async def _work(self) -> None:
        while True:
            request = await self._waiting.get()
            if not await self._may_go(len(request.images) * self._tokens_each):
                self._turn_away(request)
                continue
            epoch, started = self._breaker.epoch, time.monotonic()
            said = await self._ask(request)
            self._learn(said, epoch, started)
            self._land(Landed(request, said, time.monotonic() - started))
            if self._is_stopped or self.why_broken is not None:
                self._stop()

    async def _may_go(self, tokens: int) -> bool:
        """Wait until a request may be sent; False once nothing is any more."""
        # One at a time: what waits its turn has not taken a place among the requests of this minute.
        async with self._turn:
            while not self._is_stopped and self.why_broken is None:
                wait = self._hold.wait() or self._breaker.wait()
                if not wait:
                    break
                await self._sleep(wait)
            ready = time.monotonic() + (0.0 if self._is_stopped else self._limits.take(tokens))
            while not self._is_stopped and self.why_broken is None:
                wait = max(ready - time.monotonic(), self._hold.wait())
                if wait <= 0:
                    return True
                await self._sleep(wait)
            return False

    async def _sleep(self, seconds: float) -> None:
        """Wait, or until something happened that may change for how long."""
        self._changed.clear()
        with suppress(TimeoutError):
            await asyncio.wait_for(self._changed.wait(), seconds)

    def _enqueue(self, request: Request) -> None:
        if self._is_stopped:
            self._turn_away(request)
        else:
            self._waiting.put_nowait(request)

    def _stop(self) -> None:
        """Send nothing more; not only when a worker is free, as all may be waiting for an answer."""
        self._is_stopped = True
        while not self._waiting.empty():
            self._turn_away(self._waiting.get_nowait())
        self._changed.set()

    def _turn_away(self, request: Request) -> None:
        self._land(Landed(request, [NOT_SENT] * len(request.images), 0.0))

    async def _ask(self, request: Request) -> Sequence[Answer | Failure]:
        deadline, count = self._config.deadline_seconds, len(request.images)
        try:
            said = await asyncio.wait_for(self._teacher.ask(request.images, deadline), deadline + GRACE_SECONDS)
            assert len(said) == count, f"{len(said)} outcomes for {count} images"
        except TimeoutError:
            return [_CUT_OFF] * count
        except Exception as error:  # a bug: it is shown, once what it may have cost is on the record
            self.error, self._is_stopped = error, True
            return [_BUG] * count
        return said

    def _learn(self, said: Sequence[Answer | Failure], epoch: int, sent_at: float) -> None:
        """What an outcome says of the server, and of the limits."""
        most = len(said) * self._tokens_each
        self._limits.used(most, sum(self._tokens_used(one) for one in said))
        if any(isinstance(one, Failure) and one.is_final for one in said):
            # Before more is spent, and not only when somebody has looked at it.
            self._is_stopped = True
        kinds = {FailureKind.REFUSED if isinstance(one, Answer) else one.kind for one in said}
        asked = [one.retry_after for one in said if isinstance(one, Failure) and one.retry_after is not None]
        self._say_long_wait(max(asked, default=0.0))
        if FailureKind.REFUSED in kinds:
            self._breaker.answered()
            self._hold.answered()
        elif FailureKind.RATE_LIMITED in kinds:
            # Who says so is there.
            self._breaker.answered()
            self._hold.put_off(sent_at, max(asked, default=None))
        else:
            self._breaker.failed(epoch)
            self._hold.leave_alone(max(asked, default=0.0))
        self._changed.set()

    def _say_long_wait(self, seconds: float) -> None:
        """Once of several requests that are put off together."""
        if seconds > _LONG_SECONDS and self._hold.wait() + _LONG_SECONDS < seconds and not self._is_stopped:
            name = self._teacher.card.identity.name
            log.warning("%s asks to be left alone for %.0f s, and is; stop with Ctrl-C to go on later", name, seconds)

    def _tokens_used(self, one: Answer | Failure) -> int:
        if isinstance(one, Failure) and one.billed is Billed.NO:
            return 0
        usage = one.usage
        tokens_in = self._teacher.max_tokens_in if usage.tokens_in is None else usage.tokens_in
        return tokens_in + (self._teacher.max_tokens_out if usage.tokens_out is None else usage.tokens_out)

    def _land(self, landed: Landed) -> None:
        with self._news:
            self._landed.append(landed)
            self._news.notify_all()
