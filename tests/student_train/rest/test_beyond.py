"""Which rows a training has no answer for, and which of those that claim to be are refused."""

from __future__ import annotations

import numpy as np
import pytest

from ground.errors import InvalidInput, StoreUnreadable
from storage.store import Store
from student_train.rest.beyond import Beyond
from tests.student_train.rest.conftest import NUM_ASKED, NUM_REST


def test_all_rows_beyond_are_meant_whoever_answered_them(rest_store, rest_labels):
    beyond = Beyond.of(Store.open(rest_store), NUM_ASKED)
    assert beyond.rows.index.tolist() == [*range(NUM_ASKED, NUM_ASKED + NUM_REST)]
    assert beyond.labelled.tolist() == (NUM_ASKED + np.flatnonzero(rest_labels >= 0)).tolist()
    assert len(Beyond.of(Store.open(rest_store), 0).rows) == NUM_ASKED + NUM_REST
    assert beyond.order is None  # the seed's, which growing leaves as it is


def test_a_store_without_any_is_refused_with_the_command_that_adds_some(built_store):
    with pytest.raises(
        InvalidInput,
        match=r"keeps 0 images beyond the first 96.*ckd-cache extend --store \S+ --rest all$",
    ):
        Beyond.of(Store.open(built_store), 96)


@pytest.mark.parametrize(("array", "said"), [("val", "is a validation image of"), ("train", "has an image twice")])
def test_an_image_that_is_there_twice_is_refused(rest_store, monkeypatch, array, said):
    read = Store.read_sample
    taken = read(Store.open(rest_store), f"{array}/source_index")[3]

    def forged(self, name, rows=None):
        found = read(self, name, rows)
        if name == "train/source_index":
            found[-1] = taken
        return found

    monkeypatch.setattr(Store, "read_sample", forged)
    with pytest.raises(StoreUnreadable, match=said):
        Beyond.of(Store.open(rest_store), NUM_ASKED)
