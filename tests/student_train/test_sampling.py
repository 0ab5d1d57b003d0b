"""Batches depend on (seed, step) alone and cover what they should."""

from __future__ import annotations

from math import ceil

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ground.errors import InvalidInput
from student_train.sampling import AllViews, ClassSampling, EpochSampling, GroupSampling
from student_train.stream_order import BlockOrder


def labels_of(n: int, classes: int = 7) -> torch.Tensor:
    return torch.arange(n) % classes


@given(n=st.integers(2, 200), batch_size=st.integers(4, 70), seed=st.integers(0, 5), epoch=st.integers(0, 3))
def test_an_epoch_is_every_row_once(n, batch_size, seed, epoch):
    steps = ceil(n / batch_size)
    batches = [
        EpochSampling().batch(epoch * steps + place, labels=labels_of(n), batch_size=batch_size, seed=seed)
        for place in range(steps)
    ]
    rows = torch.cat([batch.rows for batch in batches])
    assert min(len(batch.rows) for batch in batches) >= 2
    assert sorted(rows.tolist()) == list(range(n))
    assert all(batch.passes == (slice(0, len(batch.rows)),) for batch in batches)
    assert max(len(batch.rows) for batch in batches) <= batch_size


def test_epochs_and_seeds_differ_and_history_does_not_matter():
    sampling, options = EpochSampling(), {"labels": labels_of(100), "batch_size": 100}
    late = sampling.batch(7, seed=0, **options).rows
    for step in range(7):
        assert not torch.equal(sampling.batch(step, seed=0, **options).rows, late)
    assert torch.equal(sampling.batch(7, seed=0, **options).rows, late)
    assert not torch.equal(sampling.batch(7, seed=1, **options).rows, late)


@given(n=st.integers(6, 50), positives=st.integers(1, 3), negatives=st.integers(1, 3), step=st.integers(0, 100))
def test_a_group_never_holds_a_row_twice(n, positives, negatives, step):
    sampling = GroupSampling(positives, negatives)
    batch = sampling.batch(step, labels=labels_of(n), batch_size=8, seed=0)
    cut = 8 * positives
    assert batch.passes == (slice(0, cut), slice(cut, 8 * (positives + negatives)))
    groups = torch.cat([batch.rows[:cut].view(8, positives), batch.rows[cut:].view(8, negatives)], dim=1)
    assert all(len(set(group)) == positives + negatives for group in groups.tolist())
    assert batch.rows.min() >= 0
    assert batch.rows.max() < n
    again = sampling.batch(step, labels=labels_of(n), batch_size=8, seed=0)
    assert torch.equal(batch.rows, again.rows)


def test_a_group_can_be_the_whole_sample():
    batch = GroupSampling(3, 3).batch(0, labels=labels_of(6), batch_size=50, seed=0)
    groups = torch.cat([batch.rows[:150].view(50, 3), batch.rows[150:].view(50, 3)], dim=1)
    assert all(sorted(group) == list(range(6)) for group in groups.tolist())


def test_both_sides_go_through_together_when_joint():
    batch = GroupSampling(2, 1, joint=True).batch(0, labels=labels_of(20), batch_size=4, seed=0)
    assert batch.passes == (slice(0, 12),)


def test_ordered_pairs_are_uniform():
    rows = torch.cat(
        [
            GroupSampling().batch(step, labels=labels_of(5), batch_size=500, seed=1).rows.view(2, 500)
            for step in range(20)
        ],
        dim=1,
    )
    counts = torch.zeros(5, 5)
    counts.index_put_((rows[0], rows[1]), torch.ones(10_000), accumulate=True)
    assert counts.diagonal().sum() == 0
    apart = counts[~torch.eye(5, dtype=torch.bool)]
    # 500 expected in each of 20 cells; chi-squared with 19 degrees of freedom stays below 44 with probability 0.999.
    assert ((apart - 500) ** 2 / 500).sum() < 44


def test_groups_larger_than_the_sample_are_refused():
    with pytest.raises(InvalidInput, match="--n 3 is too small for this method; give at least 4"):
        GroupSampling(2, 2).check(3)


@given(
    n=st.integers(2, 120),
    classes=st.integers(1, 12),
    per_class=st.integers(1, 6),
    batch_size=st.integers(4, 40),
    step=st.integers(0, 50),
)
def test_a_batch_by_class_holds_up_to_so_many_of_each(n, classes, per_class, batch_size, step):
    labels = labels_of(n, classes)
    batch = ClassSampling(per_class).batch(step, labels=labels, batch_size=batch_size, seed=0)
    counts = torch.bincount(labels[batch.rows], minlength=classes)
    there = torch.bincount(labels, minlength=classes)
    assert len(set(batch.rows.tolist())) == len(batch.rows)
    assert (counts <= per_class).all()
    assert len(batch.rows) == min(batch_size, int(there.clamp(max=per_class).sum()))
    # Only the class at which the batch was full may be cut short.
    short = (counts > 0) & (counts < there.clamp(max=per_class))
    assert short.sum() <= 1


def test_batches_by_class_differ_by_step_and_reach_every_row():
    labels, sampling = labels_of(60, 6), ClassSampling(5)
    batches = [sampling.batch(step, labels=labels, batch_size=30, seed=0).rows for step in range(30)]
    assert len({tuple(rows.tolist()) for rows in batches}) == 30
    assert set(torch.cat(batches).tolist()) == set(range(60))
    again = sampling.batch(7, labels=labels, batch_size=30, seed=0).rows
    assert torch.equal(again, batches[7])


