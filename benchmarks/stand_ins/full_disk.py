"""A small disk in memory that can be filled to the last byte, and the moments at which a build finds it full."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from storage.arrays import ArrayFile
from storage.database import Database
from storage.ledger import Ledger
from storage.store import Store
from teacher_cache.in_hand import AnswersInHand
from teacher_cache.teachers import ZooTeacher

# What a build does between two writes: (owner, function) -> the disk is full from just before one of its calls on.
MOMENTS: dict[str, tuple[type, str]] = {
    "transaction": (Database, "write"),
    "room": (AnswersInHand, "take_room"),
    "reserve": (Ledger, "reserve"),
    "call": (ZooTeacher, "call"),
    "write": (Store, "write_outputs"),
    "sync": (ArrayFile, "sync"),
    "publish": (Store, "publish"),
    "commit": (Ledger, "commit"),
    "head": (Store, "record_ledger_head"),
}


class SmallDisk:
    """A mounted disk; see `small_disk`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._ballast = folder / "ballast"

    def fill(self) -> None:
        """Leave no room for anything that has none yet."""
        block = bytes(1 << 20)
        descriptor = os.open(self._ballast, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        try:
            while block:
                try:
                    os.write(descriptor, block)
                except OSError:
                    block = block[: len(block) // 2]
        finally:
            os.close(descriptor)

    def free(self) -> None:
        """Give the room back."""
        self._ballast.unlink(missing_ok=True)


@contextmanager
def small_disk(folder: Path, size_mb: int) -> Iterator[SmallDisk | None]:
    """Mount a disk of this size at a new folder; None where this user may not."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size_mb}m", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        yield None
        return
    try:
        yield SmallDisk(folder)
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def full_from(disk: SmallDisk, moment: str, at_call: int, put: Callable[[type, str, Any], None] = setattr) -> None:
    """Have the disk be full from the `at_call`-th time on that this process comes to a moment."""
    owner, name = MOMENTS[moment]
    original, calls = getattr(owner, name), []

    def filling(*arguments: Any, **options: Any) -> Any:
        calls.append(name)
        if len(calls) == at_call:
            disk.fill()
        return original(*arguments, **options)

    put(owner, name, filling)
