"""One loading for several students: the data of the last one, for the next that learns from the same.

Digests are computed when data are read; what is kept was whole then, and is not read again.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field, replace

from ground.geometry import Rendering
from models.compute import Compute
from storage.rows import Rows
from storage.store import Store
from storage.store_ledger import newest_head
from student_train.data import StudentData
from student_train.needs import Wanted
from student_train.streamed_data import Streaming, load_data


@dataclass(slots=True)
class SharedData:
    """What was loaded last, the newest at the end.

    Args:
        keep: how many at most; one takes no more memory than loading for each student.
    """

    keep: int = 1
    _kept: dict[Hashable, StudentData] = field(default_factory=dict)

    def load(
        self,
        store: Store,
        n: int | None,
        wanted: Wanted,
        compute: Compute,
        rendering: Rendering | None = None,
        streaming: Streaming | None = None,
    ) -> StudentData:
        """As `load_data`, reading only where the same was not read from the store as it is now.

        Raises:
            StoreUnreadable, StoreIncomplete, InvalidInput: as there; rows may have been taken back since.
        """
        rows = store.manifest.n if n is None else n
        outputs = (frozenset(wanted.teacher), wanted.parameters, wanted.unstreamable is None)
        rest = (wanted.rest, wanted.rest_labels)
        key = (store.place.resolve(), store.manifest.digest, rows, outputs, rest, compute, rendering, streaming)
        found = self._kept.pop(key, None)
        if found is None:
            # Before loading, so that both never have to fit.
            for oldest in list(self._kept)[: len(self._kept) - self.keep + 1]:
                del self._kept[oldest]
            found = load_data(store, n, wanted, compute, rendering, streaming)
        else:
            store.require_rows(Rows.first(rows))
            found = replace(found, ledger_head=newest_head(store, witnessed=True), manifest=store.manifest)
        self._kept[key] = found
        return found
