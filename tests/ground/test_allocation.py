"""Freed memory that a process keeps, seen from outside: by the pages that it takes again."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ground import allocation

ROOT = Path(__file__).parents[2]
PROGRAM = """
import ctypes, resource, sys
from ground.allocation import keep_freed_memory
kept = keep_freed_memory() if sys.argv[1] == "keep" else False
library = ctypes.CDLL(None)
library.malloc.restype, library.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
library.free.argtypes = [ctypes.c_void_p]
def take():
    block = library.malloc(96 << 20)
    ctypes.memset(block, 1, 96 << 20)
    library.free(block)
take()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
take()
print(int(kept), resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def pages_taken_again(keep: str, **settings: str) -> tuple[int, int]:
    environment = {name: value for name, value in os.environ.items() if name not in allocation.SETTINGS}
    command = [sys.executable, "-c", PROGRAM, keep]
    found = subprocess.run(command, cwd=ROOT, env=environment | settings, capture_output=True, text=True, check=True)
    kept, pages = map(int, found.stdout.split())
    return kept, pages


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc is Linux's")
def test_a_block_that_was_freed_is_taken_again_without_new_pages():
    without, kept = pages_taken_again("not"), pages_taken_again("keep")
    assert (without[0], kept[0]) == (0, 1)
    # Pages may be huge ones, of 2 MB.
    assert without[1] >= 40
    assert kept[1] < without[1] / 4


def test_who_has_settings_of_his_own_keeps_them():
    assert pages_taken_again("keep", MALLOC_MMAP_THRESHOLD_="65536")[0] == 0


def test_without_glibc_nothing_is_done(monkeypatch):
    for name in allocation.SETTINGS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("ctypes.CDLL", lambda name: object())
    assert not allocation.keep_freed_memory()
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not allocation.keep_freed_memory()
