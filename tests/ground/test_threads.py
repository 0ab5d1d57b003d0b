"""Results come in the order of the pieces, few pieces ahead, and an error ends the work."""

from __future__ import annotations

import os

import pytest

from ground.threads import in_threads

MOST_AHEAD = 4 * min(8, os.cpu_count() or 1)


def test_results_are_in_the_order_of_the_pieces():
    assert list(in_threads(lambda piece: piece * piece, range(100))) == [piece * piece for piece in range(100)]
    assert list(in_threads(str, [])) == []


def test_an_error_is_raised_in_its_place_and_little_more_is_begun():
    begun = list[int]()

    def work(piece: int) -> int:
        begun.append(piece)
        if piece == 2:
            raise ValueError("the third")
        return piece

    found = in_threads(work, range(1000))
    assert [next(found), next(found)] == [0, 1]
    with pytest.raises(ValueError, match="the third"):
        next(found)
    assert len(begun) <= 3 + MOST_AHEAD


def test_who_stops_asking_stops_the_work():
    begun = list[int]()
    found = in_threads(begun.append, range(1000))
    next(found)
    found.close()
    assert len(begun) <= 1 + MOST_AHEAD
