"""A spool holds whole answers or none, in room that was taken before, and gives back what was put in."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest

from ground.documents import Malformed
from storage.bill import Bill, Billed, FailureKind
from storage.schema import OutputSpec
from storage.spool import Group, Spool, is_file, read_spool, room_bytes, spool_files, spooled_store

OUTPUTS = (OutputSpec("logits", (10,), "float32"), OutputSpec("layer1", (4, 3, 3), "float16"))
STORE = "ab" * 16


def group(first: int, calls: int, dtype: str = "float16") -> Group:
    rng = np.random.default_rng(first)
    values = {
        "logits": rng.normal(size=(calls, 10)).astype(np.float32),
        "layer1": rng.normal(size=(calls, 4, 3, 3)).astype(dtype),
    }
    ids = range(first, first + calls)
    return Group(list(ids), [10 * id_ for id_ in ids], [bytes([id_]) * 16 for id_ in ids], values)


@pytest.fixture
def spool(tmp_path) -> Spool:
    return Spool(tmp_path, STORE, 5, OUTPUTS, 16)


def test_an_empty_spool_is_whole_and_its_room_is_taken(spool, tmp_path):
    assert [*spool_files(tmp_path)] == [(spool.path, 5)]
    assert spool.path.stat().st_size == room_bytes(OUTPUTS, 16)
    assert spool.path.stat().st_blocks * 512 >= room_bytes(OUTPUTS, 16)
    assert spooled_store(spool.path) is None
    assert read_spool(spool.path, OUTPUTS, {1}) == []


def test_a_header_of_anything_takes_no_more_memory_than_its_own(spool):
    content = b'{"session": 5, "store": "%s", "groups": [' % STORE.encode() + b"{}," * (4 << 20) + b"{}]}"
    front = b"ckdspool" + len(content).to_bytes(8, "little") + bytes(32)
    spool.path.write_bytes(front + content)
    tracemalloc.start()
    try:
        with pytest.raises(Malformed):
            spooled_store(spool.path)
        assert tracemalloc.get_traced_memory()[1] < 3 * len(content)
    finally:
        tracemalloc.stop()


def test_what_is_read_is_what_was_written_in_the_type_it_was_in(spool):
    groups = [group(1, 7), group(20, 9, "float32")]
    spool.write(groups)
    assert spooled_store(spool.path) == STORE
    found = {answer.call: answer for answer in read_spool(spool.path, OUTPUTS, {*range(1, 8), *range(20, 29)})}
    assert len(found) == 16
    for written in groups:
        for place, call in enumerate(written.calls):
            assert (found[call].cell, found[call].input_digest) == (written.cells[place], written.inputs[place])
            for name, values in written.values.items():
                assert found[call].values[name].dtype == values.dtype
                np.testing.assert_array_equal(found[call].values[name], values[place : place + 1])


def test_the_room_that_is_taken_is_enough_for_everything_in_float32(tmp_path):
    for calls in (1, 16, 3000):
        spool = Spool(tmp_path, STORE, 2**40, OUTPUTS, calls)
        rng = np.random.default_rng(0)
        values = {output.name: rng.normal(size=(calls, *output.shape)).astype(np.float32) for output in OUTPUTS}
        ids = [2**40 + call for call in range(calls)]
        spool.write([Group(ids, ids, [bytes(range(16))] * calls, values)])
        assert spool.path.stat().st_size == room_bytes(OUTPUTS, calls)


def billed(**fields) -> Bill:
    return Bill(billed=Billed.YES, **{"cost_micros": 7, "tokens_in": 3, "model": "m", "request_id": "r", **fields})


def test_bills_are_kept_beside_answers_that_have_one(spool):
    bills = {1: billed(), 3: billed(tokens_out=0, failure=FailureKind.REFUSED)}
    spool.write([replace(group(1, 7), bills=bills)])
    found = {answer.call: answer.bill for answer in read_spool(spool.path, OUTPUTS, {*range(1, 8)})}
    assert found == {call: bills.get(call) for call in range(1, 8)}


def test_bills_are_left_out_before_answers_are(tmp_path):
    spool = Spool(tmp_path, STORE, 5, OUTPUTS, 7)
    long = billed(model="\N{SNOWMAN}" * 256, request_id="\N{SNOWMAN}" * 256)
    spool.write([replace(group(1, 7, "float32"), bills=dict.fromkeys(range(1, 8), long))])
    assert spool.path.stat().st_size == room_bytes(OUTPUTS, 7)
    assert [answer.bill for answer in read_spool(spool.path, OUTPUTS, {*range(1, 8)})] == [None] * 7


def test_a_bill_that_contradicts_itself_is_refused(spool):
    spool.write([replace(group(1, 7), bills={1: Bill(billed=Billed.NO, cost_micros=1)})])
    with pytest.raises(Malformed, match="contradicts itself"):
        read_spool(spool.path, OUTPUTS, {1})


def test_only_the_calls_that_are_asked_for_are_read(spool):
    spool.write([group(1, 7)])
    assert [answer.call for answer in read_spool(spool.path, OUTPUTS, {3, 99})] == [3]


def test_a_spool_that_was_torn_or_changed_anywhere_is_refused(spool):
    spool.write([group(1, 3)])
    content = spool.path.read_bytes()
    written = len(content.rstrip(b"\0"))
    for place in range(written):
        changed = bytearray(content)
        changed[place] ^= 1
        spool.path.write_bytes(changed)
        with pytest.raises(Malformed):
            read_spool(spool.path, OUTPUTS, {1, 2, 3})
    for size in (1, 40, 100, written - 1):
        spool.path.write_bytes(content[:size])
        with pytest.raises(Malformed):
            spooled_store(spool.path)


def test_a_spool_of_other_outputs_is_refused(spool):
    spool.write([group(1, 3)])
    for outputs in (OUTPUTS[:1], (OUTPUTS[0], OutputSpec("layer1", (4, 3, 2), "float16"))):
        with pytest.raises(Malformed, match="other outputs than the store keeps"):
            read_spool(spool.path, outputs, {1})


def test_with_a_key_nobody_forges_an_answer(spool, monkeypatch):
    spool.write([group(1, 3)])
    monkeypatch.setenv("CKD_LEDGER_KEY", "secret")
    with pytest.raises(Malformed, match="does not match its digest"):
        spooled_store(spool.path)
    spool.write([group(1, 3)])
    assert spooled_store(spool.path) == STORE
    monkeypatch.setenv("CKD_LEDGER_KEY", "another")
    with pytest.raises(Malformed, match="does not match its digest"):
        read_spool(spool.path, OUTPUTS, {1})


def test_other_names_are_no_spools(tmp_path):
    for name in (
        "answers-1.spool",
        "answers-x-00000000.spool",
        "answers-1-0000000g.spool",
        "answers-1-00000000.spool2",
    ):
        (tmp_path / name).touch()
    assert [*spool_files(tmp_path)] == []


def test_a_spool_that_is_deleted_meanwhile_holds_nothing(spool):
    spool.write([group(1, 3)])
    spool.remove()
    assert not is_file(spool.path)
    assert spooled_store(spool.path) is None
    assert read_spool(spool.path, OUTPUTS, {1}) == []


def test_answers_that_are_ids_and_refusals_come_back_as_what_they_are(tmp_path):
    outputs = (OutputSpec("top_k.ids", (3,), "int32"), OutputSpec("label", (), "int32"))
    values = {"top_k.ids": np.arange(12, dtype=np.int32).reshape(4, 3), "label": np.array([7, -1, 2, 0], np.int32)}
    spool = Spool(tmp_path, STORE, 5, outputs, 4)
    spool.write([Group([1, 2, 3, 4], [0, 1, 2, 3], [bytes([id_]) * 16 for id_ in range(4)], values, refused=[2])])
    found = read_spool(spool.path, outputs, {1, 2, 4})
    assert [(answer.call, answer.is_refusal) for answer in found] == [(1, False), (2, True), (4, False)]
    for answer in found:
        for name, array in values.items():
            assert answer.values[name].dtype == np.int32
            np.testing.assert_array_equal(answer.values[name], array[[answer.call - 1]])


def test_ids_in_place_of_numbers_are_no_answers_of_the_store(tmp_path):
    ids = (OutputSpec("sampled.weights", (3,), "int32"),)
    spool = Spool(tmp_path, STORE, 5, ids, 4)
    spool.write([Group([1], [0], [bytes(16)], {"sampled.weights": np.zeros((1, 3), np.int32)})])
    with pytest.raises(Malformed, match="it holds other outputs than the store keeps"):
        read_spool(spool.path, (OutputSpec("sampled.weights", (3,), "float32"),), {1})