def test_all_views_repeats_each_image_view_by_view():
    labels = labels_of(20)
    images = EpochSampling().batch(3, labels=labels, batch_size=8, seed=0).rows
    batch = AllViews(EpochSampling(), views=3).batch(3, labels=labels, batch_size=8, seed=0)
    assert batch.views == 3
    assert torch.equal(batch.rows, torch.cat([images] * 3))


def test_a_number_of_comparisons_is_drawn_once_and_gone_through_in_epochs():
    sampling, labels = GroupSampling(comparisons=24), labels_of(50)
    epochs = [
        [sampling.batch(step, labels=labels, batch_size=8, seed=0).rows.view(2, -1).T for step in steps]
        for steps in (range(3), range(3, 6))
    ]
    seen = [sorted(map(tuple, torch.cat(epoch).tolist())) for epoch in epochs]
    assert seen[0] == seen[1]
    assert len(seen[0]) == 24
    assert not torch.equal(torch.cat(epochs[0]), torch.cat(epochs[1]))
    other = sampling.batch(0, labels=labels, batch_size=8, seed=1).rows
    assert not torch.equal(other, epochs[0][0].T.flatten())


def test_a_senseless_number_of_comparisons_is_refused():
    for comparisons in (-1, 1, 10**12):
        with pytest.raises(InvalidInput, match="comparisons must be 0"):
            GroupSampling(comparisons=comparisons)


def stream_of(n: int, block: int, window: int) -> BlockOrder:
    return BlockOrder(torch.arange(n) // block, window)


STREAMS = st.tuples(st.integers(2, 150), st.integers(1, 20), st.integers(1, 9))


@given(stream=STREAMS, batch_size=st.integers(4, 70), seed=st.integers(0, 5), epoch=st.integers(0, 3))
def test_an_epoch_of_a_stream_is_every_row_once_and_its_blocks_are_held(stream, batch_size, seed, epoch):
    n, order = stream[0], stream_of(*stream)
    steps = ceil(n / batch_size)
    sampling = EpochSampling().streamed(order)
    batches = [
        sampling.batch(epoch * steps + place, labels=labels_of(n), batch_size=batch_size, seed=seed)
        for place in range(steps)
    ]
    assert sorted(torch.cat([batch.rows for batch in batches]).tolist()) == list(range(n))
    plain = [
        EpochSampling().batch(epoch * steps + place, labels=labels_of(n), batch_size=batch_size, seed=seed)
        for place in range(steps)
    ]
    assert [batch.passes for batch in batches] == [batch.passes for batch in plain]
    before = None
    for batch in batches:
        assert batch.visits is not None
        assert set(batch.rows.tolist()) <= set(order.rows_in(batch.visits).tolist())
        # It only ever goes on, and to what is next: nothing is read twice in an epoch.
        if before is not None:
            assert before.first <= batch.visits.first <= before.stop <= batch.visits.stop
        before = batch.visits


@given(stream=STREAMS, step=st.integers(0, 60), seed=st.integers(0, 3))
@pytest.mark.parametrize("sampling", [ClassSampling(2), GroupSampling(1, 1), AllViews(EpochSampling(), 2)])
def test_the_same_state_draws_the_same_batch_from_what_is_held(stream, step, seed, sampling):
    n, order = stream[0], stream_of(*stream)
    if order.least_rows < sampling.least_rows:
        return
    batch, again = (
        sampling.streamed(made).batch(step, labels=labels_of(n), batch_size=8, seed=seed)
        for made in (order, stream_of(*stream))
    )
    assert torch.equal(batch.rows, again.rows)
    assert (batch.passes, batch.views, batch.visits) == (again.passes, again.views, again.visits)
    assert set(batch.rows.tolist()) <= set(order.rows_in(batch.visits).tolist())


def test_groups_of_a_stream_hold_distinct_rows_and_batches_by_class_are_by_class():
    order = stream_of(120, 8, 4)
    groups = GroupSampling(2, 1).streamed(order).batch(9, labels=labels_of(120), batch_size=16, seed=0)
    sides = torch.cat([groups.rows[:32].view(16, 2), groups.rows[32:].view(16, 1)], dim=1)
    assert all(len(set(group)) == 3 for group in sides.tolist())
    labels = labels_of(120, 3)
    rows = ClassSampling(4).streamed(order).batch(5, labels=labels, batch_size=64, seed=0).rows
    assert torch.bincount(labels[rows]).tolist() == [4, 4, 4]


def test_what_draws_from_all_rows_once_says_that_it_cannot_stream():
    assert "leave comparisons out" in GroupSampling(comparisons=24).unstreamable
    for sampling in (GroupSampling(), EpochSampling(), ClassSampling(), AllViews(EpochSampling(), 2)):
        assert sampling.unstreamable is None


def test_a_buffer_with_too_few_rows_for_a_group_is_refused():
    with pytest.raises(InvalidInput, match="at least 6 rows, and the stream's buffer may have 4; raise --stream-rows"):
        GroupSampling(3, 3).streamed(stream_of(96, 4, 2)).check(96)
    GroupSampling(2, 2).streamed(stream_of(96, 4, 2)).check(96)
