"""Check a store against itself and against its ledger, in both directions; nothing is changed."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from storage.digest import input_digests
from storage.errors import CKDError
from storage.ledger import Ledger, RecordedCall
from storage.ledger_check import ledger_problems
from storage.schema import DIGEST, VALID, sample_arrays
from storage.store import Store

_REMEDY = "bring the file back from a copy, or build a new store with its own ledger"


def store_problems(store: Store, ledger: Ledger) -> list[str]:
    """Everything that is wrong, one sentence each; empty when the store can be trusted."""
    checks = (_sample_problems(store), _row_problems(store, ledger), _ledger_continuity(store, ledger))
    return [*(problem for check in checks for problem in check), *ledger_problems(ledger)]


def _sample_problems(store: Store) -> Iterator[str]:
    """Images, labels, views and indices that are not what the build wrote."""
    identity = store.manifest.identity
    for spec in sample_arrays(identity.geometry.image_size, identity.views):
        try:
            store.read_sample(spec.name)
        except CKDError as error:
            yield str(error)


def _row_problems(store: Store, ledger: Ledger) -> Iterator[str]:
    """Rows that are missing, changed, or not as the ledger recorded them."""
    manifest = store.manifest
    try:
        valid, digests = store.valid(), store.read(DIGEST)
        images, views = store.read("train/images"), store.read("train/views")
    except CKDError as error:
        yield str(error)
        return
    inputs = input_digests(images, views, manifest.identity.geometry)
    matches = store.matching()
    paid = ledger.known_calls(manifest.identity.teacher.fingerprint, [digest for row in inputs for digest in row])
    for row, view in np.argwhere(~valid):
        yield f"{VALID}: row {row} view {view} is not there; finish it with: {store.build_command(manifest.n)}"
    for row, view in np.argwhere(valid):
        call = paid.get(inputs[row][view])
        if not matches[row, view]:
            yield f"outputs of row {row} view {view} are missing or do not match their digest; {_REMEDY}"
        elif call is None or call.status != "committed":
            yield f"{DIGEST}: row {row} view {view} has outputs that the ledger knows no committed call for; {_REMEDY}"
        elif call.output_digest != digests[row, view].tobytes():
            yield f"{DIGEST}: row {row} view {view} is not what call {call.id} of the ledger returned; {_REMEDY}"
    yield from _missing_rows(store, ledger.calls_of_store(manifest.store_id, "committed"), valid)
    for call in ledger.calls_of_store(manifest.store_id, "reserved"):
        yield f"call {call.id} (row {call.row}) was never settled; run the build again to settle it"


def _ledger_continuity(store: Store, ledger: Ledger) -> Iterator[str]:
    """A ledger that was replaced or rolled back."""
    if store.manifest.ledger_head is None:
        return
    try:
        ledger.require_entry(store.manifest.ledger_head, store.folder)
    except CKDError as error:
        yield str(error)


def _missing_rows(store: Store, committed: list[RecordedCall], valid: np.ndarray) -> Iterator[str]:
    for call in committed:
        if call.row >= len(valid) or not valid[call.row, call.view]:
            yield f"call {call.id} is committed, but row {call.row} view {call.view} of {store.folder} is not there"
