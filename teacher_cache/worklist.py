"""What a build still has to do, divided with other builders that share the ledger.

The unit is an input: several cells may wait for the same one, and it is asked for once.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from storage.ledger import CallRequest, Ledger, RecordedCall
from storage.store import Store
from teacher_cache.plan import BuildPlan


class WorkList:
    """Inputs that cells of a store wait for.

    Attributes:
        cells_of: input -> its cells that are not whole; empty once they are.
        todo: inputs to be reserved next, in this order.
        waiting: inputs that other builders have in hand.
    """

    def __init__(self, plan: BuildPlan, store: Store, ledger: Ledger) -> None:
        self._plan, self._store, self._ledger = plan, store, ledger
        self.cells_of: dict[bytes, list[int]] = {}
        for cell in self.missing_cells():
            self.cells_of.setdefault(plan.input_of(cell), []).append(cell)
        self.todo = list(self.cells_of)
        self.waiting: list[bytes] = []

    def __bool__(self) -> bool:
        return bool(self.todo or self.waiting)

    def missing_cells(self) -> list[int]:
        """Cells of this build that are not whole; those beyond n are another build's concern."""
        return [int(cell) for cell in self._store.missing_cells(self._plan.n)]

    def next_requests(self) -> list[CallRequest]:
        """A batch from the front of `todo`; a call's answer belongs to the first of the input's cells."""
        size = self._plan.config.batch_size
        batch, self.todo = self.todo[:size], self.todo[size:]
        places = [(digest, *divmod(self.cells_of[digest][0], self._plan.identity.views)) for digest in batch]
        return [CallRequest(digest, int(self._plan.source_index[row]), row, view) for digest, row, view in places]

    def sort_known(self, known: Mapping[bytes, Sequence[RecordedCall]]) -> tuple[dict[bytes, list[RecordedCall]], int]:
        """Inputs that were asked for and are somebody's already: what others have in hand is left to them.

        Returns:
            Committed calls on inputs that cells still wait for, to be copied; and how many cells others made whole.
        """
        reserved = {digest for digest, calls in known.items() if any(call.status == "reserved" for call in calls)}
        committed = {digest: list(calls) for digest, calls in known.items() if digest not in reserved}
        finished = self._drop_whole(committed)
        if reserved:
            self.waiting += reserved
            finished += self._leave_to_others()
        return {digest: calls for digest, calls in committed.items() if self.cells_of[digest]}, finished

    def take_back(self) -> tuple[set[int], int]:
        """Go on with inputs that others had in hand and that are answered, or given up, by now.

        Returns:
            If there are none, the sessions that have them in hand; and how many cells others made whole.
        """
        known = self._known(self.waiting)
        reserved = {digest: call for digest, calls in known.items() for call in calls if call.status == "reserved"}
        ready = [digest for digest in self.waiting if digest not in reserved]
        if not ready:
            return {call.session for call in reserved.values()}, 0
        self.waiting = list(reserved)
        finished = self._drop_whole([digest for digest in ready if digest in known])
        self.todo += [digest for digest in ready if self.cells_of[digest]]
        return set(), finished

    def _leave_to_others(self) -> int:
        """Take out of `todo` what others have or had in hand, and go on at a place where they are not."""
        known = self._known(self.todo)
        reserved = {digest for digest, calls in known.items() if any(call.status == "reserved" for call in calls)}
        answered = [digest for digest in known if digest not in reserved and self._plan.answered_by(known[digest])]
        finished = self._drop_whole(answered)
        self.waiting += [digest for digest in self.todo if digest in reserved]
        left = [digest for digest in self.todo if digest not in reserved and self.cells_of[digest]]
        start = (
            random.randrange(len(left)) // self._plan.config.batch_size * self._plan.config.batch_size if left else 0
        )
        self.todo = left[start:] + left[:start]
        return finished

    def _drop_whole(self, inputs: Sequence[bytes] | Mapping[bytes, object]) -> int:
        """Leave out cells that another builder of this store made whole meanwhile; returns how many."""
        if not inputs:
            return 0
        missing, dropped = set(self.missing_cells()), 0
        for digest in inputs:
            before = self.cells_of[digest]
            self.cells_of[digest] = [cell for cell in before if cell in missing]
            dropped += len(before) - len(self.cells_of[digest])
        return dropped

    def _known(self, inputs: Sequence[bytes]) -> dict[bytes, list[RecordedCall]]:
        return self._ledger.known_calls(self._plan.identity.teacher.fingerprint, inputs)
