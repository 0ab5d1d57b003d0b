"""Who has a lock on a file, or has it open, as far as this machine's kernel says; for messages, and nothing else.

It is read from `/proc`, without opening the file: closing one would end every record lock that this process has on it.
Processes of other machines and other containers are not seen, and where there is no `/proc`, none are.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")
_MOST_WORDS = 3
_MOST_CHARACTERS = 60


@dataclass(frozen=True, slots=True)
class Process:
    """A process of this machine.

    Args:
        command: what runs, without options and folders: those may hold a password, or anything else.
        is_stopped: by a signal or a debugger; it does nothing until it is told to go on.
    """

    pid: int
    command: str
    is_stopped: bool

    def __str__(self) -> str:
        named = f"process {self.pid}" + (f" ({self.command})" if self.command else "")
        return f"{named}, which is stopped" if self.is_stopped else named


def lock_holders(path: Path, first: int = 0, count: int = 0) -> list[Process]:
    """Other processes with an exclusive lock on bytes of a file, or, with no count, with a lock of any kind on it."""
    try:
        found, lines = path.stat(), (_PROC / "locks").read_text().splitlines()
    except OSError:
        return []
    place = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino}"
    pids = set()
    for line in lines:
        # number: kind, mode, access, process, place, first byte, last byte; with "->" for who only waits for it.
        words = line.split()
        if len(words) != 8 or words[5] != place:
            continue
        start, stop = int(words[6]), float("inf") if words[7] == "EOF" else int(words[7])
        if not count or (words[3] == "WRITE" and start < first + count and first <= stop):
            pids.add(int(words[4]))
    return _processes(pids)


def users(path: Path) -> list[Process]:
    """Other processes that have a file open, of those that this user may look at."""
    try:
        wanted = path.stat()
    except OSError:
        return []
    return _processes({pid for pid in _all_pids() if _has_open(pid, wanted)})


def named(processes: Sequence[Process]) -> str:
    """Processes, for a message."""
    if not processes:
        return "a process that cannot be seen from here (of another machine, container or user)"
    return " and ".join(str(process) for process in processes)


def advice(processes: Sequence[Process]) -> str:
    """What to do about processes that are in the way, for a message."""
    stopped = " ".join(str(process.pid) for process in processes if process.is_stopped)
    return f"let it go on with: kill -CONT {stopped}" if stopped else "wait until it ends"


def _processes(pids: set[int]) -> list[Process]:
    # Numbers below 1 stand for processes that cannot be named from here.
    return [_process(pid) for pid in sorted(pids - {os.getpid()}) if pid > 0]


def _process(pid: int) -> Process:
    words, state = [], ""
    with suppress(OSError):
        words = (_PROC / str(pid) / "cmdline").read_text(errors="replace").rstrip("\0").split("\0")
    with suppress(OSError):
        state = (_PROC / str(pid) / "stat").read_text(errors="replace").rpartition(") ")[2][:1]
    return Process(pid, shown_command(words), state in ("T", "t"))


def shown_command(words: Sequence[str]) -> str:
    """The program, what it runs, and the subcommand: the words before the first option."""
    options = [place for place, word in enumerate(words) if word.startswith("-")]
    names = [Path(word).name for word in words[: min([_MOST_WORDS, *options])]]
    text = " ".join(names)
    return "".join(letter if letter.isprintable() else "?" for letter in text)[:_MOST_CHARACTERS]


def _all_pids() -> Iterator[int]:
    try:
        yield from (int(name) for name in os.listdir(_PROC) if name.isdigit())
    except OSError:
        return


def _has_open(pid: int, wanted: os.stat_result) -> bool:
    folder = _PROC / str(pid) / "fd"
    try:
        descriptors = os.listdir(folder)
    except OSError:
        return False
    for descriptor in descriptors:
        with suppress(OSError):
            if os.path.samestat((folder / descriptor).stat(), wanted):
                return True
    return False
