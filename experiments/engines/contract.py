"""What trains the runs of a grid, wherever that is, and what it tells.

Run folders are the truth: an executor begins, or goes on with, what is not finished there, and repeats nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from experiments.plan import PlannedRun

_POLL_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class Evaluated:
    """A run reached an evaluation; `row` is a row of its metrics.csv."""

    run: PlannedRun
    row: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Finished:
    """A run ended well; `result` is its run.json."""

    run: PlannedRun
    result: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Failed:
    """A run ended badly; `reason` is a sentence, and failure.json has it too."""

    run: PlannedRun
    reason: str


@dataclass(frozen=True, slots=True)
class Stopped:
    """A run was asked to stop and can go on."""

    run: PlannedRun


Event = Evaluated | Finished | Failed | Stopped


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSettings:
    """What every worker is told once.

    Args:
        out: the grid's folder.
        threads: of each worker; results may differ in their last digits with another number.
    """

    out: Path
    device: str
    precision: str
    threads: int = 1


class Executor(Protocol):
    """Trains runs, several at once; a `with` block, at the end of which none is under way."""

    def __enter__(self) -> Executor: ...

    def __exit__(self, *_: object) -> None: ...

    @property
    def under_way(self) -> int:
        """Runs that were submitted and have not ended."""

    @property
    def room(self) -> int:
        """Runs that can be submitted now."""

    def submit(self, run: PlannedRun) -> None:
        """Have a run trained, or gone on with."""

    def wait(self, seconds: float) -> Sequence[Event]:
        """What happened, soon after it does; nothing, if nothing does for that time. Each run ends in one event."""

    def cancel(self) -> None:
        """Ask all that is under way to stop after the step in hand."""


class Workplace(Protocol):
    """Where executors are made, once what they need was checked."""

    def executor(self, settings: WorkerSettings, num_runs: int) -> Executor:
        """One for so many runs."""


class Engine(Protocol):
    """What a user chooses."""

    def opened(self, out: Path, device: str) -> AbstractContextManager[Workplace]:
        """Check what can be checked before a grid begins.

        Args:
            out: the grid's folder; it is there.

        Raises:
            InvalidInput: something is missing.
        """


def train(executor: Executor, runs: Sequence[PlannedRun], should_stop: Callable[[], bool]) -> Iterator[Event]:
    """Train all runs, in about this order; yields what happens until nothing is under way any more.

    Args:
        should_stop: once it says so, no run is begun, and those under way stop after the step in hand.
    """
    waiting, is_stopping = list(reversed(runs)), False
    while True:
        if not should_stop():
            while waiting and executor.room:
                executor.submit(waiting.pop())
        elif not is_stopping:
            is_stopping = True
            executor.cancel()
        if not executor.under_way:
            return
        yield from executor.wait(_POLL_SECONDS)
