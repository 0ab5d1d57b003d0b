"""Builders that share a store or a ledger, as processes: python -m tests.teacher_cache.shared_builder.

Importing everything takes seconds, so one process does it, and forks a builder for each line of JSON on its standard
input, a `Job`; it answers with the builder's process id. A builder writes what it logs to FOLDER/NAME.log, a line of
every teacher forward to FOLDER/forwards before the forward happens, and at its end what became of it to
FOLDER/NAME.json. One that was killed leaves no such file.
"""

from __future__ import annotations

import faulthandler
import gc
import json
import logging
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from ground.errors import CKDError
from ground.places import parse_place
from storage import database, ledger_reserving
from storage.ledger import Ledger
from storage.ledger_chain import Seal
from storage.objects import Objects
from storage.stage import Stage
from storage.store import Store
from teacher_cache.build import build
from teacher_cache.buying import buy
from teacher_cache.config import BuildConfig
from teacher_cache.datasets import open_dataset
from teacher_cache.prepare import prepare_build
from teacher_cache.selection import SelectorSpec
from teacher_cache.teachers import ZooTeacher


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What a builder is to do.

    Args:
        folder: where it writes about itself.
        slow_ms: how long each teacher call takes at least, so that builders overlap.
        stop_at: the step at which it stops itself with SIGSTOP, one of `STOPS`; "" for never.
        stop_in: the how-manieth time, from 1, it comes to that step.
        idle_seconds: how long the ledger's server waits for a transaction that stands still; 0 for as long as ever.
        kill_at: the step at which it kills itself with SIGKILL, likewise; `stop_in` counts for both.
        environment: what it finds there besides.
        select, round_size: the rule that chooses rows, and how many together; "" for the order of the seed.
        start_at: seconds since the epoch before which it does not begin, so that builders begin together.
    """

    name: str
    folder: str
    store: str
    weights: str
    ledger: str | None = None
    array_format: str = "zarr"
    n: int = 96
    seed: int = 0
    budget: int | None = None
    select: str = ""
    round_size: int | None = None
    batch_size: int = 8
    lease_seconds: float = 2.0
    slow_ms: float = 0.0
    stop_at: str = ""
    kill_at: str = ""
    environment: dict[str, str] = field(default_factory=dict)
    stop_in: int = 2
    idle_seconds: float = 0.0
    start_at: float = 0.0
    trust_teacher: bool = True  # it was never trained

    def config(self) -> BuildConfig:
        return BuildConfig(
            teacher="resnet8",
            weights=Path(self.weights),
            dataset="digits",
            n=self.n,
            features="layer1",
            array_format=self.array_format,
            seed=self.seed,
            budget=self.budget,
            ledger=self.ledger,
            store=parse_place(self.store),
            batch_size=self.batch_size,
            device="cpu",
            lease_seconds=self.lease_seconds,
            trust_teacher=self.trust_teacher,
            select=SelectorSpec.read(self.select) if self.select else None,
        )


# Where a builder can be stopped: (owner, function, before it or after it). `begin` is in front of the ledger's first
# entry. In `write` and `commit` it holds the locks of
# the cells it is writing; in `transaction` the ledger's.
STOPS = {
    "open": (Ledger, "__init__", "before"),
    "begin": (Seal, "hash", "before"),
    "known": (Ledger, "known_calls", "after"),
    "call": (ZooTeacher, "call", "before"),
    "answer": (ZooTeacher, "call", "after"),
    "write": (Store, "write_outputs", "before"),
    "commit": (Ledger, "commit", "before"),
    "transaction": (ledger_reserving, "reserved_rows_digest", "after"),
    "charged": (Ledger, "reserve", "after"),
    "noted": (Stage, "note_asked", "after"),
    "written": (Store, "write_outputs", "after"),
    "staged": (Store, "publish", "after"),
    "put": (Store, "put_stage", "before"),
    "half put": (Objects, "create", "before"),
    "committed": (Ledger, "commit", "after"),
}


def stop_itself(step: str, *, at_call: int, how: signal.Signals = signal.SIGSTOP) -> None:
    """Make the process stop, or kill, itself the `at_call`-th time it comes to a step, and not in a heartbeat."""
    owner, name, moment = STOPS[step]
    original, calls, beating, beat = getattr(owner, name), [], threading.Lock(), Ledger.beat

    def beat_alone(self, session):
        with beating:
            return beat(self, session)

    Ledger.beat = beat_alone

    def stop() -> None:
        calls.append(name)
        if len(calls) == at_call:
            time.sleep(0.3)  # until the other threads have nothing in hand either
            with beating:
                os.kill(os.getpid(), how)
                time.sleep(0.1)  # another thread may take the signal; this one is not to go on meanwhile

    def wrapped(*arguments, **options):
        if moment == "before":
            stop()
        result = original(*arguments, **options)
        if moment == "after":
            stop()
        return result

    setattr(owner, name, wrapped)


def count_forwards(path: Path, slow_ms: float) -> None:
    """Append a line for each teacher forward before it happens: one write each, so that processes can share a file."""
    call = ZooTeacher.call

    def counted(self, views, outputs):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.write(descriptor, f"{len(views)}\n".encode())
        os.close(descriptor)
        time.sleep(slow_ms * len(views) / 1000)
        return call(self, views, outputs)

    ZooTeacher.call = counted


def run(job: Job) -> dict[str, object]:
    """Build, and say what became of it."""
    count_forwards(Path(job.folder, "forwards"), job.slow_ms)
    if job.idle_seconds:
        database.IDLE_SECONDS = job.idle_seconds
    if job.stop_at:
        stop_itself(job.stop_at, at_call=job.stop_in)
    if job.kill_at:
        stop_itself(job.kill_at, at_call=job.stop_in, how=signal.SIGKILL)
    os.environ.update(job.environment)
    time.sleep(max(0.0, job.start_at - time.time()))
    try:
        if job.select:
            report = buy(job.config(), job.round_size, lambda prepared, report: build(*prepared, report=report))
        else:
            report = build(*prepare_build(job.config()))
    except CKDError as error:
        return {"exit_code": error.exit_code, "error": type(error).__name__, "message": str(error)}
    return {"exit_code": 0, **asdict(report), "store": job.store}


def become_builder(job: Job) -> None:
    """What a forked process does with the rest of its life."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    log = os.open(Path(job.folder, f"{job.name}.log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(log, stream)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    logging.basicConfig(level="INFO", format="%(message)s")
    faulthandler.register(signal.SIGUSR1)  # for who wonders where it hangs
    outcome = run_reported(lambda: run(job))
    partial = Path(job.folder, f".{job.name}.json")
    partial.write_text(json.dumps(outcome))
    partial.rename(Path(job.folder, f"{job.name}.json"))


def run_reported(work: Callable[[], dict[str, object]]) -> dict[str, object]:
    """An outcome of anything at all: a test reads it, and nobody reads an exit code."""
    try:
        return work()
    except BaseException as error:
        traceback.print_exc()
        return {"exit_code": 1, "error": type(error).__name__, "message": str(error)}


def main() -> None:
    torch.set_num_threads(1)
    open_dataset("digits", data_root=None, image_size=None, download=False)  # imports what a plan needs
    gc.freeze()  # a collection in a builder would copy every page of it
    # Builders that end are nobody's to wait for.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for line in sys.stdin:
        job = Job(**json.loads(line))
        child = os.fork()
        if child == 0:
            try:
                become_builder(job)
            finally:
                os._exit(0)
        print(child, flush=True)


if __name__ == "__main__":
    main()
