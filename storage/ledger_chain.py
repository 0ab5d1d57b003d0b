"""The ledger's hash chain: each entry covers the one before it and the rows it wrote."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterable, Sequence

GENESIS = "0" * 64


def entry_hash(seq: int, kind: str, at: str, payload: str, previous: str) -> str:
    """Hash of one journal entry, which covers the one before it."""
    return hashlib.sha256(json.dumps([seq, kind, at, payload, previous]).encode()).hexdigest()


def reserved_rows_digest(rows: Iterable[tuple[int, int, int, int, bytes]]) -> str:
    """Digest of (id, sample, row, view, input digest) of the calls that one entry reserved."""
    hasher = hashlib.sha256()
    for *numbers, digest in rows:
        hasher.update(struct.pack("<4q", *numbers) + digest)
    return hasher.hexdigest()


def settled_rows_digest(rows: Iterable[tuple[int, bytes | None]]) -> str:
    """Digest of (id, output digest) of the calls that one entry settled."""
    hasher = hashlib.sha256()
    for id_, digest in rows:
        hasher.update(struct.pack("<q", id_) + (digest or b""))
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
