"""Answers between the teacher and the ledger's commit: whatever comes in between, they are kept.

A batch is in hand from the moment the teacher has answered until its calls are committed. A builder that has to leave
with batches in hand, for a full disk, a ledger that is gone, a second Ctrl-C or a bug, writes them to a spool beside
the store, whose room was taken before the first call. Whoever settles its session commits them.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from storage.bill import Bill
from storage.schema import OutputSpec
from storage.spool import Group, Spool
from storage.store import Store
from teacher_cache.outputs import as_said
from teacher_cache.teachers import Answers

log = logging.getLogger(__name__)

# One that is being written, and one that the teacher answered meanwhile.
MOST_BATCHES = 2


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Answers of calls that are charged and not committed.

    Args:
        ids: input -> call, in the order of the answers.
        cells: where each belongs; row * V + view.
        copied: of each input, the outputs that were paid for before: name -> (1, ...).
        said: what was called, as the teacher said it; nothing once it is in `values`: name -> (C, ...).
        refused: inputs whose answers are refusals: paid for, and without content.
        bills: of these calls, where they have any.
    """

    ids: Mapping[bytes, int]
    cells: Sequence[int]
    copied: Sequence[Mapping[str, np.ndarray]]
    said: Answers = field(default_factory=dict)
    values: Mapping[str, np.ndarray] = field(default_factory=dict)
    refused: frozenset[bytes] = frozenset()
    bills: Mapping[int, Bill] = field(default_factory=dict)

    def part(self, rows: np.ndarray, values: Mapping[str, np.ndarray]) -> Batch:
        """Some of the answers, (C,) bool, with the values of what was called."""
        places = np.flatnonzero(rows).tolist()
        inputs = list(self.ids)
        ids = {inputs[place]: self.ids[inputs[place]] for place in places}
        return Batch(
            ids,
            [self.cells[place] for place in places],
            [self.copied[place] for place in places],
            values=values,
            refused=self.refused,
            bills={id_: self.bills[id_] for id_ in ids.values() if id_ in self.bills},
        )

    def spooled(self, outputs: Sequence[OutputSpec]) -> Group:
        """All that the store keeps of these calls, in the type that it is there in."""
        values = {output.name: self._values(output) for output in outputs}
        refused = [call for digest, call in self.ids.items() if digest in self.refused]
        return Group(list(self.ids.values()), self.cells, list(self.ids), values, refused, self.bills)

    def _values(self, output: OutputSpec) -> np.ndarray:
        if output.name in self.values:
            return self.values[output.name]
        if output.name in self.said:
            return as_said(self.said, (output,))[output.name]
        return np.concatenate([values[output.name] for values in self.copied])


def joined(batches: Sequence[Batch]) -> Batch:
    """Several batches as one; of each, what was called is in `values`."""
    return Batch(
        {digest: id_ for batch in batches for digest, id_ in batch.ids.items()},
        [cell for batch in batches for cell in batch.cells],
        [values for batch in batches for values in batch.copied],
        values={name: np.concatenate([batch.values[name] for batch in batches]) for name in batches[0].values},
        refused=frozenset().union(*(batch.refused for batch in batches)),
        bills={id_: bill for batch in batches for id_, bill in batch.bills.items()},
    )


class AnswersInHand:
    """The batches that one session of a builder has in hand.

    Args:
        store: whose answers they are.
        batch_size: calls of the largest batch.
    """

    def __init__(self, store: Store, batch_size: int) -> None:
        self._store, self._batch_size = store, batch_size
        self._spool: Spool | None = None
        # Another thread lays down what it has committed: adding and discarding are one step each.
        self._batches: set[Batch] = set()

    @property
    def num_calls(self) -> int:
        """Calls whose answers are in hand."""
        return sum(len(batch.ids) for batch in list(self._batches))

    def take_room(self, session: int) -> None:
        """Take room on the disk for all that a session can have in hand; raises `DiskFull` where there is none."""
        if self._spool is None:
            calls = MOST_BATCHES * self._batch_size
            self._spool = Spool(self._store.desk, self._store.manifest.store_id, session, self._store.outputs, calls)

    def take(self, batch: Batch) -> None:
        """The teacher has answered."""
        self._batches.add(batch)

    def lay_down(self, batch: Batch) -> None:
        """The calls are committed, or another batch holds their answers."""
        self._batches.discard(batch)

    def keep(self) -> None:
        """Spool all that is in hand, and say so; what cannot be kept is said too, and its calls count as lost."""
        batches = [batch for batch in list(self._batches) if batch.ids]
        count = sum(len(batch.ids) for batch in batches)
        if not count or self._spool is None:
            return
        try:
            self._spool.write([batch.spooled(self._store.outputs) for batch in batches])
        except Exception as error:  # whatever it is, what led here is what the user has to know of
            log.error("%d answers that are paid for could not be kept, and their calls are lost: %s", count, error)
        else:
            log.warning("%d answers in hand are kept in %s for the next build", count, self._spool.path)

    def close(self) -> None:
        """Give the room back, unless something is still in hand."""
        if self._spool is not None and not any(batch.ids for batch in self._batches):
            self._spool.remove()
