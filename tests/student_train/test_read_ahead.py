"""What is read in threads comes in order, no more of it than was asked for, with what went wrong in its place."""

from __future__ import annotations

import threading

import pytest

from ground.errors import StoreUnreadable
from student_train.read_ahead import ReadAhead, read_ahead


def reading_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("ckd-reading")]


def test_results_come_in_order_and_no_more_is_read_than_was_asked_for():
    begun = []

    def read(place: int) -> int:
        begun.append(place)
        return place * place

    found = read_ahead(read, range(20), ahead=3)
    assert [next(found), next(found)] == [0, 1]
    assert max(begun) <= 4
    assert list(found) == [place * place for place in range(2, 20)]
    assert not reading_threads()


def test_an_error_is_raised_where_its_result_would_be():
    def read(place: int) -> int:
        if place == 2:
            raise StoreUnreadable("block 2 is damaged")
        return place

    found = read_ahead(read, range(5))
    assert [next(found), next(found)] == [0, 1]
    with pytest.raises(StoreUnreadable, match="block 2"):
        next(found)
    assert not reading_threads()


def test_whoever_stops_early_leaves_no_thread_behind():
    found = read_ahead(lambda place: place, range(100))
    next(found)
    assert reading_threads()
    found.close()
    assert not reading_threads()


def test_what_was_begun_and_not_taken_is_dropped():
    gate, done = threading.Event(), []
    reading = ReadAhead(lambda place: (gate.wait(5), done.append(place)))
    for place in range(9):
        reading.begin(place)
    assert len(reading) == 9
    gate.set()
    reading.close()
    assert len(reading) == 0
    assert len(done) < 9 or not reading_threads()
    assert not reading_threads()
