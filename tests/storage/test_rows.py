"""Sets of rows against plain lists of row numbers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.rows import Rows, num_validation

indices = st.sets(st.integers(0, 60)).map(sorted)


@given(indices)
def test_rows_are_the_rows_they_were_made_of(index):
    rows = Rows.of(np.array(index, dtype=np.int64))
    assert rows.index.tolist() == index
    assert len(rows) == len(index)
    assert rows.end == (index[-1] + 1 if index else 0)
    assert [row for first, count in rows.runs for row in range(first, first + count)] == index


@given(indices, st.integers(1, 4))
def test_cells_are_all_views_of_each_row_in_order(index, views):
    expected = [row * views + view for row in index for view in range(views)]
    assert Rows.of(np.array(index, dtype=np.int64)).cells(views).tolist() == expected


@given(indices, st.integers(0, 70))
def test_below_keeps_the_rows_that_a_store_has(index, n):
    rows = Rows.of(np.array(index, dtype=np.int64)).below(n)
    assert rows.index.tolist() == [row for row in index if row < n]


@given(indices, st.integers(1, 9))
def test_blocks_cover_every_row_once_and_none_is_too_large(index, size):
    blocks = list(Rows.of(np.array(index, dtype=np.int64)).blocks(size))
    assert [row for first, last in blocks for row in range(first, last)] == index
    assert all(0 < last - first <= size for first, last in blocks)


@given(st.integers(0, 50))
def test_the_nested_sample_is_the_first_rows(n):
    assert Rows.first(n) == Rows.of(np.arange(n))


@pytest.mark.parametrize("runs", [((3, 2), (1, 1)), ((0, 2), (2, 3)), ((0, 0),), ((0, 3), (2, 1)), ((-1, 2),)])
def test_runs_that_are_out_of_order_touch_or_are_empty_are_refused(runs):
    with pytest.raises(ValueError, match="no runs of rows"):
        Rows(runs)


@pytest.mark.parametrize(("n", "expected"), [(2, 1), (7, 1), (8, 2), (2400, 600)])
def test_a_fifth_is_kept_for_validation(n, expected):
    assert num_validation(n) == expected
    assert Rows.first(n).num_validation == expected
