"""Answers that were paid for already, in this store or in another one that shares the ledger."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from storage.errors import InvalidInput, StoreUnreadable
from storage.ledger import RecordedCall
from storage.manifest import EXTENSION, Identity
from storage.schema import OutputSpec
from storage.store import Store


class PaidAnswers:
    """Reads what recorded calls returned, from the stores that keep it.

    Args:
        store: the store that is being built; others are opened when they are needed.
    """

    def __init__(self, store: Store) -> None:
        self._own = store
        self._stores = {store.manifest.store_id: store}

    def read(self, calls: Sequence[RecordedCall], outputs: Sequence[OutputSpec]) -> dict[str, np.ndarray]:
        """Output name -> values, (1, ...), of one input, checked by digest.

        Args:
            calls: the committed calls on that input.

        Raises:
            InvalidInput: the store that keeps an output cannot be read, or kept something else.
            StoreUnreadable: what it keeps is not what the teacher returned.
        """
        values: dict[str, np.ndarray] = {}
        for output in outputs:
            call = keeper_of(calls, output)
            store = self._open(call)
            require_alike(store, self._own.manifest.identity, call, output)
            cell = call.row * store.manifest.identity.views + call.view
            read, digests = store.read_cell(cell, (output,))
            if digests[0].tobytes() != call.digest_of(output.name):
                raise StoreUnreadable(
                    f"{output.name} of row {call.row} of {store.folder} is not what call {call.id} of the ledger "
                    f"returned; see what can be done with: ckd-cache repair --store {store.folder}"
                )
            values |= read
        return values

    def _open(self, call: RecordedCall) -> Store:
        if call.store not in self._stores:
            self._stores[call.store] = open_keeper(call)
        return self._stores[call.store]


def keeper_of(calls: Iterable[RecordedCall], output: OutputSpec) -> RecordedCall:
    """The call that kept an output; raises `InvalidInput` if none did."""
    found = list(calls)
    for call in found:
        if output.name in call.outputs:
            return call
    raise InvalidInput(
        f"call {found[0].id} is paid for, and {output.name} was not kept of it; give fewer --features, add it to the "
        f"store at {found[0].location} with ckd-cache extend, or use another --ledger"
    )


def open_keeper(call: RecordedCall) -> Store:
    """The store that keeps a call's outputs; after an extension that is the one that took its place."""
    folder = Path(call.location)
    try:
        store = Store.open(folder)
        if store.manifest.store_id != call.store and (folder / EXTENSION).exists():
            staged = Store.open(folder, EXTENSION)
            store = staged if staged.manifest.store_id == call.store else store
    except (StoreUnreadable, OSError) as error:
        raise InvalidInput(
            f"call {call.id} is paid for and kept in a store at {call.location} that cannot be read; "
            "bring it back, or use another --ledger"
        ) from error
    return store


def require_alike(store: Store, ours: Identity, call: RecordedCall, output: OutputSpec) -> None:
    """Raise `InvalidInput` when a store keeps an output in another type, or of another precision, than ours."""
    theirs = store.manifest.identity
    if output not in theirs.outputs or theirs.teacher != ours.teacher:
        raise InvalidInput(
            f"call {call.id} is paid for, and what is at {call.location} keeps something else of it; "
            "give the same --features, --feature-dtype and --precision, or use another --ledger"
        )
