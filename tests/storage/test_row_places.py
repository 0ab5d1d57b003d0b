"""Places of rows in arrays that are only ever appended to, against lists."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from storage.row_places import (
    Appended,
    are_sound,
    asked_of_the_rest,
    carried_over,
    end_of,
    neighbours,
    places_of,
    runs_of_places,
)

PLACES = st.lists(st.integers(0, 60), min_size=1, unique=True)


@given(PLACES, st.data())
def test_runs_say_where_each_row_lies(places, data):
    runs = runs_of_places(np.array(places))
    rows = data.draw(st.lists(st.integers(0, len(places) - 1)))
    assert places_of(runs, np.array(rows, np.int64)).tolist() == [places[row] for row in rows]
    if runs:
        assert end_of(runs) == max(places) + 1
        assert are_sound(runs, len(places))


def test_rows_at_their_own_numbers_need_no_runs():
    assert runs_of_places(np.arange(7)) == runs_of_places(np.arange(0)) == ()
    assert neighbours(np.array([0, 1, 2])) == ((0, 3),)
    assert runs_of_places(np.array([0, 1, 3])) == ((0, 2), (3, 1))


def test_runs_that_share_a_place_or_have_none_or_other_numbers_of_rows_are_unsound():
    assert are_sound(((5, 2), (0, 5)), 7)
    for runs in (((5, 2), (0, 6)), ((0, 0), (0, 7)), ((0, 8),), ((3, 7), (3, 1)), ((0, 9), (20, -2))):
        assert not are_sound(runs, 7)


@given(PLACES, st.data())
def test_what_is_there_stays_and_the_rest_is_appended(places, data):
    before = data.draw(st.permutations(range(100, 100 + len(places))))
    wanted = data.draw(st.lists(st.sampled_from([*before, *range(200, 210)]), unique=True))
    found = carried_over(np.array(places), 70, np.array(before), np.array(wanted, np.int64))
    lies, end, expected = dict(zip(before, places, strict=True)), 70, []
    for image in wanted:
        expected.append(lies.get(image, end))
        end += image not in lies
    assert found.tolist() == expected


def test_rows_that_are_asked_of_the_rest_are_together_after_all_that_is_there():
    there, before, wanted = np.array([0, 1, 4, 2, 3]), np.array([9, 8, 5, 6, 7]), np.array([9, 8, 7, 5, 6])
    found = asked_of_the_rest(there, 5, (2, 4), before, wanted)
    # Of 9, 8 | 5, 6, 7 the images 7 and 5 are asked about: they come next, and 6 stays where it was.
    assert found.tolist() == [0, 1, 5, 6, 2]


def test_rows_of_a_source_follow_those_that_an_array_has():
    rows = Appended(np.arange(0, 100, 10), 4, np.array([1, 2, 5, 0]))
    assert len(rows) == 8
    assert rows[4:8].tolist() == [10, 20, 50, 0]
    assert rows[5:7].tolist() == [20, 50]
