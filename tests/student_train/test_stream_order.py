"""The order of a stream: every row once an epoch, from few blocks at a time, as a function of (seed, epoch)."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from student_train.stream_order import BlockOrder, Visits

SIZES = st.lists(st.integers(1, 9), min_size=1, max_size=12)
WINDOWS = st.integers(1, 14)


def order_of(sizes: list[int], window: int) -> BlockOrder:
    return BlockOrder(torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes)), window)


@given(sizes=SIZES, window=WINDOWS, seed=st.integers(0, 3), epoch=st.integers(0, 3))
def test_every_row_comes_once_an_epoch_from_a_window_of_blocks(sizes, window, seed, epoch):
    order = order_of(sizes, window)
    drawn = order.epoch(seed, epoch)
    assert sorted(drawn.rows.tolist()) == list(range(sum(sizes)))
    visits = [order.block(seed, epoch * len(sizes) + place) for place in range(len(sizes))]
    assert sorted(visits) == list(range(len(sizes)))
    visit_of = {block: epoch * len(sizes) + place for place, block in enumerate(visits)}
    for place, row in enumerate(drawn.rows.tolist()):
        first, last = int(drawn.first[place]), int(drawn.last[place])
        still = [visit_of[int(order.block_of[later])] for later in drawn.rows[place:].tolist()]
        assert first == min(still)
        assert first <= visit_of[int(order.block_of[row])] <= last
        # What came and what is still to come of blocks that were begun is within the window.
        assert last - first < window
    assert (drawn.first.diff() >= 0).all()
    assert (drawn.last.diff() >= 0).all()


@given(sizes=SIZES, window=WINDOWS, seed=st.integers(0, 3), epoch=st.integers(0, 3))
def test_the_order_is_a_function_of_seed_and_epoch(sizes, window, seed, epoch):
    one, other = order_of(sizes, window), order_of(sizes, window)
    for earlier in range(epoch):
        other.epoch(seed, earlier)
    assert torch.equal(one.epoch(seed, epoch).rows, other.epoch(seed, epoch).rows)


def test_epochs_and_seeds_differ():
    order = order_of([8] * 12, 4)
    first = order.epoch(0, 0).rows
    assert not torch.equal(first, order.epoch(0, 1).rows)
    assert not torch.equal(first, order.epoch(1, 0).rows)


def test_rows_of_a_batch_are_mixed_over_the_window():
    """Away from the ends of an epoch, a batch has rows of every block of the window."""
    order = order_of([64] * 40, 8)
    block_of = order.block_of[order.epoch(0, 0).rows]
    found = [len(block_of[first : first + 64].unique()) for first in range(12 * 64, 28 * 64, 64)]
    assert min(found) >= 6


@given(sizes=SIZES, window=WINDOWS, progress=st.integers(0, 60), of=st.integers(1, 20))
def test_a_window_is_so_many_blocks_and_moves_on_as_epochs_do(sizes, window, progress, of):
    order = order_of(sizes, window)
    visits, after = order.window_at(0, progress, of), order.window_at(0, progress + of, of)
    assert len(visits) == min(window, len(sizes))
    assert after.first - visits.first == len(sizes)
    rows = order.rows_in(visits)
    assert (rows.diff() > 0).all()
    blocks = {order.block(0, visit) for visit in range(visits.first, visits.stop)}
    assert set(order.block_of[rows].tolist()) == blocks
    assert len(rows) == sum(sizes[block] for block in blocks) >= order.least_rows


def test_visits_say_how_many_they_are():
    assert len(Visits(0, 3, 8)) == 5
