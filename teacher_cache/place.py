"""Where a builder works: which machine, and which folder there, told apart from copies of it.

A path says neither: two machines, or two containers on one, have folders of their own under one path, and one folder
has several. A store's folder is known by the file that its builders lock, `build.lock`, which is made with it and
stays: a copy of the folder has another one. What a ledger records of a session's host is the text of its place.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass
from pathlib import Path

from ground.file_identity import identify
from storage.store_folder import BUILD_LOCK

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, slots=True)
class Place:
    """A store's folder on a machine.

    Args:
        boot: the machine until it is started again; containers on it have the same.
        device: of the file system that the folder is in, there.
        lock: the file that builders lock in it, on whatever machine it is seen; "" if that is not known.
    """

    boot: str
    device: str = ""
    lock: str = ""

    @classmethod
    def of(cls, folder: Path) -> Place:
        """The place that a folder is from here."""
        boot = BOOT_ID.read_text().strip() if BOOT_ID.is_file() else socket.gethostname()
        try:
            found = identify(folder / BUILD_LOCK)
        except FileNotFoundError:  # nobody ever built here
            return cls(boot)
        return cls(boot, str(found.device), f"{found.inode}:{found.born}")

    @classmethod
    def parse(cls, text: str) -> Place:
        """A place from its text; releases from before recorded the machine alone."""
        return cls(*text.split(" ")[:3])

    @property
    def text(self) -> str:
        """What a ledger records of it."""
        return f"{self.boot} {self.device} {self.lock}"

    def shares_locks(self, other: Place) -> bool:
        """Whether builders in both places exclude each other: who has the lock alone knows that no other lives."""
        return self == other and self.lock != ""

    def is_same_folder(self, other: Place) -> bool:
        """Whether both are one folder, perhaps seen from two machines or after it was moved, and neither is a copy."""
        return self.lock == other.lock != ""
