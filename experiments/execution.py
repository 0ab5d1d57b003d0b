"""A grid from beginning to end: stores, students, tables; what is done is not done again."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from analysis.grid_plan import PLAN_FILE, GridPlan
from analysis.results import RUN_ADVICE, has_diverged, save_results, undecided
from experiments.board import Board
from experiments.engines.contract import Engine, Evaluated, Failed, Finished, WorkerSettings, Workplace, train
from experiments.engines.local import LocalEngine
from experiments.grid import Grid
from experiments.logit_descriptions import describe_students
from experiments.plan import PlannedRun, StoreNeed, one_a_teacher, plan_runs, plan_stores
from experiments.rules import RANDOM, StudentsMissing, require_plain, students_of
from experiments.stores import StorePlan, Stores
from ground.durable import write_bytes, write_json
from ground.errors import CKDError, IdentityMismatch, Interrupted, InvalidInput, StoreIncomplete
from ground.terminal import graceful_stop
from models.compute import Compute
from storage.locks import exclusive_lock
from storage.manifest import FILE_NAME, Manifest
from storage.run_record import FAILURE_FILE, RESUME_FILE, RUN_FILE, Failure, RunRecord, has_failed, is_finished
from teacher_cache.datasets import ImageDataset

log = logging.getLogger(__name__)

_LOCK = "grid.lock"


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutionConfig:
    """How a grid is worked through; none of it changes what comes out.

    Args:
        out: the grid's folder.
        jobs: students trained at the same time, as far as it is known before the engine is.
        engine: where they are trained; None for here.
        retry: train again what failed before.
        asks: call teachers; without, stores are made with their images alone, and students that need no more trained.
    """

    out: Path
    jobs: int
    engine: Engine | None = None
    retry: bool = False
    asks: bool = True
    device: str = "auto"
    precision: str = "auto"

    def due(self, runs: Sequence[PlannedRun]) -> list[PlannedRun]:
        """Of a grid's runs, those that are to be trained: without calls, those on labels alone."""
        return [run for run in runs if self.asks or not run.n]


@dataclass(slots=True)
class Outcome:
    """What became of a grid.

    Args:
        found: runs that were finished before.
        trained: runs that this execution finished.
        failed: folder -> sentence, for every run that failed now or before.
        new_calls: teacher calls that were made.
    """

    runs: int
    found: int = 0
    trained: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    new_calls: int = 0


def execute(grid: Grid, config: ExecutionConfig, dataset: ImageDataset | None = None) -> Outcome:
    """Build what is to be built, train what is to be trained, and write results.csv.

    Where rules look at students, the rows of an n are bought when the students of the n before are trained.

    Args:
        dataset: the grid's, where it is open already.

    Raises:
        BudgetRefused, CKDError: before any call or training, if the grid cannot be run.
        Interrupted: the user asked to stop; the same call goes on.
        StoreBusy: another process works on the same folder.
    """
    precision = Compute.choose(config.device, config.precision).precision
    stores = Stores(grid, config.out, config.device, dataset)
    grid = stores.grid
    needs, runs = plan_stores(grid), plan_runs(grid, precision, config.out, stores.images.num_images)
    config.out.mkdir(parents=True, exist_ok=True)
    _require_own_folder(config.out)
    engine = LocalEngine(config.jobs) if config.engine is None else config.engine
    with (
        exclusive_lock(config.out / _LOCK, f"another ckd-pipeline works on {config.out}"),
        engine.opened(config.out, config.device) as workplace,
    ):
        stores.images.check_labels()
        stores.check_proxies(runs)
        needs = [stores.with_weights(need) for need in needs]
        # All of it is planned before the first call is made.
        plans = stores.plan_all(dict.fromkeys(needs))
        tests = {need: stores.plan_test(need) for need in one_a_teacher(needs) if grid.test_images}
        require_same_teachers({need.folder: plan.fingerprint for need, plan in plans.items()}, runs, config.out)
        turns = _turns(grid, needs, config.out)
        _save_plan(grid, needs, runs, config.out, labelled=stores.images.has_labels)
        GridPlan.load(config.out)  # what its readers would refuse, they refuse now
        work = _Work(stores, plans, config.due(runs), config, workplace, precision)
        if config.asks:
            work.outcome.new_calls = sum(stores.make_test(need, prepared) for need, prepared in tests.items())
            for turn in turns:
                work.take(turn)
        else:
            work.lay_out()
        if grid.test_images and config.asks:
            describe_students(config.out, needs, work.due, grid.test_images)
    return work.outcome


