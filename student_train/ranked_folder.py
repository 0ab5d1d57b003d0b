"""A run's folder of several ranks: the first one reads and writes, and tells the others what it has read."""

from __future__ import annotations

import io
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from ground.documents import typed
from ground.errors import Interrupted, InvalidInput
from ground.places import Place
from ground.ranks import ALONE, Ranks
from models import Network
from storage.manifest import Manifest
from storage.run_record import RunRecord, RunSettings
from student_train.run_folder import RunFolder


@dataclass(frozen=True, slots=True)
class RankedFolder(RunFolder):
    """Where a training of several ranks keeps its files; only the first rank has to reach it.

    Args:
        ranks: all of them call the same methods in the same order, but for those that only write.
    """

    ranks: Ranks = ALONE

    @contextmanager
    def opened(self, *, resume: bool) -> Iterator[None]:
        """See `RunFolder.opened`; no rank leaves it before what it was left for is written."""
        if not self.ranks.is_first:
            yield from self._waiting()
            return
        with self._plain.opened(resume=resume):
            yield from self._waiting()

    @property
    def _plain(self) -> RunFolder:
        """The folder as the first rank alone works in it."""
        return RunFolder(self.path)

    def _waiting(self) -> Iterator[None]:
        try:
            yield
        except Interrupted:
            self.ranks.any(False)
            raise
        self.ranks.any(False)

    def check(self, *, resume: bool) -> None:
        """See `RunFolder.check`."""
        self._told(lambda: self._plain.check(resume=resume))

    def finished(self, settings: RunSettings, stores: Collection[str] = ()) -> dict[str, Any] | None:
        """See `RunFolder.finished`; raises `InvalidInput` too where the first rank has other settings."""
        self._require_same_command(settings)
        found: dict[str, Any] | None = self._told(lambda: self._plain.finished(settings, stores))
        return found

    def started(self) -> RunSettings | None:
        """See `RunFolder.started`."""
        found = self._told(lambda: None if (begun := self._plain.started()) is None else begun.document())
        return None if found is None else typed(found, RunSettings)

    def load_state(self, settings: RunSettings, stores: Collection[str] = ()) -> dict[str, Any] | None:
        """See `RunFolder.load_state`."""
        state: dict[str, Any] | None = self._told(lambda: self._plain.load_state(settings, stores))
        return state

    def save_state(self, state: Mapping[str, Any]) -> None:
        """See `RunFolder.save_state`."""
        if self.ranks.is_first:
            self._plain.save_state(state)

    def save_metrics(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """See `RunFolder.save_metrics`."""
        if self.ranks.is_first:
            self._plain.save_metrics(rows)

    def save_result(self, student: Network, record: RunRecord, store: Place, manifest: Manifest) -> None:
        """See `RunFolder.save_result`."""
        if self.ranks.is_first:
            self._plain.save_result(student, record, store, manifest)

    def _told(self, read: Callable[[], Any]) -> Any:
        """What the first rank reads: tensors, numbers and text, or nothing."""
        content = io.BytesIO()
        if self.ranks.is_first:
            torch.save(read(), content)
        return torch.load(io.BytesIO(self.ranks.told(content.getvalue())), weights_only=True, map_location="cpu")

    def _require_same_command(self, settings: RunSettings) -> None:
        ours, firsts = settings.document(), self._told(settings.document)
        differing = [name for name in firsts.keys() | ours.keys() if firsts.get(name) != ours.get(name)]
        if differing:
            name = min(differing)
            raise InvalidInput(
                f"rank {self.ranks.rank} has {name} {ours.get(name)}, and the first rank {firsts.get(name)}; start "
                "every rank with the same command, from the same store"
            )
