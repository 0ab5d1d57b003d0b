"""What a teacher elsewhere said of a few images is kept once, whole, and refused where it was changed."""

from __future__ import annotations

import json

import numpy as np
import pytest

from ground.errors import StoreUnreadable
from storage.canaries import CANARIES_FILE, CanaryRecord, digest_of_answer

SAID = {"top_k.ids": np.array([3, 1], np.int32), "top_k.values": np.array([-0.1, -np.inf], np.float32)}


def record(**settings) -> CanaryRecord:
    usual = {"teacher": "ab" * 32, "model": "model-1", "inputs": (b"\1" * 16, b"\2" * 16), "answers": (SAID, None)}
    return CanaryRecord(**{**usual, **settings})


def test_answers_come_back_as_they_were_refusals_among_them(tmp_path):
    record().create(tmp_path)
    found = CanaryRecord.load(tmp_path)
    assert (found.teacher, found.model, found.inputs) == ("ab" * 32, "model-1", (b"\1" * 16, b"\2" * 16))
    for name, values in SAID.items():
        np.testing.assert_array_equal(found.answers[0][name], values, strict=True)
    assert found.answers[1] is None


def test_a_store_without_any_has_none(tmp_path):
    assert CanaryRecord.load(tmp_path) is None


def test_what_was_written_first_stays(tmp_path):
    record().create(tmp_path)
    record(model="model-2").create(tmp_path)
    assert CanaryRecord.load(tmp_path).model == "model-1"


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace("model-1", "model-2"),
        lambda text: text[:-20],
        lambda text: json.dumps({**json.loads(text), "digest": None}),
        lambda text: "[]",
    ],
)
def test_what_was_changed_is_refused(tmp_path, change):
    record().create(tmp_path)
    path = tmp_path / CANARIES_FILE
    path.write_text(change(path.read_text()))
    with pytest.raises(StoreUnreadable, match="bring it back from a copy, or delete it"):
        CanaryRecord.load(tmp_path)


def test_one_answer_is_needed_for_each_image(tmp_path):
    record(answers=(SAID,)).create(tmp_path)
    with pytest.raises(StoreUnreadable, match="not one answer to each image"):
        CanaryRecord.load(tmp_path)


def test_the_digest_of_an_answer_covers_names_types_and_values():
    other = {"top_k.ids": SAID["top_k.ids"], "top_k.values": np.array([-0.1, -9], np.float32)}
    renamed = {"a": SAID["top_k.ids"], "b": SAID["top_k.values"]}
    digests = {digest_of_answer(said) for said in (SAID, other, renamed, None)}
    assert len(digests) == 4
    assert {len(digest) for digest in digests} == {16}
    assert digest_of_answer(dict(reversed(SAID.items()))) == digest_of_answer(SAID)
