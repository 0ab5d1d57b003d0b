"""Builders as processes that tests watch, stop and kill; see `shared_builder`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import sqlalchemy as sa

from storage.ledger import Ledger
from storage.ledger_tables import calls
from tests.teacher_cache.shared_builder import Job

ROOT = Path(__file__).parents[2]


def committed_calls(ledger: Ledger) -> Counter[bytes]:
    """How many committed calls each input has."""
    query = sa.select(calls.c.input_digest).where(calls.c.status == "committed")
    with ledger.reading() as connection:
        return Counter(connection.execute(query).scalars())


class Builders:
    """Starts builders as processes of their own; see `shared_builder`."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "tests.teacher_cache.shared_builder"]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        self._parent = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._started: list[Builder] = []

    def start(self, job: Job) -> Builder:
        self._parent.stdin.write(json.dumps(asdict(job)) + "\n")
        self._parent.stdin.flush()
        self._started.append(Builder(job, int(self._parent.stdout.readline())))
        return self._started[-1]

    def end(self) -> None:
        """Kill those of the last test that are still there."""
        for builder in self._started:
            if builder.state():
                builder.signal(signal.SIGKILL)
        self._started.clear()

    def close(self) -> None:
        self.end()
        self._parent.stdin.close()
        self._parent.wait(timeout=30)
        self._parent.stdout.close()


class Builder:
    """A builder's process."""

    def __init__(self, job: Job, pid: int) -> None:
        self.job, self.pid = job, pid

    def state(self) -> str:
        """One letter, as the kernel gives it: T when it is stopped, nothing when it has ended."""
        try:
            stat = Path(f"/proc/{self.pid}/stat").read_text()
        except (FileNotFoundError, ProcessLookupError):
            return ""
        return stat.rpartition(") ")[2][0].replace("Z", "").replace("X", "")

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def wait(self, seconds: float = 60.0) -> dict:
        """What became of it; empty if it was killed."""
        wait_until(lambda: not self.state(), seconds, f"{self.job.name} does not end\n{self.log()}")
        path = Path(self.job.folder, f"{self.job.name}.json")
        return json.loads(path.read_text()) if path.exists() else {}

    def wait_until_stopped(self) -> None:
        wait_until(lambda: self.state() in ("T", ""), 30, f"{self.job.name} never stopped\n{self.log()}")
        assert self.state() == "T", self.wait()

    def log(self) -> str:
        path = Path(self.job.folder, f"{self.job.name}.log")
        return path.read_text() if path.exists() else ""


def wait_until(happened, seconds: float, otherwise: str) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, otherwise
        time.sleep(0.01)


def forwards(folder: Path) -> int:
    """Teacher calls that happened, counted outside the ledger."""
    path = folder / "forwards"
    return sum(int(line) for line in path.read_text().split()) if path.exists() else 0
