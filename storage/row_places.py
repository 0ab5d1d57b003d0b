"""Places of rows in arrays that are only ever appended to.

What a manifest says of them are runs, (first, count): the places of the rows, in the order of the rows. No runs say
that each row lies at its own number.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np

Runs = tuple[tuple[int, int], ...]


def places_of(runs: Runs, rows: np.ndarray) -> np.ndarray:
    """Where (m,) rows lie, (m,) int64; at their own numbers where there are no runs."""
    if not runs:
        return rows
    firsts, counts = np.array(runs, np.int64).T
    ends = counts.cumsum()
    run = np.searchsorted(ends, rows, side="right")
    found: np.ndarray = firsts[run] + rows - (ends - counts)[run]
    return found


def neighbours(places: np.ndarray) -> Runs:
    """(m,) places as runs of neighbours, in the same order."""
    if not len(places):
        return ()
    cuts = np.flatnonzero(np.diff(places) != 1) + 1
    return tuple((int(part[0]), len(part)) for part in np.split(places, cuts))


def runs_of_places(places: np.ndarray) -> Runs:
    """What a manifest says of (m,) places; nothing where each row lies at its own number."""
    found = neighbours(places)
    return () if found in ((), ((0, len(places)),)) else found


def end_of(runs: Runs) -> int:
    """One more than the last place that is a row's."""
    return max(first + count for first, count in runs)


def are_sound(runs: Runs, rows: int) -> bool:
    """Whether so many rows can lie there: each at a place of its own."""
    ordered = sorted(runs)
    apart = all(first + count <= after for (first, count), (after, _) in pairwise(ordered))
    return apart and all(count > 0 for _, count in runs) and sum(count for _, count in runs) == rows


def carried_over(there: np.ndarray, start: int, before: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Where rows lie once they are others: what is there already stays where it is, and the others are appended.

    Args:
        there: (r,) int64, places of rows that may become others.
        start: the place where others are appended.
        before: (r,) int64, what those rows are, each once.
        wanted: (m,) int64, what the rows are to be, in order.

    Returns:
        (m,) int64.
    """
    order = np.argsort(before, kind="stable")
    at = np.searchsorted(before[order], wanted)
    found = np.full(len(wanted), -1, np.int64)
    is_there = np.zeros(len(wanted), np.bool_)
    inside = at < len(before)
    is_there[inside] = before[order[at[inside]]] == wanted[inside]
    found[is_there] = there[order[at[is_there]]]
    found[~is_there] = start + np.arange(np.count_nonzero(~is_there))
    return found
