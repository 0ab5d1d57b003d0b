"""What a build still has to do, divided with other builders that share the ledger.

The unit is an input: several cells may wait for the same one, and it is asked for once.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence, Set

from storage.ledger import Ledger
from storage.ledger_records import CallRequest, RecordedCall
from storage.store import Store
from teacher_cache.plan import BuildPlan


class WorkList:
    """Inputs that cells of a store wait for.

    Attributes:
        cells_of: input -> its cells that are not whole; empty once they are.
        paid: committed calls on these inputs, as far as they are known.
        todo: inputs to be answered next, in this order.
        held: inputs that have to wait until the first answers are judged.
        waiting: inputs that other builders have in hand.
        published: calls of other builders whose cells were whole already, and which were not committed yet.
    """

    def __init__(self, plan: BuildPlan, store: Store, ledger: Ledger) -> None:
        self._plan, self._store, self._ledger = plan, store, ledger
        self.cells_of: dict[bytes, list[int]] = {}
        for cell in store.missing_cells(plan.rows).tolist():
            self.cells_of.setdefault(plan.input_of(cell), []).append(cell)
        # After the cells: who publishes in between is waited for as for any missing cell.
        self.published = [
            call
            for call in ledger.calls_of_store(store.manifest.store_id, "reserved")
            if call.input_digest not in self.cells_of and call.row < plan.rows.end
        ]
        self._until: dict[int, float] = {}
        self.paid: dict[bytes, list[RecordedCall]] = {}
        self.waiting: list[bytes] = []
        self.todo = list(self.cells_of)
        self.held: list[bytes] = []
        self.num_unpaid = sum(not plan.answered_by(calls) for calls in self._look_up(self.todo).values())

    def __bool__(self) -> bool:
        return bool(self.todo or self.held or self.waiting or self.published)

    def hold(self, first: Set[bytes]) -> None:
        """Hold all inputs but the first ones, if a call has to be made for any of them."""
        rest = [digest for digest in self.todo if digest not in first]
        if not all(self.is_answered(digest) for digest in rest):
            self.todo, self.held = [digest for digest in self.todo if digest in first], rest

    @property
    def waits_for_verdict(self) -> bool:
        """Whether the first inputs are all answered, and others held."""
        return bool(self.held) and not self.todo and not self.waiting

    def release(self) -> int:
        """Go on with what was held; returns how many cells others made whole meanwhile."""
        self._look_up(self.held)
        finished = self._drop_whole(self.held)
        self.todo, self.held = [digest for digest in self.held if self.cells_of[digest]], []
        return finished

    def next_batch(self, most: int | None = None) -> list[bytes]:
        """Inputs from the front of `todo`: as many as a batch has, or at most so many."""
        size = self._plan.config.batch_size if most is None else most
        batch, self.todo = self.todo[:size], self.todo[size:]
        return batch

    def put_back(self, inputs: Sequence[bytes]) -> None:
        """Have inputs that were taken out asked for next."""
        self.todo = [*inputs, *self.todo]

    def is_answered(self, digest: bytes) -> bool:
        """Whether no call has to be made for an input."""
        return self._plan.answered_by(self.paid.get(digest, ()))

    def request(self, digest: bytes) -> CallRequest:
        """How to ask for an input; the answer belongs to the first of its cells."""
        row, view = divmod(self.cells_of[digest][0], self._plan.identity.views)
        return CallRequest(digest, int(self._plan.source_index[row]), row, view)

    def give_up(self, known: Mapping[bytes, Sequence[RecordedCall]]) -> int:
        """Leave inputs to the builders that were faster: wait for them, or copy what they have committed.

        Returns:
            How many cells they made whole.
        """
        if not known:
            return 0
        # Who was faster here is ahead of us elsewhere too: look at all that is left, and go on at another place.
        left = [*known, *self.todo]
        found = self._look_up(left)
        reserved = {digest for digest, calls in found.items() if any(call.status == "reserved" for call in calls)}
        finished = self._drop_whole([digest for digest in left if self.is_answered(digest)])
        self.waiting += [digest for digest in left if digest in reserved]
        left = [digest for digest in left if digest not in reserved and self.cells_of[digest]]
        size = self._plan.config.batch_size
        start = random.randrange(len(left)) // size * size if left else 0
        self.todo = left[start:] + left[:start]
        return finished

    def take_back(self) -> tuple[set[int], int]:
        """Go on with inputs that others had in hand and that are answered, or given up, by now.

        Returns:
            If there are none, the sessions that have them in hand; and how many cells others made whole.
        """
        found = self._look_up(self.waiting)
        reserved = {digest: call for digest, calls in found.items() for call in calls if call.status == "reserved"}
        ready = [digest for digest in self.waiting if digest not in reserved]
        if not ready:
            return {call.session for call in reserved.values()}, 0
        self.waiting = list(reserved)
        finished = self._drop_whole(ready)
        self.todo += [digest for digest in ready if self.cells_of[digest]]
        return set(), finished

    def drop_settled(self, alive: Set[int], now: float) -> None:
        """Wait no longer for published calls that are settled.

        Nor for those that nobody could settle for another lease after their session had none: somebody who was
        stopped still holds their cells, and commits them when he goes on.

        Args:
            alive: sessions with a lease.
            now: seconds, of a monotonic clock.
        """
        if not self.published:
            return
        reserved = {call.id for call in self._ledger.calls_of_store(self._store.manifest.store_id, "reserved")}
        until = now + self._plan.config.lease_seconds
        left = [call for call in self.published if call.id in reserved]
        self._until = {call.id: until if call.session in alive else self._until.get(call.id, until) for call in left}
        self.published = [call for call in left if self._until[call.id] > now]

    def _look_up(self, inputs: Sequence[bytes]) -> dict[bytes, list[RecordedCall]]:
        """What the ledger knows of inputs now; remembers what is committed."""
        teacher = self._plan.identity.teacher
        known = self._ledger.known_calls(teacher.fingerprint, teacher.precision, inputs)
        found = {digest: known.get(digest, []) for digest in inputs}
        for digest, calls in found.items():
            self.paid[digest] = [call for call in calls if call.status == "committed"]
        return found

    def _drop_whole(self, inputs: Sequence[bytes]) -> int:
        """Leave out cells that another builder of this store made whole meanwhile; returns how many."""
        dropped = 0
        for digest in inputs:
            before = self.cells_of[digest]
            self.cells_of[digest] = [cell for cell in before if not self._store.is_whole(cell)]
            dropped += len(before) - len(self.cells_of[digest])
        return dropped
