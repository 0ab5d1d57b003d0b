"""Worker processes that train students, and one that dies takes no other with it.

Each worker holds one thread pool and trains one run after another. It says what happens over a pipe; what it prints
goes into the run's `train.log`. When the process that started it ends in any way, so does the worker: what it was
training is kept as of its last evaluations, and goes on when the grid is run again.
"""

from __future__ import annotations

import contextlib
import json
import logging
import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

import torch

from experiments.plan import PlannedRun
from ground.errors import CKDError, Interrupted, StoreBusy
from models.compute import Compute
from storage.run_record import Failure
from student_train.run_folder import RunFolder
from student_train.shared_data import SharedData
from student_train.trainer import Trainer

LOG = "train.log"
_POLL_SECONDS = 0.2
_JOBS_ON_A_GPU = 4
_SAFE_PATH = "PYTHONSAFEPATH"


def default_jobs(device: str) -> int:
    """A core for each student on a CPU; a few students share a GPU."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, _JOBS_ON_A_GPU) if Compute.choose(device).device.type != "cpu" else cores


@dataclass(frozen=True, slots=True)
class Evaluated:
    """A run reached an evaluation; `row` is a row of its metrics.csv."""

    run: PlannedRun
    row: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Finished:
    """A run ended well; `result` is its run.json."""

    run: PlannedRun
    result: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Failed:
    """A run ended badly; `reason` is a sentence, and failure.json has it too."""

    run: PlannedRun
    reason: str


@dataclass(frozen=True, slots=True)
class Stopped:
    """A run was asked to stop and can go on."""

    run: PlannedRun


Event = Evaluated | Finished | Failed | Stopped


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSettings:
    """What every worker is told once.

    Args:
        out: the grid's folder.
        threads: of each worker; results may differ in their last digits with another number.
    """

    out: Path
    device: str
    precision: str
    threads: int = 1


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

    def train(self, runs: Sequence[PlannedRun], should_stop: Callable[[], bool]) -> Iterator[Event]:
        """Train all runs, in about this order; yields what happens until nothing is under way any more.

        Args:
            should_stop: once it says so, no run is begun, and those under way stop after the step in hand.
        """
        waiting = list(reversed(runs))
        while True:
            if should_stop():
                self._stop()
            else:
                self._hand_out(waiting)
            busy = [worker for worker in self._workers if worker.run is not None]
            if not busy:
                return
            ready = wait([worker.connection for worker in busy], timeout=_POLL_SECONDS)
            for worker in busy:
                if worker.connection in ready:
                    yield self._hear(worker)

    def _stop(self) -> None:
        if self._stopping:
            return
        self._stopping = True
        for worker in self._workers:
            if worker.run is not None and worker.process.pid is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(worker.process.pid, signal.SIGTERM)

    def _hand_out(self, waiting: list[PlannedRun]) -> None:
        idle = [worker for worker in self._workers if worker.run is None]
        while waiting and (idle or len(self._workers) < self.jobs):
            worker = idle.pop() if idle else self._start()
            worker.run = waiting.pop()
            with contextlib.suppress(BrokenPipeError):  # it died: heard of when we listen
                worker.connection.send(worker.run)

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


def record_failure(out: Path, run: PlannedRun, kind: str, reason: str) -> Failed:
    """Write failure.json beside what the run has kept."""
    folder = out / run.folder
    folder.mkdir(parents=True, exist_ok=True)
    at = datetime.now(UTC).isoformat(timespec="seconds")
    Failure(error=reason, kind=kind, at=at).save(folder)
    return Failed(run, reason)


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
            connection.send(_train(run, settings, connection, shared))


def _interrupt(*_: object) -> None:
    """Stop at once; while a run trains, its trainer has a handler that finishes the step."""
    raise Interrupted("stopped before the training began")


def _end_with(watched: Connection) -> None:
    """Leave as soon as the other end is gone, however that happened."""
    with contextlib.suppress(EOFError, OSError):
        watched.recv_bytes()
    os._exit(1)


def _train(run: PlannedRun, settings: WorkerSettings, connection: Connection, shared: SharedData) -> Event:
    folder = settings.out / run.folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _logging_to(folder / LOG):
            return _train_logged(run, settings, connection, shared, folder)
    except OSError as error:
        return Failed(run, f"{error.filename or folder} cannot be written to ({error.strerror})")


def _train_logged(
    run: PlannedRun, settings: WorkerSettings, connection: Connection, shared: SharedData, folder: Path
) -> Event:
    try:
        compute = Compute.choose(settings.device, settings.precision)
        trainer = Trainer.open(
            run.config, settings.out / run.store, run.n, run.spec, compute, RunFolder(folder), load=shared.load
        )
        logging.info("loaded; training goes on, or begins")
        result = trainer.run(resume=True, on_eval=lambda row: connection.send(Evaluated(run, dict(row))))
    except Interrupted:
        return Stopped(run)
    except StoreBusy as error:
        return Failed(run, str(error))  # another training is at it: nothing went wrong with this one
    except CKDError as error:
        return record_failure(settings.out, run, type(error).__name__, str(error))
    except Exception as error:
        # A run that fails in a way nobody thought of stops no other; its log keeps the traceback.
        traceback.print_exc()
        name, said = type(error).__name__, str(error).partition("\n")[0]
        return record_failure(settings.out, run, name, f"{name}: {said}; the traceback is in {run.folder}/{LOG}")
    return Finished(run, json.loads(json.dumps(result)))


@contextlib.contextmanager
def _logging_to(path: Path) -> Iterator[None]:
    """Everything printed, by C code too, is appended to a file."""
    # O_NONBLOCK: a pipe in place of the file is an error, and does not make us wait.
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    before = os.dup(1), os.dup(2)
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
    logging.basicConfig(level="INFO", format="%(asctime)s %(message)s", force=True)
    logging.info("begun by process %d", os.getpid())
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, kept in zip((1, 2), before, strict=True):
            os.dup2(kept, number)
            os.close(kept)
