"""What a builder waits for although its cells look whole: calls that were published and not committed."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from storage.rows import Rows
from teacher_cache.worklist import WorkList

LEASE = 10.0


class Ledger:
    """Calls by status; nothing else is asked for here."""

    def __init__(self, reserved) -> None:
        self.reserved = reserved

    def calls_of_store(self, store_id, status):
        assert (store_id, status) == ("s", "reserved")
        return list(self.reserved)

    def known_calls(self, teacher, precision, inputs):
        return {}


def call(number: int, row: int, session: int) -> SimpleNamespace:
    return SimpleNamespace(id=number, row=row, session=session, input_digest=bytes([row]))


def worklist(ledger, missing=()) -> WorkList:
    plan = SimpleNamespace(
        rows=Rows.first(8),
        identity=SimpleNamespace(views=1, teacher=SimpleNamespace(fingerprint="t", precision="fp32")),
        config=SimpleNamespace(batch_size=4, lease_seconds=LEASE),
        input_of=lambda cell: bytes([cell]),
        answered_by=bool,
    )
    store = SimpleNamespace(
        missing_cells=lambda rows: np.array(missing, dtype=np.int64), manifest=SimpleNamespace(store_id="s")
    )
    return WorkList(plan, store, ledger)


def ids(work: WorkList) -> list[int]:
    return [waiting.id for waiting in work.published]


def test_calls_on_cells_that_are_whole_are_waited_for_and_those_on_missing_ones_anyway():
    work = worklist(Ledger([call(1, 2, 7), call(2, 3, 7), call(3, 9, 7)]), missing=[3])
    assert ids(work) == [1]
    assert work


def test_what_is_settled_is_waited_for_no_longer():
    ledger = Ledger([call(1, 2, 7), call(2, 3, 8)])
    work = worklist(ledger)
    del ledger.reserved[0]
    work.drop_settled({7, 8}, now=0.0)
    assert ids(work) == [2]
    del ledger.reserved[0]
    work.drop_settled({7, 8}, now=1.0)
    assert not work


def test_a_living_builder_is_waited_for_and_a_dead_ones_calls_for_one_lease_more():
    work = worklist(Ledger([call(1, 2, 7)]))
    for now in (0.0, 100.0):
        work.drop_settled({7}, now)
        assert ids(work) == [1]
    work.drop_settled(set(), 105.0)
    assert ids(work) == [1], "somebody may be settling it"
    work.drop_settled(set(), 100.0 + LEASE)
    assert not work, "somebody who was stopped holds its cell"