def execute_whole(grid: Grid, config: ExecutionConfig, dataset: ImageDataset | None = None) -> Outcome:
    """As `execute`, of a grid of one method.

    Raises:
        CKDError: a run failed, unless it diverged and validation has another to choose; or a store cannot be given the
            method's layers.
    """
    try:
        outcome = execute(grid, config, dataset)
    except StoreIncomplete as error:
        raise InvalidInput(
            f"{grid.methods[0].text} needs layers that the store in {config.out} does not keep, and it cannot be given "
            "them while it has rows without an answer; give another --out"
        ) from error
    _require_decided(outcome, config.out)
    return outcome


def _require_decided(outcome: Outcome, out: Path) -> None:
    """Raise `CKDError` for a run that failed and has none beside it for validation to choose; of several, for one that
    can be mended, where there is one.
    """
    lacking = undecided(out) if outcome.failed else set()
    failed = sorted((run for run in outcome.failed if run in lacking), key=lambda run: has_diverged(out / run))
    for run in failed[:1]:
        raise CKDError(f"{run} failed: {outcome.failed[run]}; mend that, and go on with the same command and --retry")


@dataclass(frozen=True, slots=True)
class _Turn:
    """What is bought, and then trained, before rules look at more students.

    Args:
        needs: the stores that are built.
        waiting: folders of stores of which no more than `most` rows are bought.
        most: None for all.
    """

    needs: list[StoreNeed]
    waiting: frozenset[str] = frozenset()
    most: int | None = None

    def has(self, run: PlannedRun) -> bool:
        """Whether what a run learns from is there after it; what is left of the pool is known once all is bought."""
        return self.most is None or run.store not in self.waiting or (run.n <= self.most and not run.spec.rest)


def _turns(grid: Grid, needs: Sequence[StoreNeed], out: Path) -> list[_Turn]:
    """One, and one more for each n that a rule cannot buy before students of the n before are trained."""
    looking = [need for need in needs if students_of(need.select)]
    if looking:
        require_plain(out)
    waiting = frozenset(need.folder for need in looking)
    there = [Manifest.load(out / name).n if (out / name / FILE_NAME).exists() else 0 for name in sorted(waiting)]
    stops = [n for n, after in pairwise(grid.sizes) if any(have < after for have in there)]
    turns = [_Turn(looking if place else list(needs), waiting, most) for place, most in enumerate(stops)]
    return [*turns, _Turn(looking if turns else list(needs))]


@dataclass(slots=True)
class _Work:
    """A grid's stores and students, made turn by turn.

    Args:
        plans: what each store takes.
        due: runs that are to be trained.
    """

    stores: Stores
    plans: dict[StoreNeed, StorePlan]
    due: Sequence[PlannedRun]
    config: ExecutionConfig
    workplace: Workplace
    precision: str
    outcome: Outcome = field(init=False)
    _begun: set[str] = field(default_factory=set, init=False)

    def __post_init__(self) -> None:
        self.outcome = Outcome(runs=len(self.due))

    def lay_out(self) -> None:
        """Make stores without a call, and train what needs none; rules choose what theirs hold when they buy it."""
        for need, plan in self.plans.items():
            if need.select == RANDOM:
                self.stores.lay_out(need, plan)
        self._train(self.due)

    def take(self, turn: _Turn) -> None:
        """Buy what a turn buys, and train the students that can be trained then and were not before."""
        for need in turn.needs:
            most = turn.most if need.folder in turn.waiting else None
            try:
                if need.is_asked:
                    self.outcome.new_calls += self.stores.make(need, self.plans[need], self.due, most)
                else:
                    self.stores.lay_out(need, self.plans[need])
            except StudentsMissing as error:
                self._give_up(need, str(error))
            self.plans[need].let_go()
            # It is extended now.
            self.plans[need] = replace(self.plans[need], extension=None)
        ready = [
            run for run in self.due if turn.has(run) and run.folder not in self.outcome.failed.keys() | self._begun
        ]
        self._begun.update(run.folder for run in ready)
        self._train(ready)

    def _give_up(self, need: StoreNeed, reason: str) -> None:
        """Count the runs beyond what a store has as failed, and those that learn from what is left of the pool."""
        have = Manifest.load(self.config.out / need.folder).n
        beyond = [run for run in self.due if run.store == need.folder and (run.n > have or run.spec.rest)]
        self.outcome.failed |= {run.folder: reason for run in beyond}

    def _train(self, runs: Sequence[PlannedRun]) -> None:
        waiting = [run for run in runs if self._is_waiting(run)]
        if waiting:
            self._train_all(waiting)
        save_results(self.config.out)
        ended = sum(is_finished(self.config.out / run.folder) or run.folder in self.outcome.failed for run in waiting)
        if ended < len(waiting):
            left = self.outcome.runs - self.outcome.found - self.outcome.trained - len(self.outcome.failed)
            raise Interrupted(
                f"{left} of {self.outcome.runs} runs are left in {self.config.out}; go on with the same command"
            )

    def _is_waiting(self, run: PlannedRun) -> bool:
        """Whether it is to be trained; those that are not are counted."""
        folder = self.config.out / run.folder
        if is_finished(folder):
            self.outcome.found += 1
            return False
        if has_failed(folder) and not self.config.retry:
            self.outcome.failed[run.folder] = _failure(folder)
            return False
        _clear_failure(folder)
        return True

    def _train_all(self, waiting: Sequence[PlannedRun]) -> None:
        out = self.config.out
        settings = WorkerSettings(out=out, device=self.config.device, precision=self.precision)
        executor_of = self.workplace.executor
        with graceful_stop() as stop, Board(waiting) as board, executor_of(settings, len(waiting)) as executor:
            for event in train(executor, waiting, lambda: stop.requested):
                board.show(event)
                if isinstance(event, Finished):
                    self.outcome.trained += 1
                elif isinstance(event, Failed):
                    self.outcome.failed[event.run.folder] = event.reason
                if not isinstance(event, Evaluated) and board.is_time_to_save():
                    save_results(out)


