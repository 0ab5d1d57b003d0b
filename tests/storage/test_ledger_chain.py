"""The chain's hashes against `hashlib`, `hmac` and bytes put together here, as docs/ledger.md describes them."""

from __future__ import annotations

import hashlib
import hmac
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.ledger_chain import KEY_VARIABLE, Seal, id_ranges, reserved_rows_digest, settled_rows_digest

ENTRY = (3, "commit", "2026-01-31T12:00:00.000+00:00", '{"seconds":1.5}', "ab" * 32)


def test_an_entry_is_hashed_with_everything_it_says_and_the_hash_before_it():
    content = json.dumps(list(ENTRY)).encode()
    assert Seal(None).hash(*ENTRY) == hashlib.sha256(content).hexdigest()
    assert Seal("secret").hash(*ENTRY) == hmac.new(b"secret", content, hashlib.sha256).hexdigest()


@pytest.mark.parametrize("place", range(len(ENTRY)))
def test_a_change_to_any_part_of_an_entry_changes_its_hash(place):
    changed = list(ENTRY)
    changed[place] = 4 if place == 0 else changed[place] + "0"
    assert Seal(None).hash(*changed) != Seal(None).hash(*ENTRY)


def test_the_key_is_taken_from_the_environment(monkeypatch):
    monkeypatch.setenv(KEY_VARIABLE, "secret")
    assert Seal.from_environment().name == "hmac-sha256"
    assert Seal.from_environment().hash(*ENTRY) == Seal("secret").hash(*ENTRY)
    monkeypatch.setenv(KEY_VARIABLE, "")
    assert Seal.from_environment().name == "sha256"


def test_rows_are_digested_as_little_endian_numbers_and_digests():
    reserved = [(1, 0, 7, 2, 0, b"a" * 16), (2, 1, -1, 3, 1, b"b" * 16)]
    content = b"".join(
        b"".join(number.to_bytes(8, "little", signed=True) for number in numbers) + digest
        for *numbers, digest in reserved
    )
    assert reserved_rows_digest(reserved) == hashlib.sha256(content).hexdigest()
    settled = [(1, b"c" * 32), (2, None)]
    content = (1).to_bytes(8, "little") + b"c" * 32 + (2).to_bytes(8, "little")
    assert settled_rows_digest(settled) == hashlib.sha256(content).hexdigest()


@given(st.sets(st.integers(1, 60)))
def test_ranges_of_ids_are_those_ids_and_as_few_as_can_be(ids):
    runs = id_ranges(sorted(ids))
    assert [id_ for first, last in runs for id_ in range(first, last + 1)] == sorted(ids)
    assert len(runs) == sum(id_ - 1 not in ids for id_ in ids)
