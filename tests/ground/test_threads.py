"""Results come in the order of the pieces, and an error ends the work."""

from __future__ import annotations

import time

import pytest

from ground.threads import in_threads


def test_results_are_in_the_order_of_the_pieces():
    assert list(in_threads(lambda piece: piece * piece, range(100))) == [piece * piece for piece in range(100)]
    assert list(in_threads(str, [])) == []


def test_an_error_is_raised_in_its_place_and_little_more_is_begun():
    begun = list[int]()

    def work(piece: int) -> int:
        begun.append(piece)
        if piece == 2:
            raise ValueError("the third")
        if piece > 2:
            time.sleep(0.02)
        return piece

    found = in_threads(work, range(10_000))
    assert [next(found), next(found)] == [0, 1]
    with pytest.raises(ValueError, match="the third"):
        next(found)
    assert len(begun) < 10_000


def test_who_stops_asking_stops_the_work():
    begun = list[int]()

    def work(piece: int) -> None:
        begun.append(piece)
        time.sleep(0.001)

    found = in_threads(work, range(100_000))
    next(found)
    found.close()
    assert len(begun) < 100_000
