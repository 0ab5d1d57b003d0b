"""Worker processes that train students, and one that dies takes no other with it.

Each worker holds one thread pool and trains one run after another. It says what happens over a pipe; what it prints
goes into the run's `train.log`. When the process that started it ends in any way, so does the worker: what it was
training is kept as of its last evaluations, and goes on when the grid is run again.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path

import torch

from experiments.engines.contract import Evaluated, Event, Stopped, WorkerSettings
from experiments.engines.training import record_failure, train_run
from experiments.plan import PlannedRun
from ground.errors import Interrupted
from models.compute import Compute
from student_train.shared_data import SharedData

_JOBS_ON_A_GPU = 4
_SAFE_PATH = "PYTHONSAFEPATH"


def default_jobs(device: str) -> int:
    """A core for each student on a CPU; a few students share a GPU."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, _JOBS_ON_A_GPU) if Compute.choose(device).device.type != "cpu" else cores


@dataclass(frozen=True, slots=True)
class LocalEngine:
    """So many workers on this machine; it needs nothing that could be missing."""

    jobs: int

    @contextlib.contextmanager
    def opened(self, out: Path, device: str) -> Iterator[LocalEngine]:
        """Itself."""
        yield self

    def executor(self, settings: WorkerSettings, num_runs: int) -> WorkerPool:
        """No more workers than there are runs."""
        return WorkerPool(min(self.jobs, num_runs), settings)


@dataclass(slots=True)
class _Worker:
    """A process with the run it is training."""

    process: SpawnProcess
    connection: Connection
    lifeline: Connection
    run: PlannedRun | None = None


@dataclass(slots=True)
class WorkerPool:
    """So many workers; a `with` block, at the end of which none is left.

    Args:
        jobs: runs trained at the same time.
    """

    jobs: int
    settings: WorkerSettings
    _workers: list[_Worker] = field(default_factory=list)
    _stopping: bool = False

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.lifeline.close()
            worker.connection.close()
        for worker in self._workers:
            worker.process.join(timeout=10)
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()

    @property
    def under_way(self) -> int:
        """Runs that were submitted and have not ended."""
        return sum(worker.run is not None for worker in self._workers)

    @property
    def room(self) -> int:
        """Runs that can be submitted now."""
        return self.jobs - self.under_way

    def submit(self, run: PlannedRun) -> None:
        """Have a worker that has nothing to do train a run, or a new one."""
        idle = [worker for worker in self._workers if worker.run is None]
        worker = idle.pop() if idle else self._start()
        worker.run = run
        with contextlib.suppress(BrokenPipeError):  # it died: heard of when we listen
            worker.connection.send(run)

    def wait(self, seconds: float) -> list[Event]:
        """What workers said, or that they died."""
        busy = [worker for worker in self._workers if worker.run is not None]
        ready = wait([worker.connection for worker in busy], timeout=seconds)
        return [self._hear(worker) for worker in busy if worker.connection in ready]

    def cancel(self) -> None:
        """Have those under way stop after the step in hand."""
        self._stopping = True
        for worker in self._workers:
            if worker.run is not None and worker.process.pid is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(worker.process.pid, signal.SIGTERM)

    def _start(self) -> _Worker:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        watched, lifeline = context.Pipe(duplex=False)
        process = context.Process(target=_work, args=(theirs, watched, self.settings), daemon=True)
        with _ignoring_interrupts(), _not_importing_from_here():
            process.start()
        theirs.close()
        watched.close()
        worker = _Worker(process, ours, lifeline)
        self._workers.append(worker)
        return worker

    def _hear(self, worker: _Worker) -> Event:
        assert worker.run is not None
        run = worker.run
        try:
            event: Event = worker.connection.recv()
        except (EOFError, OSError):  # cut off in the middle of a message, too
            return self._bury(worker, run)
        if not isinstance(event, Evaluated):
            worker.run = None
        return event

    def _bury(self, worker: _Worker, run: PlannedRun) -> Event:
        """A worker that died failed its run; another takes its place."""
        self._workers.remove(worker)
        worker.connection.close()
        worker.lifeline.close()
        worker.process.join()
        if self._stopping:
            return Stopped(run)
        code = worker.process.exitcode or 0
        how = f"was killed by signal {-code} ({signal.Signals(-code).name})" if code < 0 else f"ended with code {code}"
        advice = "; was memory short? give fewer --jobs" if code == -signal.SIGKILL else ""
        return record_failure(self.settings.out, run, "WorkerDied", f"the process that trained it {how}{advice}")


@contextlib.contextmanager
def _ignoring_interrupts() -> Iterator[None]:
    """A process that is started here does not hear Ctrl-C while it is still loading."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def _not_importing_from_here() -> Iterator[None]:
    """A process that is started here does not look for modules in the working directory, as `python -c` does: there a
    stranger's signal.py would be imported in the place of Python's.
    """
    before = os.environ.get(_SAFE_PATH)
    os.environ[_SAFE_PATH] = "1"
    try:
        yield
    finally:
        del os.environ[_SAFE_PATH]
        if before is not None:
            os.environ[_SAFE_PATH] = before


# In the worker


def _work(connection: Connection, watched: Connection, settings: WorkerSettings) -> None:
    """Train one run after another until the pipe closes."""
    # Ctrl-C reaches the whole process group; only who started us decides what it means.
    os.setsid()
    threading.Thread(target=_end_with, args=(watched,), daemon=True).start()
    signal.signal(signal.SIGTERM, _interrupt)
    torch.set_num_threads(settings.threads)
    shared = SharedData()
    with contextlib.suppress(EOFError, Interrupted):
        while True:
            run: PlannedRun = connection.recv()
            connection.send(train_run(run, settings, shared, connection.send))


def _interrupt(*_: object) -> None:
    """Stop at once; while a run trains, its trainer has a handler that finishes the step."""
    raise Interrupted("stopped before the training began")


def _end_with(watched: Connection) -> None:
    """Leave as soon as the other end is gone, however that happened."""
    with contextlib.suppress(EOFError, OSError):
        watched.recv_bytes()
    os._exit(1)
