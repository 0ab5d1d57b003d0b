"""What the teacher said about the rows it was asked about, counted from the stored answers: no call is made."""

from __future__ import annotations

from dataclasses import dataclass

from storage.answers import NO_CLASS, top1
from storage.rows import Rows
from storage.schema import UNLABELLED
from storage.store import Store

BLOCK_ROWS = 1 << 10
_MOST_BYTES = 8 << 20


@dataclass(frozen=True, slots=True)
class AnsweredRows:
    """Counts of the n rows that a store has room for answers to.

    Args:
        whole: rows of which every view is answered.
        unlabelled: rows without a label.
        empty: answers without content.
        judged: the other answers about labelled images.
        accuracy: share of those whose top-1 is the label; None where there is none.
    """

    whole: int
    unlabelled: int
    empty: int
    judged: int
    accuracy: float | None

    @classmethod
    def of(cls, store: Store) -> AnsweredRows:
        """Count them, block by block."""
        whole = unlabelled = judged = correct = empty = 0
        form = store.manifest.identity.answer_form
        for first, last in Rows.first(store.manifest.n).blocks(BLOCK_ROWS if form is None else _rows_at_once(store)):
            valid = store.valid(first, last)
            whole += int(valid.all(axis=1).sum())
            labels = store.read_rows("train/labels", first, last)
            unlabelled += int((labels == UNLABELLED).sum())
            if form is not None and valid.any():
                said = {name: store.arrays.read(store.array_of(name), first, last) for name in form.names}
                flat = {name: values.reshape(valid.size, *values.shape[2:]) for name, values in said.items()}
                answered = top1(form, flat).reshape(valid.shape)
                empty += int((valid & (answered == NO_CLASS)).sum())
                valid &= (labels != UNLABELLED)[:, None] & (answered != NO_CLASS)
                judged += int(valid.sum())
                correct += int((answered == labels[:, None])[valid].sum())
        return cls(whole, unlabelled, empty, judged, correct / judged if judged else None)


def _rows_at_once(store: Store) -> int:
    """Few enough that their answers take little memory."""
    row_bytes = sum(store.arrays.specs[store.array_of(name)].row_bytes for name in store.manifest.identity.answer_names)
    return max(1, min(BLOCK_ROWS, _MOST_BYTES // max(1, row_bytes)))
