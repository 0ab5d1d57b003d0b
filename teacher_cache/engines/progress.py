"""How far a store is that several builders work on: read from it, since each knows its own part, and the dead none."""

from __future__ import annotations

import time
from collections.abc import Callable

from ground.errors import CKDError
from teacher_cache.plan import BuildPlan, matching_store

_SECONDS_BETWEEN_LOOKS = 1.0


class StoreProgress:
    """Looks at most once a second.

    Args:
        on_progress: told of cells that became whole, whoever wrote them, and a note.
    """

    def __init__(self, plan: BuildPlan, on_progress: Callable[[int, str], None]) -> None:
        self._plan, self._on_progress = plan, on_progress
        self._missing, self._note, self._looked = len(plan.missing_cells), "", time.monotonic()

    def tell(self, note: str) -> None:
        """What is said beside, from now on; and a look, if it is time for one."""
        self._note = note
        if time.monotonic() - self._looked >= _SECONDS_BETWEEN_LOOKS:
            self.look()

    def look(self) -> None:
        """Tell of what became whole since the last look."""
        self._looked = time.monotonic()
        try:
            store = matching_store(self._plan.config.store, self._plan.identity, self._plan.array_format)
            missing = self._missing if store is None else len(store.missing_cells(self._plan.rows))
        except (CKDError, OSError):  # it is being made, or grown
            return
        self._on_progress(self._missing - missing, self._note)
        self._missing = missing
