"""Locks exclude each other between processes, and end with their holder."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from ground.errors import InvalidInput, StoreBusy
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


@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_a_lock_that_is_a_link_or_a_pipe_is_refused_at_once(tmp_path, kind):
    path, victim = tmp_path / "build.lock", tmp_path / "victim"
    path.symlink_to(victim) if kind == "link" else os.mkfifo(path)
    for lock in (FileLock(path), CellLocks(path), exclusive_lock(path, "")):
        with pytest.raises(InvalidInput, match=r"build\.lock is no file of its own, but a link"), lock:
            pass
    assert not is_held(path)
    assert not victim.exists()


@pytest.mark.parametrize("number", [13, 30])
def test_who_can_only_read_a_pipe_in_place_of_a_lock_does_not_wait_for_it(tmp_path, monkeypatch, number):
    path, real = tmp_path / "build.lock", os.open
    os.mkfifo(path)

    def refuse(path, flags, *rest, **options):
        if flags & os.O_RDWR:
            raise OSError(number, "refused", str(path))
        return real(path, flags, *rest, **options)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(InvalidInput, match="is no file of its own"), FileLock(path):
        pass
