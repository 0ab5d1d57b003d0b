"""The buffer of a stream: what is asked for is there, no more than there is room for, and no thread is left behind."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ground.errors import StoreUnreadable
from student_train.block_stream import AHEAD, BlockStream, StreamedArray
from student_train.stream_order import BlockOrder, Visits
from tests.student_train.test_read_ahead import reading_threads

SIZES, WINDOW = [4] * 9 + [3], 3
ROWS = torch.arange(sum(SIZES))


def values_of(rows: torch.Tensor) -> torch.Tensor:
    """(B, V = 2, 3), by which a row is known."""
    return rows[:, None, None] * 100.0 + torch.arange(6.0).view(2, 3)


@dataclass
class Rows:
    """A store that tells what is read of it."""

    blocks: list[int] = field(default_factory=list)
    single: list[int] = field(default_factory=list)
    damaged: int | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)

    def empty(self, rows: int) -> dict[str, np.ndarray]:
        return {"a": np.full((rows, 2, 3), np.nan)}

    def block(self, number: int) -> dict[str, np.ndarray]:
        with self.lock:
            self.blocks.append(number)
        if number == self.damaged:
            raise StoreUnreadable("a block is damaged")
        return {"a": values_of(ROWS[ORDER.block_of == number]).numpy()}

    def rows(self, name: str, rows: torch.Tensor) -> torch.Tensor:
        self.single += rows.tolist()
        return values_of(rows)


ORDER = BlockOrder(torch.arange(len(SIZES)).repeat_interleave(torch.tensor(SIZES)), WINDOW)


def stream_of(rows: Rows) -> BlockStream:
    return BlockStream(rows, ORDER, max(SIZES))


def rows_of(visits: Visits) -> torch.Tensor:
    return ORDER.rows_in(visits)


# (how far to go on, or back; how many visits to hold)
MOVES = st.lists(st.tuples(st.integers(-2, 6), st.integers(1, 9)), min_size=1, max_size=8)


@given(moves=MOVES, seed=st.integers(0, 2))
def test_what_is_held_is_in_memory_wherever_the_stream_was_before(moves, seed):
    store, first = Rows(), 0
    stream = stream_of(store)
    array = StreamedArray(stream, "a")
    try:
        for far, count in moves:
            first = max(0, first + far)
            visits = Visits(seed, first, first + count)
            stream.hold(visits)
            rows = rows_of(visits).flip(0)
            assert torch.equal(array[rows], values_of(rows).double())
            which = rows % 2
            assert torch.equal(array[rows, which], values_of(rows).double()[torch.arange(len(rows)), which])
            assert stream.num_slots <= max(WINDOW, *(held for _, held in moves)) + AHEAD
    finally:
        stream.close()
    assert not store.single
    assert not reading_threads()


def test_going_on_reads_every_block_once_an_epoch_and_a_few_ahead():
    store = Rows()
    stream = stream_of(store)
    for first in range(2 * len(SIZES) - WINDOW):
        stream.hold(Visits(0, first, first + WINDOW))
        assert stream.num_read == first + WINDOW + AHEAD == first + stream.num_slots
    stream.close()
    visits = [ORDER.block(0, visit) for visit in range(stream.num_read)]
    # Threads begin in order, and may be noted in another.
    assert len(store.blocks) <= len(visits)
    assert sorted(store.blocks) == sorted(visits[: len(store.blocks)])


def test_what_is_not_held_comes_from_the_disk():
    store = Rows()
    stream = stream_of(store)
    stream.hold(Visits(0, 0, 2))
    rows = ROWS[ORDER.block_of == ORDER.block(0, len(SIZES) - 1)]
    assert torch.equal(stream.rows("a", rows), values_of(rows))
    assert store.single == rows.tolist()
    stream.close()
    # Also where nothing is held, before the first step.
    assert torch.equal(stream.rows("a", ROWS, ROWS % 2), values_of(ROWS)[ROWS, ROWS % 2])


def test_a_damaged_block_is_reported_when_it_is_needed_and_ends_all_threads():
    store = Rows(damaged=ORDER.block(0, 5))
    stream = stream_of(store)
    for first in range(3):
        stream.hold(Visits(0, first, first + WINDOW))
    with pytest.raises(StoreUnreadable, match="a block is damaged"):
        stream.hold(Visits(0, 3, 3 + WINDOW))
    assert not reading_threads()
    # It may be mended.
    store.damaged = None
    stream.hold(Visits(0, 3, 3 + WINDOW))
    assert not torch.isnan(stream.rows("a", rows_of(Visits(0, 3, 3 + WINDOW)))).any()
    stream.close()
    assert not reading_threads()
