"""Who holds a lock is said by process and program, also when it is stopped; options and folders are not repeated."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from ground.errors import StoreBusy
from storage import database
from storage.holders import Process, advice, lock_holders, named, shown_command, users
from storage.ledger import Ledger
from storage.locks import CellLocks, FileLock, exclusive_lock

pytestmark = pytest.mark.skipif(not Path("/proc/locks").exists(), reason="who holds a lock is read from /proc")

HOLDER = """
import fcntl, sqlite3, sys, time
path, what = sys.argv[1:]
if what == "transaction":
    database = sqlite3.connect(path, isolation_level=None)
    database.execute("BEGIN IMMEDIATE")
else:
    file = open(path, "r+b")
    fcntl.flock(file, fcntl.LOCK_EX) if what == "flock" else fcntl.lockf(file, fcntl.LOCK_EX, 3, 2)
print("held", flush=True)
time.sleep(600)
"""


@contextmanager
def stopped_holder(path: Path, what: str) -> Iterator[int]:
    """A process that takes a lock and is stopped, until the block ends, when it is killed."""
    command = [sys.executable, "-c", HOLDER, path, what]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "held\n"
            process.send_signal(signal.SIGSTOP)
            while "State:\tT" not in Path(f"/proc/{process.pid}/status").read_text():
                time.sleep(0.01)
            yield process.pid
        finally:
            process.kill()


def test_cells_that_a_stopped_process_holds_are_waited_for_within_bounds_and_it_is_named(tmp_path):
    path = tmp_path / "cells.lock"
    path.touch()
    with stopped_holder(path, "cells") as pid, CellLocks(path, patience_seconds=0.2) as locks:
        with locks.held([(0, 2), (5, 3)]):
            pass
        said = rf"cells 0 to 3 of .* stayed locked for 0 s: cells\.lock is held by process {pid} \(python.*\), which is"
        with pytest.raises(StoreBusy, match=rf"{said} stopped; let it go on with: kill -CONT {pid}, then run the same"):
            locks.held([(0, 4)]).__enter__()
        os.kill(pid, signal.SIGKILL)
        with CellLocks(path, patience_seconds=30.0) as others, others.held([(0, 4)]):
            pass


def test_a_lock_that_a_stopped_process_holds_alone_is_waited_for_within_bounds(tmp_path):
    path = tmp_path / "build.lock"
    path.touch()
    with stopped_holder(path, "flock") as pid:
        said = (
            rf"build\.lock is held by process {pid} \(python.*\), which is stopped; let it go on with: kill -CONT {pid}"
        )
        with pytest.raises(StoreBusy, match=f"it is being made: {said}"), exclusive_lock(path, "it is being made"):
            pass
        with FileLock(path) as lock, pytest.raises(StoreBusy, match=said):
            lock.share(0.2)


def test_who_stopped_in_the_middle_of_a_transaction_is_named_and_the_ledger_waits_within_bounds(tmp_path, monkeypatch):
    monkeypatch.setattr(database, "BUSY_SECONDS", 0.2)
    path = tmp_path / "ledger.sqlite"
    with closing(Ledger(path, create=True)) as ledger:
        head = ledger.head()
        with stopped_holder(path, "transaction") as pid:
            said = rf"ledger\.sqlite is locked by process {pid} \(python.*\), which is stopped; let it go on with: kill"
            with pytest.raises(StoreBusy, match=rf"{said} -CONT {pid}; nothing was charged by this step"):
                ledger.record_store("5" * 32, {})
            assert ledger.head() == head, "who only reads is not held up"
        ledger.record_store("5" * 32, {})
        assert ledger.head() != head


def test_who_has_a_file_open_without_a_lock_is_found(tmp_path):
    path = tmp_path / "file"
    path.touch()
    command = [sys.executable, "-c", f"f = open({str(path)!r}); print('open', flush=True); input()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "open\n"
        assert [user.pid for user in users(path)] == [process.pid]
        assert lock_holders(path) == []
        process.communicate("\n")
    assert users(path) == []


def test_our_own_lock_is_nobody_elses(tmp_path):
    path = tmp_path / "database.sqlite"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE a (b)")
        connection.execute("BEGIN IMMEDIATE")
        assert lock_holders(path) == []
    assert lock_holders(tmp_path / "missing") == []


def test_a_command_is_named_without_what_may_be_secret_or_steer_a_terminal():
    words = ["/venv/bin/python", "/venv/bin/ckd-cache", "build", "--ledger", "postgresql://me:secret@host/db"]
    assert shown_command(words) == "python ckd-cache build"
    assert shown_command(["a\x1b[2Jb", "--x"]) == "a?[2Jb"
    assert named([]) == "a process that cannot be seen from here (of another machine, container or user)"
    assert advice([Process(7, "", is_stopped=False)]) == "wait until it ends"