def _failure(folder: Path) -> str:
    try:
        return Failure.load(folder, "use --retry").sentence
    except InvalidInput as error:
        return str(error)


def _clear_failure(folder: Path) -> None:
    """Make ready to train again; what a refused state holds is of no use."""
    if not has_failed(folder):
        return
    try:
        kind = Failure.load(folder, "use --retry").kind
    except InvalidInput:
        kind = None
    if kind == InvalidInput.__name__:
        (folder / RESUME_FILE).unlink(missing_ok=True)
    (folder / FAILURE_FILE).unlink()


def _require_own_folder(out: Path) -> None:
    """Refuse a folder of something else: a store, a run, or anybody's files."""
    foreign = [name for name in (FILE_NAME, RUN_FILE, RESUME_FILE) if (out / name).exists()]
    if foreign:
        raise InvalidInput(f"{out} holds {foreign[0]}, so it is no grid's folder; give another --out")
    # The lock is made first, and stays.
    if not any((out / name).exists() for name in (_LOCK, PLAN_FILE)) and any(out.iterdir()):
        raise InvalidInput(f"{out} holds files that no grid made; give another --out")


def require_same_teachers(fingerprints: Mapping[str, str], runs: Sequence[PlannedRun], out: Path) -> None:
    """Check whose answers finished runs learned from.

    Args:
        fingerprints: store's folder -> its teacher's fingerprint.

    Raises:
        IdentityMismatch: a finished run learned from another teacher than the one its store is of now.
    """
    for run in runs:
        folder = out / run.folder
        if not is_finished(folder):
            continue
        if RunRecord.load(folder, RUN_ADVICE).teacher_fingerprint != fingerprints[run.store]:
            raise IdentityMismatch(
                f"{folder / RUN_FILE} is of another {run.teacher} than the one whose weights are given now; give the "
                "same weights, or another --out"
            )


def _save_plan(
    grid: Grid, needs: Sequence[StoreNeed], runs: Sequence[PlannedRun], out: Path, *, labelled: bool
) -> None:
    write_json(out / PLAN_FILE, plan_document(grid, needs, runs) | {"labelled": labelled})
    if grid.path is not None:
        write_bytes(out / "grid.yaml", grid.source)


def plan_document(grid: Grid, needs: Sequence[StoreNeed], runs: Sequence[PlannedRun]) -> dict[str, Any]:
    """The content of grid.json: docs/pipeline.md."""
    n, views = grid.sizes[-1], grid.store.views
    stores = [
        {
            "teacher": need.teacher,
            "dataset": runs[0].dataset,
            "store": need.folder,
            "n": n if need.is_asked else 0,
            "calls": n * views if need.is_asked else 0,
        }
        for need in needs
    ]
    if grid.test_images:
        stores += [
            {
                "teacher": need.teacher,
                "dataset": runs[0].dataset,
                "store": need.folder_of_tests,
                "n": grid.test_images,
                "calls": grid.test_images,
            }
            for need in one_a_teacher(needs)
        ]
    return {
        "format": 1,
        "name": grid.name,
        "targets": list(grid.targets),
        "test_images": grid.test_images,
        "budget": grid.store.budget,
        "stores": stores,
        "cost": cost(grid, runs),
        "runs": [run.describe() for run in runs],
    }


def cost(grid: Grid, runs: Sequence[PlannedRun]) -> dict[str, int]:
    """Teacher calls of the whole grid, and of the same grid without a store to learn from."""
    views, teachers = grid.store.views, len({run.teacher for run in runs})
    samples, tested = teachers * len(grid.samples) * len(grid.rules), teachers * grid.test_images
    learning = [run for run in runs if run.draws_on_calls]
    return {
        "calls": samples * grid.sizes[-1] * views + tested,
        "calls_without_nesting": samples * sum(grid.sizes) * views + tested,
        "calls_without_store": sum(run.n * views for run in learning) + tested,
    }
