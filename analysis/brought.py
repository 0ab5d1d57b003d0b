"""What the calls brought beyond labels alone, in a sentence each: what a user asks before anything else."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd

from analysis.figures import Pair, of_pair

CHOSEN_BY = (
    "The best method here is the one with the best validation accuracy, so that test accuracy chose nothing. Over as "
    "few as three pairs of runs an interval is rough, and rather too narrow."
)

# Of two, half of all bootstrap draws are one of them alone: their interval is no more than the two.
_ENOUGH_PAIRS = 3


def brought(beyond: pd.DataFrame, pairs: Sequence[Pair]) -> list[str]:
    """For every pair, the best method at its most calls that leaves the rest's labels alone, and the best that uses
    them, against labels alone.

    Args:
        beyond: of `analysis.labels_only.beyond_labels`.
    """
    sentences = []
    for pair in pairs:
        asking = of_pair(beyond, pair).query("calls > 0")
        for uses_labels in (False, True):
            best = _best(asking[asking["uses_labels"] == uses_labels])
            if best is not None:
                sentences.append((f"{pair.text}: " if len(pairs) > 1 else "") + _sentence(best))
    return sentences


def _best(rows: pd.DataFrame) -> dict[str, Any] | None:
    if rows.empty:
        return None
    most = rows[rows["calls"] == rows["calls"].max()]
    best: dict[str, Any] = most.loc[most["validation"].idxmax()].to_dict()
    return best


def _sentence(row: dict[str, Any]) -> str:
    return (
        f"At {row['calls']:,} calls, {row['label']} is at {100 * row['accuracy']:.1f} %; labels alone, at no call, at "
        f"{100 * row['alone']:.1f} %: {_verdict(row)}."
    )


def _verdict(row: dict[str, Any]) -> str:
    runs = f"{row['pairs']} pairs of runs" if row["pairs"] > 1 else "one pair of runs"
    points = f"{100 * row['mean']:+.1f} points"
    if math.isnan(row["low"]):
        return f"a difference of {points}, of {runs}, which has no interval"
    interval = f"95 % interval {100 * row['low']:+.1f} to {100 * row['high']:+.1f}, {runs}"
    if row["teaches_more"]:
        return f"a difference of {points} ({interval}), by calls and by what the rest taught without its labels"
    if row["pairs"] < _ENOUGH_PAIRS:
        return f"a difference of {points} ({interval}), too few runs to tell"
    if row["low"] > 0:
        return f"the calls brought {points} ({interval})"
    if row["high"] < 0:
        return f"labels alone are ahead, and the calls in their place brought {points} ({interval})"
    return f"the calls brought {points} ({interval}), which may be nothing"
