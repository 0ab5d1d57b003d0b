"""Places of rows in arrays that are only ever appended to.

What a manifest says of them are runs, (first, count): the places of the rows, in the order of the rows. No runs say
that each row lies at its own number.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from storage.blocks import RowSource

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


def asked_of_the_rest(
    there: np.ndarray, end: int, asked: tuple[int, int], before: np.ndarray, wanted: np.ndarray
) -> np.ndarray:
    """Where rows lie once images of the rest were asked about, wherever among it they were.

    Args:
        there: (r,) int64, where rows lie so far, those that were asked about first.
        end: the place where others are appended.
        asked: how many of the rows are asked about so far, and then.
        before: (r,) int64, what the rows are, each once.
        wanted: (m,) int64, what they are to be, in order.

    Returns:
        (m,) int64. The next rows are together, whatever places some of their images had.
    """
    first, last = asked
    others = carried_over(there[first:], end + last - first, before[first:], wanted[last:])
    return np.concatenate([there[:first], end + np.arange(last - first), others])


@dataclass(frozen=True, slots=True)
class Appended:
    """Some rows of a source, as what follows those that an array has.

    Args:
        start: how many it has; these are not here.
        index: (m,) int64, which rows of the source follow.
    """

    source: RowSource
    start: int
    index: np.ndarray

    def __len__(self) -> int:
        return self.start + len(self.index)

    def __getitem__(self, rows: slice) -> np.ndarray:
        first, last, _ = rows.indices(len(self))
        runs = neighbours(self.index[first - self.start : last - self.start])
        return np.concatenate([self.source[start : start + count] for start, count in runs])
