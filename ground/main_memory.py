"""How much memory can be had: what the machine has left, or what the control groups of this process leave of it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

_MEMINFO, _GROUPS, _MOUNTED = Path("/proc/meminfo"), Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
# Of version 2 and of version 1: the most that a group may take, what it takes, and what the kernel counts of files.
_FILES = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


def free_main_memory() -> float:
    """Bytes that can be had without swapping, or being killed for them as in a container.

    Files that the system keeps in memory are no reason to do without it.
    """
    return min([_free_of_machine(), *_free_of_groups()])


def _free_of_machine() -> float:
    try:
        available = re.search(r"^MemAvailable: +(\d+) kB$", _MEMINFO.read_text(), re.MULTILINE)
    except OSError:
        available = None
    if available is None:
        return float(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return float(available[1]) * 1024


def _free_of_groups() -> Iterator[float]:
    """Of each group that this process is in, and of those around it: a limit further out holds too."""
    for folder in _folders():
        for most, taken, reclaimable in _FILES:
            try:
                limit, used = ((folder / name).read_text().strip() for name in (most, taken))
                statistics = (folder / "memory.stat").read_text()
            except OSError:  # not of this version, or no group of memory
                continue
            files = re.search(rf"^{reclaimable} (\d+)$", statistics, re.MULTILINE)
            if limit.isdecimal() and used.isdecimal():
                yield max(0.0, float(limit) - float(used) + float(files[1] if files else 0))


def _folders() -> Iterator[Path]:
    try:
        lines = _GROUPS.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and "memory" not in controllers.split(","):
            continue
        root = _MOUNTED / "memory" if controllers else _MOUNTED
        group = root / path.lstrip("/")
        # In a container its own group is where all are mounted, whatever its path outside.
        yield from dict.fromkeys([*(part for part in (group, *group.parents) if part.is_relative_to(root)), root])
