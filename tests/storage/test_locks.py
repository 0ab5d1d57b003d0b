"""Locks exclude each other between processes, and end with their holder."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from ground.errors import StoreBusy
from storage.locks import CellLocks, FileLock, exclusive_lock, is_held

ROOT = Path(__file__).parents[2]
HOLDER = """
import sys, time
from contextlib import ExitStack
from pathlib import Path
from storage.locks import CellLocks, FileLock, exclusive_lock

path, what = Path(sys.argv[1]), sys.argv[2]
with ExitStack() as stack:
    if what == "alone":
        stack.enter_context(exclusive_lock(path, ""))
    elif what == "shared":
        assert stack.enter_context(FileLock(path)).try_shared()
    else:
        stack.enter_context(stack.enter_context(CellLocks(path)).held([(2, 3), (9, 1)]))
    print("held", flush=True)
    time.sleep(600)
"""


@contextmanager
def held_by_another(path: Path, what: str) -> Iterator[None]:
    """A process that has a lock until the block ends, when it is killed."""
    command = [sys.executable, "-c", HOLDER, path, what]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "held\n"
            yield
        finally:
            process.kill()


def test_a_lock_held_alone_keeps_others_out_until_its_holder_dies(tmp_path):
    path = tmp_path / "lock"
    with held_by_another(path, "alone"):
        assert is_held(path)
        with pytest.raises(StoreBusy, match="somebody is at work"), exclusive_lock(path, "somebody is at work"):
            pass
        with FileLock(path) as lock:
            assert not lock.try_shared()
    assert not is_held(path)
    with exclusive_lock(path, ""):
        assert is_held(path)


def test_a_shared_lock_is_shared_and_keeps_out_who_wants_it_alone(tmp_path):
    path = tmp_path / "lock"
    with held_by_another(path, "shared"), FileLock(path) as lock:
        assert lock.try_shared()
        assert not lock.try_exclusive()
        lock.release()
        assert is_held(path), "the other one has it still"


def test_a_file_that_is_not_there_is_not_held_and_not_made(tmp_path):
    assert not is_held(tmp_path / "lock")
    assert not (tmp_path / "lock").exists()


def test_a_cell_is_held_alone_and_its_neighbours_are_free(tmp_path):
    path = tmp_path / "cells.lock"
    with held_by_another(path, "cells"), CellLocks(path) as locks:
        with ExitStack() as stack:
            assert [cell for cell in range(12) if not locks.take(cell, stack)] == [2, 3, 4, 9]
        with locks.held([(0, 2), (5, 4)]):
            pass
    with CellLocks(path) as locks, locks.held([(2, 3)]):
        pass
