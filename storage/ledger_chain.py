"""The ledger's hash chain: each entry covers the one before it and the rows it wrote."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import struct
from collections.abc import Iterable, Sequence

GENESIS = "0" * 64
KEY_VARIABLE = "CKD_LEDGER_KEY"
# Of a call that is reserved or settled, its numbers before its digest.
_RESERVED, _SETTLED = struct.Struct("<5q"), struct.Struct("<q")


class Seal:
    """How entries are hashed: with SHA-256, or, so that only who has the key can forge one, HMAC-SHA256.

    Args:
        key: None for SHA-256.
    """

    def __init__(self, key: str | None) -> None:
        self._key = None if key is None else key.encode()
        self.name = "sha256" if key is None else "hmac-sha256"

    @classmethod
    def from_environment(cls) -> Seal:
        """With the key in `CKD_LEDGER_KEY`, if there is one."""
        return cls(os.environ.get(KEY_VARIABLE) or None)

    def hash(self, seq: int, kind: str, at: str, payload: str, previous: str) -> str:
        """Hash of one journal entry, 64 hex digits."""
        content = json.dumps([seq, kind, at, payload, previous]).encode()
        if self._key is None:
            return hashlib.sha256(content).hexdigest()
        return hmac.new(self._key, content, hashlib.sha256).hexdigest()

    def manifest(self, digest: str) -> str | None:
        """Seal of a manifest with this digest of its content, 64 hex digits; None without a key."""
        if self._key is None:
            return None
        # A list of two, so that no entry's hash, which is over one of five, is ever a manifest's.
        content = json.dumps(["manifest", digest]).encode()
        return hmac.new(self._key, content, hashlib.sha256).hexdigest()

    def answers(self, digest: bytes) -> bytes:
        """What vouches for spooled answers with this SHA-256 of their content: 32 bytes, the same without a key."""
        if self._key is None:
            return digest
        content = json.dumps(["answers", digest.hex()]).encode()
        return hmac.new(self._key, content, hashlib.sha256).digest()


def reserved_rows_digest(rows: Iterable[tuple[int, int, int, int, int, bytes]]) -> str:
    """Digest of (id, repeat, sample, row, view, input digest) of the calls that one entry reserved."""
    pack = _RESERVED.pack
    return hashlib.sha256(b"".join([pack(*row[:5]) + row[5] for row in rows])).hexdigest()


def settled_rows_digest(rows: Iterable[tuple[int, bytes | None]]) -> str:
    """Digest of (id, output digests) of the calls that one entry settled."""
    pack = _SETTLED.pack
    return hashlib.sha256(b"".join([pack(id_) + (digest or b"") for id_, digest in rows])).hexdigest()


def bill_rows_digest(rows: Iterable[tuple[object, ...]]) -> str:
    """Digest of (call, billed, cost, tokens in, tokens out, model, request id, failure) of the bills of one entry."""
    hasher = hashlib.sha256()
    for row in rows:
        hasher.update(json.dumps(row).encode() + b"\n")
    return hasher.hexdigest()


def id_ranges(ids: Sequence[int]) -> list[list[int]]:
    """Sorted ids as [first, last] runs."""
    runs: list[list[int]] = []
    for id_ in ids:
        if runs and runs[-1][1] == id_ - 1:
            runs[-1][1] = id_
        else:
            runs.append([id_, id_])
    return runs
