"""Who is alive among builders that share a ledger, without comparing clocks.

A builder's heartbeat adds one to a number in the ledger. Another builder that sees the number stand still for a whole
lease, by its own monotonic clock, may take the lease away. A clock that jumps, here or there, changes nothing.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from types import TracebackType

from ground.errors import CKDError
from storage.ledger import Ledger
from storage.ledger_records import Lease

log = logging.getLogger(__name__)

_BEATS_PER_LEASE = 4


class Heartbeat:
    """Keeps a session's lease alive, in a thread, until the `with` block ends; then gives it back.

    `landed` is when the newest beat was recorded, by `time.monotonic`; `lost`, that the lease was taken away. Where
    `leaves` is set, the lease is left standing, as by a builder that is killed: what the session left is gone on with.
    """

    def __init__(self, ledger: Ledger, session: int, lease_seconds: float) -> None:
        self._ledger, self._session = ledger, session
        self._seconds = lease_seconds / _BEATS_PER_LEASE
        self._stop = threading.Event()
        self.landed = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self.lost = self.leaves = False

    def __enter__(self) -> Heartbeat:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()
        if self.leaves:
            return
        try:
            self._ledger.end_session(self._session)
        except CKDError as failure:
            # Others find the lease standing still, and the next build settles what this one left.
            if error is None:
                raise
            log.warning("%s", failure)

    def _run(self) -> None:
        while not self._stop.wait(self._seconds):
            try:
                if not self._ledger.beat(self._session):
                    self.lost = True
                    return
                self.landed = time.monotonic()
            except CKDError as failure:
                log.warning("%s; the lease may end", failure)


class Watch:
    """Finds leases that stand still."""

    def __init__(self, lease_seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds, self._clock = lease_seconds, clock
        self._seen: dict[int, tuple[int, float]] = {}
        self._looked = clock()

    def silent(self, leases: Mapping[int, Lease], landed: float) -> list[Lease]:
        """Those whose beat has not moved for as long as a lease lasts, while we watched without a break.

        Args:
            landed: when our own beat last got through, by the same clock.
        """
        now = self._clock()
        # While the ledger was away, or this machine slept, nobody could show that it lives. Nor while the database was
        # too busy to take beats: it makes writers wait for longer than a short lease, and ours waits like theirs.
        if now - self._looked >= self._seconds or now - landed >= self._seconds / 2:
            self._seen = {}
        self._looked = now
        self._seen = {
            session: self._seen[session] if self._seen.get(session, (-1, 0.0))[0] == lease.beat else (lease.beat, now)
            for session, lease in leases.items()
        }
        return [lease for session, lease in leases.items() if now - self._seen[session][1] >= self._seconds]
