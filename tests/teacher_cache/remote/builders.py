"""Builders of one store, as processes: python -m tests.teacher_cache.remote.builders FOLDER COUNT N SHARE KILL.

COUNT builders, forked from here, build N rows in FOLDER/store with a scripted teacher that fails in SHARE of its
attempts, and writes its books to FOLDER/books; the first of them kills itself at its attempt KILL, if that is not 0,
and the others begin once it has begun to ask.
Prints how each ended, one line of JSON.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

from benchmarks.stand_ins.scripted_teacher import ScriptedTeacher, some_faults
from ground.errors import CKDError
from teacher_cache.build import build
from teacher_cache.datasets import open_dataset
from teacher_cache.prepare import prepare_build
from teacher_cache.remote.policy import RetryPolicy
from tests.teacher_cache.remote.conftest import FAST, asked

# Faults are many here, and an input may be cut off twice by chance.
PATIENT = replace(FAST, retry=RetryPolicy(attempts=30, unknowns=30, base_seconds=0.002, cap_seconds=0.02))


def run(folder: Path, place: int, n: int, share: float, kill: int, **settings: int) -> str:
    """One builder; what became of it."""
    digits = open_dataset("digits")

    begun = folder / "begun"

    def on_attempt(count: int) -> None:
        begun.touch()
        if place == 0 and kill and count == kill:
            os.kill(os.getpid(), signal.SIGKILL)

    until = time.monotonic() + 60
    while place and kill and not begun.exists() and time.monotonic() < until:
        time.sleep(0.01)
    faults = some_faults(share, seed=place)
    teacher = ScriptedTeacher.of(digits, faults=faults, latency=0.01, on_attempt=on_attempt, books=folder / "books")
    try:
        build(*prepare_build(asked(folder / "store", n, PATIENT, lease_seconds=2.0, **settings), digits, teacher))
    except CKDError as error:
        return f"{type(error).__name__}: {error}"
    return "done"


def main() -> None:
    folder, (count, n), share, kill = Path(sys.argv[1]), map(int, sys.argv[2:4]), float(sys.argv[4]), int(sys.argv[5])
    budgets = {name: int(text) for name, text in (word.split("=") for word in sys.argv[6:])}
    children = []
    for place in range(count):
        child = os.fork()
        if child == 0:
            outcome = "error"
            try:
                outcome = run(folder, place, n, share, kill, **budgets)
            finally:
                (folder / f"outcome-{place}").write_text(outcome)
                os._exit(0)
        children.append(child)
    for child in children:
        os.waitpid(child, 0)
    files = [folder / f"outcome-{place}" for place in range(count)]
    print(json.dumps([file.read_text() if file.exists() else "killed" for file in files]))


if __name__ == "__main__":
    main()
