"""A process of a Ray cluster that trains one run after another."""

from __future__ import annotations

import os
import queue
import socket
from collections.abc import Mapping

import torch

from experiments.engines.contract import Evaluated, Event, WorkerSettings
from experiments.engines.training import train_run
from experiments.plan import PlannedRun
from ground.ray_cluster import move_in
from ground.terminal import StopRequest, stopped_by
from storage.store_ledger import leaving_own_ledgers
from student_train.shared_data import SharedData
from teacher_cache.place import Place

_LONGEST_SILENCE = 1.0


class TrainerAtWork:
    """Trains, says how it goes, and stops when it is told to, each called from elsewhere.

    Args:
        environment, folder: of the process that started it.
        boot: of that process's machine. On any other one, ledgers in stores' folders, which are SQLite, are left alone.
    """

    def __init__(self, environment: Mapping[str, str], folder: str, boot: str, settings: WorkerSettings) -> None:
        move_in(environment, folder)
        torch.set_num_threads(settings.threads)
        is_elsewhere = Place.of(settings.out).boot != boot
        self._why_not = "SQLite is for the machine that the grid is run from" if is_elsewhere else None
        self._settings, self._shared = settings, SharedData()
        self._said: queue.SimpleQueue[Evaluated] = queue.SimpleQueue()
        self._stop = StopRequest()

    def where(self) -> str:
        """Host and process, for people."""
        return f"{socket.gethostname()}, process {os.getpid()}"

    def train(self, run: PlannedRun) -> Event:
        """See `train_run`."""
        with stopped_by(self._stop), leaving_own_ledgers(self._why_not):
            return train_run(run, self._settings, self._shared, self._said.put)

    def heard(self) -> list[Evaluated]:
        """What was said since the last time; waits a moment for something."""
        try:
            said = [self._said.get(timeout=_LONGEST_SILENCE)]
        except queue.Empty:
            return []
        while not self._said.empty():
            said.append(self._said.get())
        return said

    def stop(self) -> None:
        """Finish the step in hand; nothing is trained after that."""
        self._stop.requested = True
