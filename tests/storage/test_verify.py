"""`verify` finds what is wrong between the arrays and the ledger, in both directions."""

from __future__ import annotations

import numpy as np

from storage.store import Store
from storage.verify import store_problems
from tests.storage.conftest import N, make_outputs


def problems(paid) -> list[str]:
    return store_problems(Store.open(paid.store.folder), paid.ledger)


def test_a_whole_store_has_no_problems(whole_store):
    assert problems(whole_store) == []


def test_an_unfinished_store_lists_what_is_missing(empty_store):
    empty_store.pay(0, N - 2)
    found = problems(empty_store)
    assert len(found) == 4, "two rows of two views"
    assert all("is not there; finish it with: ckd-cache build" in problem for problem in found)


def test_a_changed_feature_names_row_and_view(whole_store):
    values = whole_store.store.arrays.read("train/features/layer1", 7, 8)
    values[0, 1, 0, 0, 0] += 1
    whole_store.store.arrays.write("train/features/layer1", 7, values)
    whole_store.store.arrays.sync()
    assert problems(whole_store) == ["train/logits or features: row 7 view 1 does not match its digest; it was changed"]


def test_a_row_the_ledger_never_charged_is_found(empty_store):
    empty_store.pay(0, N - 1)
    empty_store.store.write_outputs(N - 1, make_outputs(empty_store.store.manifest.identity, N - 1, 1))
    empty_store.store.publish([(N - 1, 1)])
    found = problems(empty_store)
    assert len(found) == 2
    assert all("the ledger knows no committed call for" in problem for problem in found)


def test_a_row_replaced_together_with_its_digest_is_found(whole_store):
    whole_store.store.write_outputs(5, make_outputs(whole_store.store.manifest.identity, 6, 1))
    whole_store.store.publish([(5, 1)])
    assert [problem.split(": ")[1] for problem in problems(whole_store)] == [
        "row 5 view 0 is not what call 11 of the ledger returned",
        "row 5 view 1 is not what call 12 of the ledger returned",
    ]


def test_a_committed_call_without_its_row_is_found(whole_store):
    whole_store.store.arrays.write("train/valid", 9, np.zeros((1, 2), dtype=bool))
    whole_store.store.arrays.sync()
    found = problems(whole_store)
    assert any("call 19 is committed, but row 9 view 0" in problem for problem in found)


def test_a_changed_image_breaks_the_tie_to_its_call(whole_store):
    image = whole_store.store.arrays.read("train/images", 3, 4)
    image[0, 4, 4] ^= 255
    whole_store.store.arrays.write("train/images", 3, image)
    whole_store.store.arrays.sync()
    assert any("row 3" in problem for problem in problems(whole_store))


def test_an_unsettled_call_is_reported(empty_store):
    empty_store.pay(0, N - 1)
    empty_store.reserve(N - 1, 1)
    assert any("was never settled; run the build again" in problem for problem in problems(empty_store))
