"""Check a store against itself and against its ledger, in both directions; nothing is changed."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from storage.digest import input_digests
from storage.errors import CKDError
from storage.ledger import Ledger, RecordedCall
from storage.ledger_check import ledger_problems
from storage.schema import DIGEST, VALID
from storage.store import Store

_MAX_LISTED = 20


def store_problems(store: Store, ledger: Ledger) -> list[str]:
    """Everything that is wrong, one sentence each; empty when the store can be trusted."""
    return [
        *_limited(_sample_problems(store)),
        *_limited(_row_problems(store, ledger)),
        *ledger_problems(ledger),
    ]


def _limited(problems: Iterator[str]) -> list[str]:
    listed = list(problems)
    extra = len(listed) - _MAX_LISTED
    return listed if extra <= 0 else [*listed[:_MAX_LISTED], f"and {extra} more of this kind"]


def _sample_problems(store: Store) -> Iterator[str]:
    """Labels, views and indices that cannot be."""
    identity = store.manifest.identity
    limits = {"labels": len(identity.dataset.classes), "source_index": 1 << 62}
    for name in store.arrays.specs:
        leaf = name.rsplit("/", 1)[1]
        if leaf not in limits:
            continue
        try:
            values = store.read(name)
        except CKDError as error:
            yield str(error)
            continue
        if values.size and (values.min() < 0 or values.max() >= limits[leaf]):
            yield f"{name} holds values outside 0..{limits[leaf] - 1}: the sample was damaged, build a new store"


def _row_problems(store: Store, ledger: Ledger) -> Iterator[str]:
    """Rows that are missing, changed, or not as the ledger recorded them."""
    manifest = store.manifest
    try:
        valid = store.valid()
        digests = store.read(DIGEST)
        images, views = store.read("train/images"), store.read("train/views")
        inputs = input_digests(images, views, manifest.identity.geometry)
        matches = np.concatenate([match for _, _, match in store.blocks((), manifest.n)] or [valid])
    except CKDError as error:
        yield str(error)
        return
    paid = ledger.known_calls(manifest.identity.teacher.fingerprint, [digest for row in inputs for digest in row])
    for row, view in np.argwhere(~valid):
        yield f"{VALID}: row {row} view {view} is not there; finish it with: {store.build_command(manifest.n)}"
    for row, view in np.argwhere(valid):
        call = paid.get(inputs[row][view])
        if not matches[row, view]:
            yield f"train/logits or features: row {row} view {view} does not match its digest; it was changed"
        elif call is None or call.status != "committed":
            yield f"{DIGEST}: row {row} view {view} has outputs that the ledger knows no committed call for"
        elif call.output_digest != digests[row, view].tobytes():
            yield f"{DIGEST}: row {row} view {view} is not what call {call.id} of the ledger returned"
    yield from _missing_rows(store, ledger.calls_of_store(manifest.store_id, "committed"), valid)
    for call in ledger.calls_of_store(manifest.store_id, "reserved"):
        yield f"call {call.id} (row {call.row}) was never settled; run the build again to settle it"


def _missing_rows(store: Store, committed: list[RecordedCall], valid: np.ndarray) -> Iterator[str]:
    for call in committed:
        if call.row >= len(valid) or not valid[call.row, call.view]:
            yield f"call {call.id} is committed, but row {call.row} view {call.view} of {store.folder} is not there"
