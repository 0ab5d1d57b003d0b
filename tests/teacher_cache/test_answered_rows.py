"""What the teacher said is counted, against plain NumPy on whole arrays."""

from __future__ import annotations

import numpy as np
import pytest

from storage.schema import UNLABELLED
from storage.store import Store
from teacher_cache import answered_rows
from teacher_cache.answered_rows import AnsweredRows


@pytest.mark.parametrize("block_rows", [7, 1 << 10])
def test_rows_are_counted_block_by_block(built_store, monkeypatch, block_rows):
    monkeypatch.setattr(answered_rows, "BLOCK_ROWS", block_rows)
    store = Store.open(built_store)
    logits, labels = store.read("train/logits"), store.read("train/labels")
    found = AnsweredRows.of(store)
    assert (found.whole, found.unlabelled, found.empty) == (len(labels), 0, 0)
    assert found.judged == logits.shape[0] * logits.shape[1]
    assert found.accuracy == pytest.approx(np.mean(logits.argmax(axis=-1) == labels[:, None]))


def test_rows_without_an_answer_or_a_label_are_right_and_wrong_about_nothing(built_store, monkeypatch):
    store = Store.open(built_store)
    logits, labels = store.read("train/logits"), store.read("train/labels")
    labels[::3] = UNLABELLED
    valid = np.ones(logits.shape[:2], bool)
    valid[::2] = False
    monkeypatch.setattr(Store, "valid", lambda self, first, last: valid[first:last].copy())
    monkeypatch.setattr(Store, "read_rows", lambda self, name, first, last: labels[first:last])
    found = AnsweredRows.of(store)
    asked = valid[:, 0] & (labels != UNLABELLED)
    assert (found.whole, found.unlabelled) == (valid[:, 0].sum(), (labels == UNLABELLED).sum())
    assert found.judged == asked.sum() * logits.shape[1]
    assert found.accuracy == pytest.approx(np.mean((logits.argmax(axis=-1) == labels[:, None])[asked]))


def test_where_nothing_was_answered_there_is_no_accuracy(built_store, monkeypatch):
    store = Store.open(built_store)
    views = store.manifest.identity.views
    monkeypatch.setattr(Store, "valid", lambda self, first, last: np.zeros((last - first, views), bool))
    assert (AnsweredRows.of(store).whole, AnsweredRows.of(store).accuracy) == (0, None)
