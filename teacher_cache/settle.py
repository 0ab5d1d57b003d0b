"""What an interrupted build left: calls that were charged, and never committed.

A row whose outputs all match the digests written last is whole: its calls are committed without calling again. Any
other row's calls are lost: they stay spent, and the repeat is a new call.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from storage.digest import output_digests
from storage.errors import StoreUnreadable
from storage.ledger import Ledger, RecordedCall
from storage.schema import DIGEST, output_array
from storage.store import Store


@dataclass(frozen=True, slots=True)
class Leftovers:
    """Unsettled calls of a store.

    Args:
        whole: row -> digests of its V views, for rows that are whole.
        adopted, lost: the calls that belong to such rows, and the others.
    """

    whole: dict[int, list[bytes]]
    adopted: list[RecordedCall]
    lost: list[RecordedCall]


def find_leftovers(store: Store, ledger: Ledger) -> Leftovers:
    """Look, without changing anything."""
    reserved = ledger.calls_of_store(store.manifest.store_id, "reserved")
    found = {row: _whole_digests(store, row) for row in sorted({call.row for call in reserved})}
    whole = {row: digests for row, digests in found.items() if digests is not None}
    adopted = [call for call in reserved if call.row in whole]
    return Leftovers(whole, adopted, [call for call in reserved if call.row not in whole])


def settle(store: Store, ledger: Ledger) -> Leftovers:
    """Commit what is whole and mark the rest lost; needs the store's lock."""
    found = find_leftovers(store, ledger)
    store.publish([(row, 1) for row in found.whole])
    ledger.commit([call.id for call in found.adopted], [found.whole[call.row][call.view] for call in found.adopted])
    ledger.lose([call.id for call in found.lost])
    return found


def _whole_digests(store: Store, row: int) -> list[bytes] | None:
    """Digests of a row's outputs if all of them match what was written last, else None."""
    if row >= store.manifest.n:
        return None
    outputs = store.manifest.identity.outputs
    try:
        values = {output.name: store.arrays.read(output_array(output.name), row, row + 1)[0] for output in outputs}
        written = store.arrays.read(DIGEST, row, row + 1)[0]
    except StoreUnreadable:
        return None  # torn: the call is lost, and made again
    return (
        [digest.tobytes() for digest in written] if np.array_equal(output_digests(outputs, values), written) else None
    )
