"""Answers that were paid for already, in this store or in another one that shares the ledger."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from storage.digest import output_digests
from storage.errors import InvalidInput, StoreBusy, StoreUnreadable
from storage.ledger import RecordedCall
from storage.schema import output_array
from storage.store import Store


class PaidAnswers:
    """Reads what a recorded call returned, from the store that keeps it.

    Args:
        store: the store that is being built; others are opened when they are needed.
    """

    def __init__(self, store: Store) -> None:
        self._own = store
        self._stores = {store.manifest.store_id: store}

    def read(self, call: RecordedCall) -> dict[str, np.ndarray]:
        """Output name -> values of one call, checked by digest.

        Raises:
            StoreBusy: the call is not settled: its build is running, or was interrupted.
            InvalidInput: the store that keeps it cannot be read, or kept something else.
            StoreUnreadable: what it keeps is not what the teacher returned.
        """
        if call.status != "committed":
            raise StoreBusy(
                f"call {call.id} is charged and not settled by the build of {call.location}; wait until that ends, or "
                "run it again if it was interrupted"
            )
        store = self._open(call)
        outputs = self._own.manifest.identity.outputs
        values = {
            output.name: store.arrays.read(output_array(output.name), call.row, call.row + 1)[0, call.view]
            for output in outputs
        }
        digest = output_digests(outputs, {name: value[None] for name, value in values.items()})[0].tobytes()
        if digest != call.output_digest:
            raise StoreUnreadable(
                f"row {call.row} of {store.folder} is not what call {call.id} of the ledger returned; "
                f"see the damage with: ckd-cache verify --store {store.folder}"
            )
        return values

    def _open(self, call: RecordedCall) -> Store:
        if call.store not in self._stores:
            self._stores[call.store] = self._open_other(call)
        return self._stores[call.store]

    def _open_other(self, call: RecordedCall) -> Store:
        try:
            store = Store.open(Path(call.location))
        except StoreUnreadable as error:
            raise InvalidInput(
                f"call {call.id} is paid for and kept in a store at {call.location} that cannot be read; "
                "bring it back, or use another --ledger"
            ) from error
        ours, theirs = self._own.manifest.identity, store.manifest.identity
        kept_alike = (theirs.outputs, theirs.teacher) == (ours.outputs, ours.teacher)
        if store.manifest.store_id != call.store or not kept_alike:
            raise InvalidInput(
                f"call {call.id} is paid for, and what is at {call.location} keeps something else of it; "
                "give the same --features, --feature-dtype and --precision, or use another --ledger"
            )
        return store
