"""Timing that survives a noisy machine: the things compared take turns, and the ratio is taken round by round. And the
most memory of a process.
"""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds of each round, in order."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    def over(self, other: Timing) -> float:
        """Median of this time over the other's, round by round."""
        return statistics.median(mine / theirs for mine, theirs in zip(self.seconds, other.seconds, strict=True))


def take_turns(
    rounds: int, subjects: Mapping[str, Callable[[], object]], clock: Callable[[], float] = time.perf_counter
) -> dict[str, Timing]:
    """Run every subject once a round, after one round that does not count.

    Args:
        clock: `time.process_time` on a machine that others use: all threads' time, and none of theirs.
    """
    seconds: dict[str, list[float]] = {name: [] for name in subjects}
    for round_ in range(rounds + 1):
        for name, run in subjects.items():
            started = clock()
            run()
            if round_:
                seconds[name].append(clock() - started)
    return {name: Timing(tuple(values)) for name, values in seconds.items()}


def peak_bytes() -> int:
    """Most memory that this process took since its program was started; not `ru_maxrss`, which is at least what the
    process that started it had.
    """
    peak = re.search(r"^VmHWM:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert peak is not None, "this benchmark needs Linux"
    return int(peak[1]) * 1024
