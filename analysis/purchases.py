"""What each rule of a grid has bought: of which classes, and what the teacher said of it."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.grid_plan import RANDOM, GridPlan
from storage.answers import NO_CLASS, top1
from storage.manifest import FILE_NAME
from storage.rows import Rows
from storage.schema import UNLABELLED
from storage.store import Store

_COLUMNS = ("store", "rule", "first", "end", "classes", "most", "accuracy")
_AT_ONCE = 1 << 10


def purchases(folder: Path, plan: GridPlan) -> pd.DataFrame:
    """A row for each store of a grid and each part of its rows between two n of the grid; none where no rule bought.

    Columns: store; rule; first and end, rows of the store; classes, how many came at least once; most, the share of the
    commonest of them; accuracy, the teacher's on the views of those rows. What needs labels or answers that are not
    there is NaN.

    Raises:
        CKDError: a store is damaged.
    """
    places = [folder / name for name in dict.fromkeys(run.store for run in plan.runs)]
    stores = [Store.open(place) for place in places if (place / FILE_NAME).exists()]
    if not any(store.manifest.rounds for store in stores):
        return pd.DataFrame(columns=list(_COLUMNS))
    sizes = {run.n for run in plan.runs}
    rows = [row for store in stores for row in _of_store(store, sizes)]
    return pd.DataFrame(rows, columns=list(_COLUMNS))


def _of_store(store: Store, sizes: set[int]) -> list[dict[str, Any]]:
    n = store.manifest.n
    ends = sorted(
        {0, n}
        | {row for made in store.manifest.rounds for row in (made.first, made.end)}
        | {size for size in sizes if size < n}
    )
    labels, said = store.read_sample("train/labels", Rows.first(n)), first_answers(store)
    return [
        {"store": store.folder.name, "rule": rule_of(store, first), "first": first, "end": end}
        | _counted(labels[first:end], said[first:end])
        for first, end in pairwise(ends)
    ]


def rule_of(store: Store, row: int) -> str:
    """The rule by which a row was bought."""
    made = store.manifest.round_of(row)
    return RANDOM if made is None else made.rule


def first_answers(store: Store) -> np.ndarray:
    """The class that the teacher names first for the first view of each row: (n,) int64; `NO_CLASS` where there is no
    answer, as for rows that are not whole, or none over the classes is kept.
    """
    n, form = store.manifest.n, store.manifest.identity.answer_form
    found = np.full(n, NO_CLASS, dtype=np.int64)
    if form is None:
        return found
    for first in range(0, n, _AT_ONCE):
        last = min(first + _AT_ONCE, n)
        said = {name: store.arrays.read(store.array_of(name), first, last)[:, 0] for name in form.names}
        found[first:last] = np.where(store.valid(first, last)[:, 0], top1(form, said), NO_CLASS)
    return found


def _counted(labels: np.ndarray, said: np.ndarray) -> dict[str, float]:
    known = labels[labels != UNLABELLED]
    judged = (labels != UNLABELLED) & (said != NO_CLASS)
    counts = np.bincount(known) if len(known) else np.zeros(1, np.int64)
    return {
        "classes": float(np.count_nonzero(counts)) if len(known) else np.nan,
        "most": float(counts.max() / len(known)) if len(known) else np.nan,
        "accuracy": float((labels == said)[judged].mean()) if judged.any() else np.nan,
    }
