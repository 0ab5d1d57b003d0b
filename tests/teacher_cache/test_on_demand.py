"""What is made on demand is what would be made at once, and each of it is made once."""

from __future__ import annotations

import numpy as np

from teacher_cache.on_demand import HeldRows, InputDigests


class Source:
    """Rows 0, 1, 2, ... that notes which were asked for."""

    def __init__(self, count: int) -> None:
        self.count, self.asked = count, list[tuple[int, int]]()

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, rows: slice) -> np.ndarray:
        first, last, _ = rows.indices(self.count)
        self.asked.append((first, last))
        return np.arange(first, last)[:, None] * np.array([1, 1000])


def test_rows_are_read_once_and_none_that_nobody_asks_for():
    source = Source(50)
    held = HeldRows(source, 40, (2,), np.dtype(np.int64))
    expected = np.arange(40)[:, None] * np.array([1, 1000])
    assert source.asked == []
    np.testing.assert_array_equal(held.take(np.array([7, 5, 5, 30])), expected[[7, 5, 5, 30]])
    assert source.asked == [(5, 6), (7, 8), (30, 31)]
    np.testing.assert_array_equal(held[4:9], expected[4:9])
    assert source.asked[3:] == [(4, 5), (6, 7), (8, 9)]
    np.testing.assert_array_equal(held[:], expected)
    assert len(held) == 40
    assert sum(last - first for first, last in source.asked) == 40


def test_rows_that_were_let_go_are_made_again_and_are_the_same():
    source = Source(50)
    held = HeldRows(source, 40, (2,), np.dtype(np.int64))
    before = held[3:6].copy()
    held.let_go()
    np.testing.assert_array_equal(held[3:6], before)
    assert source.asked == [(3, 6), (3, 6)]
    assert len(held) == 40


def test_digests_are_made_a_few_at_first_and_more_for_who_goes_on():
    made = list[tuple[int, int]]()

    def digests_of(rows: slice) -> list[list[bytes]]:
        made.append((rows.start, rows.stop))
        return [[bytes([row % 256]), bytes([row // 256])] for row in range(rows.start, rows.stop)]

    digests = InputDigests(1000, digests_of, 300)
    assert digests[900] == [bytes([900 % 256]), bytes([3])]
    assert made == [(900, 964)]
    assert digests[-1] == digests[999] == [bytes([999 % 256]), bytes([3])]
    assert digests[10:13] == [[bytes([row]), b"\0"] for row in (10, 11, 12)]
    assert list(digests) == [[bytes([row % 256]), bytes([row // 256])] for row in range(1000)]
    assert sorted(row for span in made for row in range(*span)) == list(range(1000))
    assert max(last - first for first, last in made) == 300


def test_digests_are_equal_where_their_rows_are():
    one, same, other = (
        InputDigests(3, lambda rows, k=k: [[bytes([k, r])] for r in range(3)][rows], 1) for k in (1, 1, 2)
    )
    assert one == same
    assert one != other
