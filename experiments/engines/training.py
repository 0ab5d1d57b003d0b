"""A run in the process that trains it: what it prints goes into its `train.log`, what ended it badly beside that."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

from experiments.engines.contract import Evaluated, Event, Failed, Finished, Stopped, WorkerSettings
from experiments.plan import PlannedRun
from ground.errors import CKDError, Interrupted, StoreBusy
from models.compute import Compute
from storage.run_record import Failure
from student_train.run_folder import RunFolder
from student_train.shared_data import SharedData
from student_train.trainer import Trainer

LOG = "train.log"


def train_run(
    run: PlannedRun, settings: WorkerSettings, shared: SharedData, tell: Callable[[Evaluated], None]
) -> Event:
    """Train a run in this process, or go on with it; whatever happens is an event, and in the run's folder."""
    folder = settings.out / run.folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _logging_to(folder / LOG):
            return _train_logged(run, settings, shared, tell, folder)
    except OSError as error:
        return Failed(run, f"{error.filename or folder} cannot be written to ({error.strerror})")


def _train_logged(
    run: PlannedRun, settings: WorkerSettings, shared: SharedData, tell: Callable[[Evaluated], None], folder: Path
) -> Event:
    try:
        compute = Compute.choose(settings.device, settings.precision)
        trainer = Trainer.open(
            run.config, settings.out / run.store, run.n, run.spec, compute, RunFolder(folder), load=shared.load
        )
        logging.info("loaded; training goes on, or begins")
        result = trainer.run(resume=True, on_eval=lambda row: tell(Evaluated(run, dict(row))))
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


def record_failure(out: Path, run: PlannedRun, kind: str, reason: str) -> Failed:
    """Write failure.json beside what the run has kept."""
    folder = out / run.folder
    folder.mkdir(parents=True, exist_ok=True)
    at = datetime.now(UTC).isoformat(timespec="seconds")
    Failure(error=reason, kind=kind, at=at).save(folder)
    return Failed(run, reason)
