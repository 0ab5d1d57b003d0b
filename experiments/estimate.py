"""What a grid will cost, before anything is called, written or trained."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F

from experiments.execution import ExecutionConfig, cost, require_same_teachers
from experiments.grid import Grid
from experiments.plan import PlannedRun, StoreNeed, one_a_teacher, plan_runs, plan_stores
from experiments.stores import Stores
from ground.geometry import shows_boxes
from models import create_model, network_shape
from models.compute import Compute
from storage.run_record import is_finished
from teacher_cache.datasets import ImageDataset
from teacher_cache.teachers import Teacher, TeacherSource, untrained_teacher

_BATCH = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """Costs; seconds are of bare student steps, to which losses add.

    Args:
        new_calls: still to be paid, of `calls` in all.
        evaluations: still to be made; of a run without `max_evals`, the fewest it can end after.
        bounded: whether every run has such a bound.
        samples: stores of each teacher that all of these are for.
        finished: runs that are done already, of `runs`.
        bytes: of stores and students that are still to be written.
        unchecked: losses that are classes of the user's, which a dry run does not import.
    """

    runs: int
    samples: int
    finished: int
    calls: int
    new_calls: int
    calls_without_nesting: int
    calls_without_store: int
    teacher_seconds: float
    student_seconds: float
    evaluations: int
    bounded: bool
    bytes: int
    by_method: dict[str, int]
    unchecked: list[str]

    def document(self) -> dict[str, Any]:
        """For --json."""
        return asdict(self)


def estimate(grid: Grid, config: ExecutionConfig, dataset: ImageDataset | None = None) -> Estimate:
    """Plan all of it and time a few steps of untrained networks on random pixels, which are no calls.

    Args:
        dataset: the grid's, where it is open already.

    Raises:
        CKDError: whatever would stop the grid before its first call.
    """
    compute = Compute.choose(config.device, config.precision)
    stores = Stores(grid, config.out, config.device, dataset)
    grid = stores.grid
    runs = plan_runs(grid, compute.precision, config.out, stores.images.num_images)
    stores.images.check_labels()
    stores.check_proxies(runs)
    asked = dict(_with_stand_in(stores, need) for need in plan_stores(grid))
    plans = stores.plan_all(asked)
    tests = [stores.plan_test(need, asked[need]) for need in one_a_teacher(asked) if grid.test_images]
    fingerprints = {need.folder: plan.fingerprint for need, plan in plans.items()}
    require_same_teachers(fingerprints, runs, config.out)
    due = config.due(runs)
    left = [run for run in due if not is_finished(config.out / run.folder)]
    classes = stores.images.dataset.num_classes
    inputs = {run.folder: (run.student, _input_size(run, stores)) for run in left}
    speeds = {student: _speed(*student, classes, compute) for student in dict.fromkeys(inputs.values())}
    sizes = {student: network_shape(student[0], classes, student[1]).num_bytes for student in speeds}
    paid = {
        **cost(grid, due),
        "new_calls": sum(plan.new_calls for plan in plans.values()) + sum(test.plan.needed_calls for test in tests),
    }
    return Estimate(
        runs=len(due),
        samples=len(grid.samples),
        finished=len(due) - len(left),
        **(paid if config.asks else dict.fromkeys(paid, 0)),
        teacher_seconds=sum(plan.seconds() for plan in plans.values()) if config.asks else 0.0,
        student_seconds=_student_seconds([(run, speeds[inputs[run.folder]]) for run in left], config.jobs),
        evaluations=sum(map(_evaluations, left)),
        bounded=all(run.config.protocol.max_evals is not None for run in left),
        bytes=sum(plan.bytes for plan in plans.values() if plan.new_calls)
        + sum(sizes[inputs[run.folder]] for run in left),
        by_method={entry.label: sum(run.label == entry.label for run in due) for entry in grid.entries},
        unchecked=list(dict.fromkeys(name for entry in grid.methods for name in entry.spec.unseen)),
    )


def _with_stand_in(stores: Stores, need: StoreNeed) -> tuple[StoreNeed, Teacher | None]:
    """A teacher that the grid is yet to train costs what an untrained one costs."""
    if need.teacher_epochs is None or stores.own_weights(need).exists():
        return stores.with_weights(need), None
    source = TeacherSource(name=need.teacher, boxes=shows_boxes(stores.grid.store.view_policy))
    return need, untrained_teacher(source, stores.images.of(need.teacher), Compute.choose(stores.device, "fp32"))


@dataclass(frozen=True, slots=True)
class _Speed:
    """Seconds an image."""

    train: float
    evaluate: float


def _input_size(run: PlannedRun, stores: Stores) -> int:
    """Of a student, in pixels."""
    return run.config.student_size or stores.images.of(run.teacher).geometry.crop_size


def _speed(student: str, size: int, classes: int, compute: Compute) -> _Speed:
    """Of one thread, as workers have it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        network = create_model(student, num_classes=classes, seed=0, image_size=size)
        compute.place(network)
        pixels = compute.to_device(torch.randn(_BATCH, 3, size, size))
        labels = compute.to_device(torch.arange(_BATCH) % classes)

        def train() -> None:
            with compute.autocast():
                logits = network.represent(pixels, []).logits
            F.cross_entropy(logits.float(), labels).backward()

        def evaluate() -> None:
            with torch.inference_mode(), compute.autocast():
                network.represent(pixels, [])

        return _Speed(_seconds(train, compute) / _BATCH, _seconds(evaluate, compute) / _BATCH)
    finally:
        torch.set_num_threads(threads)


def _seconds(work: Any, compute: Compute) -> float:
    taken = []
    for _ in range(4):
        started = time.perf_counter()
        work()
        compute.synchronise()
        taken.append(time.perf_counter() - started)
    return min(taken)


def _evaluations(run: PlannedRun) -> int:
    protocol = run.config.protocol
    fewest = protocol.patience * protocol.plateaus
    return fewest if protocol.max_evals is None else protocol.max_evals


def _student_seconds(runs: Sequence[tuple[PlannedRun, _Speed]], jobs: int) -> float:
    total = 0.0
    for run, speed in runs:
        total += _evaluations(run) * (run.work * speed.train + run.n / 4 * speed.evaluate)
    return total / jobs
