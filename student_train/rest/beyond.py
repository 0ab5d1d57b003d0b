"""Which rows of a store a training has no answer for, checked before any image of them is read."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from ground.errors import InvalidInput, StoreUnreadable
from storage.rows import Rows
from storage.schema import SOURCE_INDEX, UNLABELLED
from storage.store import Store


@dataclass(frozen=True, slots=True)
class Beyond:
    """Rows beyond the first n.

    Args:
        rows: of the training split.
        labelled: (m,) int64, those of them that have a label.
        order: SHA-256 of where in the pool all rows of the store come from, where a rule chose some, and may choose
            of these; None where all are in the order of the seed, which growing leaves as it is.
    """

    rows: Rows
    labelled: np.ndarray
    order: str | None = None

    @classmethod
    def of(cls, store: Store, n: int) -> Beyond:
        """All of them: a store's rest, and rows whose answers this training leaves aside.

        Raises:
            InvalidInput: there are none.
            StoreUnreadable: one of them is a validation image too, or is there twice.
        """
        total = store.manifest.num_images
        rows = Rows.between(n, total)
        if len(rows) < 2:
            added = store.command("extend", rest="all", **store.image_options)
            raise InvalidInput(
                f"{store.place} keeps {len(rows)} images beyond the first {n}, which --rest learns from; lower --n, or "
                f"add some with: {added}"
            )
        order = _require_apart(store, total)
        labels = store.read_sample("train/labels", rows)
        labelled = n + np.flatnonzero(labels != UNLABELLED)
        return cls(rows, labelled, hashlib.sha256(order.data).hexdigest() if store.manifest.rounds else None)


def _require_apart(store: Store, total: int) -> np.ndarray:
    """Where all rows come from, (total,) int64."""
    train = store.read_sample(SOURCE_INDEX, Rows.first(total))
    val = store.read_sample("val/source_index")
    shared = np.intersect1d(train, val)
    if len(shared):
        raise StoreUnreadable(
            f"image {shared[0]} of the pool is a validation image of {store.place}, and one to learn from too; build "
            "the store again"
        )
    if len(np.unique(train)) < total:
        raise StoreUnreadable(f"{store.place} has an image twice; build the store again")
    return train
