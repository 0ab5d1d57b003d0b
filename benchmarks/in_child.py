"""A command of ours in a process of its own, with bounds on time and memory, and what became of it."""

from __future__ import annotations

import os
import resource
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

_MAX_MEMORY = 8 << 30
_MAX_SECONDS = 60


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a command did: its exit status, None if a signal ended it, and what it printed."""

    status: int | None
    printed: str

    @property
    def is_reported(self) -> bool:
        """Whether it refused, and said something."""
        return self.status in (1, 2) and bool(self.printed.strip())

    @property
    def is_crash(self) -> bool:
        """Whether it ended as no command should."""
        return self.status not in (0, 1, 2) or "Traceback" in self.printed


def run_command(command: Callable[[list[str]], object], arguments: Sequence[str], printed: Path) -> Outcome:
    """Run one of our commands; it is forked, so nothing is imported again.

    Args:
        command: its entry point.
        printed: a file for both of its outputs.
    """
    child = os.fork()
    if not child:
        signal.alarm(_MAX_SECONDS)
        resource.setrlimit(resource.RLIMIT_AS, (_MAX_MEMORY, _MAX_MEMORY))
        descriptor = os.open(printed, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        status = 70
        try:
            command(list(arguments))
            status = 0
        except SystemExit as leaving:
            status = int(leaving.code or 0)
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    _, ended = os.waitpid(child, 0)
    return Outcome(os.WEXITSTATUS(ended) if os.WIFEXITED(ended) else None, printed.read_text(errors="replace"))
