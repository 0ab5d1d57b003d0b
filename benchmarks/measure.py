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
    return _in_turns(subjects, clock, lambda counted: counted < rounds)


def take_turns_for(
    seconds: float,
    subjects: Mapping[str, Callable[[], object]],
    clock: Callable[[], float] = time.perf_counter,
    on_round: Callable[[dict[str, Timing]], object] = lambda timings: None,
) -> dict[str, Timing]:
    """As `take_turns`, as many rounds as fit into so many seconds of the wall's clock, and one that counts at least.

    Args:
        on_round: is given all that was measured so far, after each round that counts.
    """
    began = time.monotonic()

    def is_room(counted: int) -> bool:
        spent = time.monotonic() - began
        # As long as a round took on average, with the one that did not count.
        return not counted or spent + spent / (counted + 1) <= seconds

    return _in_turns(subjects, clock, is_room, on_round)


def _in_turns(
    subjects: Mapping[str, Callable[[], object]],
    clock: Callable[[], float],
    goes_on: Callable[[int], bool],
    on_round: Callable[[dict[str, Timing]], object] = lambda timings: None,
) -> dict[str, Timing]:
    """A round that does not count, and then others for as long as their number so far allows it."""
    for run in subjects.values():
        run()
    counted, timings = 0, {name: Timing(()) for name in subjects}
    while goes_on(counted):
        for name, run in subjects.items():
            started = clock()
            run()
            timings[name] = Timing((*timings[name].seconds, clock() - started))
        counted += 1
        on_round(timings)
    return timings


def peak_bytes() -> int:
    """Most memory that this process took since its program was started; not `ru_maxrss`, which is at least what the
    process that started it had.
    """
    peak = re.search(r"^VmHWM:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert peak is not None, "this benchmark needs Linux"
    return int(peak[1]) * 1024
