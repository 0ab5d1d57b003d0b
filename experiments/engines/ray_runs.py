"""`--engine ray`: students are trained by actors of a Ray cluster, none of which Ray starts again.

An actor that died is replaced, and its run goes on from what its folder holds; how often is bounded.
"""

from __future__ import annotations

import logging
import math
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from experiments.engines.at_work import TrainerAtWork
from experiments.engines.contract import Event, Stopped, WorkerSettings
from experiments.engines.training import record_failure
from experiments.plan import PlannedRun
from ground.errors import InvalidInput
from ground.ray_cluster import Cluster, Share, carried_environment, joined, why_died
from teacher_cache.engines.nodes import require_nodes
from teacher_cache.place import Place

log = logging.getLogger(__name__)

_RUNS_ON_A_GPU = 4
MOST_DEATHS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class RayEngine:
    """Where runs are trained.

    Args:
        jobs: at the same time; None for as many as the cluster holds.
        address: of a cluster; None for $RAY_ADDRESS, or one of this machine alone.
        cpus, gpus: of each run; no GPUs said is a quarter of one where the cluster has any, and the device is not the
            CPU.
    """

    jobs: int | None = None
    address: str | None = None
    cpus: float = 1.0
    gpus: float | None = None

    def check(self, device: str) -> None:
        """Raise `InvalidInput` for what means nothing together; no cluster is needed for that."""
        if not self.cpus and not self.gpus:
            raise InvalidInput("--cpus-per-run 0 leaves nothing to share out; give each run some of a CPU, or of a GPU")
        Share(gpus=self.gpus or 0.0).check(device, "--gpus-per-run")

    @contextmanager
    def opened(self, out: Path, device: str) -> Iterator[RayWorkplace]:
        """Connect, and ask every node what it has."""
        with joined(self.address, cpus=math.ceil((self.jobs or 1) * self.cpus)) as cluster:
            share = Share(cpus=self.cpus, gpus=self._gpus(cluster, device))
            room = cluster.capacity(share)
            if room < (self.jobs or 1):
                raise InvalidInput(
                    f"the Ray cluster holds {room} runs of {share.cpus:g} CPUs and {share.gpus:g} GPUs each, and "
                    f"{self.jobs or 1} are asked for; ask for fewer --jobs, or give each less with --cpus-per-run or "
                    "--gpus-per-run"
                )
            if require_nodes(cluster, files=[], folders=[out]) > 1:
                log.info(
                    "runs on other machines leave the stores' ledgers alone; what proves their results is beside them"
                )
            yield RayWorkplace(cluster, share, self.jobs or room)

    def _gpus(self, cluster: Cluster, device: str) -> float:
        if self.gpus is not None:
            return self.gpus
        return 1 / _RUNS_ON_A_GPU if device != "cpu" and cluster.gpus else 0.0


@dataclass(frozen=True, slots=True)
class RayWorkplace:
    """A cluster that has what a grid needs."""

    cluster: Cluster
    share: Share
    jobs: int

    def executor(self, settings: WorkerSettings, num_runs: int) -> RayExecutor:
        """No more actors than there are runs."""
        settings = replace(
            settings,
            out=settings.out.absolute(),
            # A GPU that it was not given is another's.
            device=settings.device if self.share.gpus else "cpu",
        )
        return RayExecutor(self.cluster, self.share, min(self.jobs, num_runs), settings)


@dataclass(slots=True)
class _Worker:
    """An actor with the run it is training, and what it was asked."""

    actor: Any
    placed: Any
    run: PlannedRun | None = None
    training: Any = None
    hearing: Any = None


class RayExecutor:
    """See `experiments.engines.contract.Executor`."""

    def __init__(self, cluster: Cluster, share: Share, jobs: int, settings: WorkerSettings) -> None:
        self._cluster, self._share, self._jobs, self._settings = cluster, share, jobs, settings
        self._workers: list[_Worker] = []
        self._deaths: Counter[str] = Counter()
        self._never_begun: list[Event] = []
        self._is_stopping = False
        self._boot = Place.of(settings.out).boot

    def __enter__(self) -> RayExecutor:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            self._cluster.dismiss(worker.actor)
        self._workers.clear()

    @property
    def under_way(self) -> int:
        """Runs that were submitted and have not ended."""
        return sum(worker.run is not None for worker in self._workers) + len(self._never_begun)

    @property
    def room(self) -> int:
        """Runs that can be submitted now."""
        return self._jobs - self.under_way

    def submit(self, run: PlannedRun) -> None:
        """Have an actor that has nothing to do train a run, or a new one."""
        idle = [worker for worker in self._workers if worker.run is None]
        worker = idle.pop() if idle else self._start()
        worker.run = run
        worker.training, worker.hearing = worker.actor.train.remote(run), worker.actor.heard.remote()

    def _start(self) -> _Worker:
        actor = self._cluster.start(
            TrainerAtWork, self._share, carried_environment(), os.getcwd(), self._boot, self._settings
        )
        worker = _Worker(actor, actor.where.remote())
        self._workers.append(worker)
        return worker

    def wait(self, seconds: float) -> list[Event]:
        """What actors said, or that runs ended."""
        if self._never_begun:
            stopped, self._never_begun = self._never_begun, []
            return stopped
        ray, busy = self._cluster.ray, [worker for worker in self._workers if worker.run is not None]
        asked = [reference for worker in busy for reference in (worker.hearing, worker.training)]
        ray.wait(asked, num_returns=1, timeout=seconds)
        answered = set(ray.wait(asked, num_returns=len(asked), timeout=0)[0])
        return [event for worker in busy for event in self._hear(worker, answered)]

    def _hear(self, worker: _Worker, answered: set[Any]) -> Iterator[Event]:
        ray, run = self._cluster.ray, worker.run
        assert run is not None
        try:
            if worker.training in answered:
                event: Event = ray.get(worker.training)
                worker.run = None
                yield event
            elif worker.hearing in answered:
                said = ray.get(worker.hearing)
                worker.hearing = worker.actor.heard.remote()
                # What it still had to say of the run before is of no use any more.
                yield from (event for event in said if event.run.folder == run.folder)
        except ray.exceptions.RayTaskError:
            raise  # a bug, with its traceback there
        except ray.exceptions.RayError as error:
            yield from self._bury(worker, run, why_died(error))

    def _bury(self, worker: _Worker, run: PlannedRun, why: str) -> Iterator[Event]:
        """A run whose actor died goes on in another, if that does not happen too often."""
        self._workers.remove(worker)
        self._cluster.dismiss(worker.actor)
        self._deaths[run.folder] += 1
        if self._is_stopping:
            yield Stopped(run)
        elif self._deaths[run.folder] < MOST_DEATHS:
            log.warning("%s: the process that trained it is gone (%s); it goes on in another", run.folder, why)
            self.submit(run)
        else:
            yield record_failure(
                self._settings.out,
                run,
                "WorkerDied",
                f"{MOST_DEATHS} processes that trained it died, the last one since {why}; was memory short? give fewer "
                "--jobs, or more --cpus-per-run",
            )

    def cancel(self) -> None:
        """Have those under way stop after the step in hand; where there was no room yet, nothing is begun."""
        self._is_stopping = True
        for worker in [worker for worker in self._workers if worker.run is not None]:
            placed, _ = self._cluster.ray.wait([worker.placed], timeout=0)
            if placed:
                worker.actor.stop.remote()
                continue
            assert worker.run is not None
            self._never_begun.append(Stopped(worker.run))
            self._workers.remove(worker)
            self._cluster.dismiss(worker.actor)
