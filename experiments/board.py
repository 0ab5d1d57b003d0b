"""Progress of a grid on stderr: a bar a run under way, a total with the time left, and a line a finished run."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from rich.progress import BarColumn, Progress, TaskID, TextColumn

from experiments.engines.contract import Evaluated, Event, Failed, Finished
from experiments.plan import PlannedRun
from ground.terminal import note, plain, stderr

_SECONDS_BETWEEN_SAVES = 20.0


class Board:
    """Shows events; a `with` block.

    Args:
        runs: all that are to be trained.
    """

    def __init__(self, runs: Sequence[PlannedRun]) -> None:
        self._total, self._ended = len(runs), 0
        self._several_samples = len({run.sample_seed for run in runs}) > 1
        self._work, self._work_done = sum(run.work for run in runs), 0
        self._started = self._saved = time.monotonic()
        self._tasks: dict[str, TaskID] = {}
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.fields[note]}", markup=False),
        )
        # Nothing of ours goes to stdout meanwhile, and what anything else says there is not to be shown among the bars.
        self._bars = Progress(*columns, console=stderr, disable=not stderr.is_terminal, redirect_stdout=False)
        self._all = self._bars.add_task("all runs", total=self._work, note=f"0 of {self._total}")

    def __enter__(self) -> Board:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def show(self, event: Event) -> None:
        """Take note of what happened."""
        run = event.run
        if isinstance(event, Evaluated):
            self._advance(run, event.row)
            return
        self._ended += 1
        self._work_done += run.work
        if run.folder in self._tasks:
            self._bars.remove_task(self._tasks.pop(run.folder))
        self._bars.update(self._all, completed=self._work_done, note=f"{self._ended} of {self._total}{self._left()}")
        if isinstance(event, Finished):
            result = event.result
            self._print(
                f"{self._name(run)}: test accuracy {result['test_accuracy']:.4f} after {result['evaluations']} "
                f"evaluations in {result['seconds']:.0f} s"
            )
        elif isinstance(event, Failed):
            self._print(f"{self._name(run)} failed: {event.reason}")

    def is_time_to_save(self) -> bool:
        """Whether the table of results was last written a while ago."""
        if time.monotonic() - self._saved < _SECONDS_BETWEEN_SAVES:
            return False
        self._saved = time.monotonic()
        return True

    def _advance(self, run: PlannedRun, row: Any) -> None:
        note = f"validation {row['val_accuracy']:.3f}, loss {row['train_loss']:.3f}, lr {row['lr']:g}"
        if run.folder not in self._tasks:
            total = run.config.protocol.max_evals
            self._tasks[run.folder] = self._bars.add_task(plain(self._name(run)), total=total, note="")
        self._bars.update(self._tasks[run.folder], completed=row["epoch"], note=note)

    def _left(self) -> str:
        seconds = (time.monotonic() - self._started) / self._work_done * (self._work - self._work_done)
        return f", about {timedelta(seconds=round(seconds))} left" if self._ended < self._total else ""

    def _print(self, sentence: str) -> None:
        note(f"[{self._ended}/{self._total}{self._left()}] {plain(sentence)}")

    def _name(self, run: PlannedRun) -> str:
        sample = f" sample={run.sample_seed}" if self._several_samples else ""
        return f"{run.label} {run.teacher}/{run.student} n={run.n}{sample} seed={run.config.seed} lr={run.config.lr:g}"
