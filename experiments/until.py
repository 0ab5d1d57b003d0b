"""How many teacher calls does an accuracy take? Buy them in steps, train, and stop when it is reached."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from analysis.results import collect
from experiments.execution import ExecutionConfig, execute
from experiments.grid import Grid
from experiments.stores import open_images
from ground.errors import CKDError, InvalidInput
from teacher_cache.sample import largest_sample


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What one purchase brought.

    Args:
        calls: that a sample of this size takes.
        new_calls: of those, made in this step; 0 where an earlier execution made them.
        val_accuracy, val_std: best validation accuracy of each seed, mean and sample deviation; None for one seed.
        test_accuracy: mean, at the best validation accuracy; it decides nothing.
    """

    n: int
    calls: int
    new_calls: int
    val_accuracy: float
    val_std: float | None
    test_accuracy: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Purchase:
    """How the question was answered.

    Args:
        reached: whether the last step is at the target.
    """

    target: float
    budget: int
    reached: bool
    steps: list[Step] = field(default_factory=list)

    @property
    def calls(self) -> int:
        """Teacher calls up to the last step."""
        return self.steps[-1].calls

    def document(self) -> dict[str, Any]:
        """For --json."""
        return {**asdict(self), "calls": self.calls}


def until(
    grid: Grid,
    config: ExecutionConfig,
    *,
    target: float,
    step: int,
    budget: int,
    on_step: Callable[[Step], None] = lambda step: None,
) -> Purchase:
    """Grow the sample by `step` images at a time until validation says that the target is reached.

    Validation decides, not test: n/4 images that the teacher never saw. The best of many evaluations is a little better
    than what new images would show, most of all while n is small.

    Args:
        grid: one pair and one method; its sizes are not used.
        target: mean over the seeds of the best validation accuracy, in (0, 1).
        budget: most teacher calls to spend on the sample, a hard stop in the ledger too.

    Raises:
        InvalidInput: a single step is beyond the budget.
        CKDError: a run failed, or anything that `execute` refuses.
        Interrupted: the user asked to stop; the same call goes on.
    """
    views = grid.store.views
    if step * views > budget:
        raise InvalidInput(
            f"--step {step} takes {step * views} calls and --budget is {budget}; lower the one or raise the other"
        )
    if not grid.methods[0].spec.asks_teacher:
        raise InvalidInput(
            f"{grid.methods[0].label} asks no teacher, so no call brings it anything; give another --method"
        )
    dataset = open_images(grid)
    largest = largest_sample(len(dataset.train))
    if step > largest:
        raise InvalidInput(f"--step {step} is more than the {largest} images of {dataset.name} there are to sample")
    steps: list[Step] = []
    for n in range(step, min(budget // views, largest) + 1, step):
        sized = replace(grid, sizes=tuple(range(step, n + 1, step)), store=replace(grid.store, budget=budget))
        outcome = execute(sized, config, dataset)
        if outcome.failed:
            run, reason = next(iter(outcome.failed.items()))
            raise CKDError(f"{run} failed: {reason}; mend that, and go on with the same command and --retry")
        steps.append(_step(config.out, n, n * views, outcome.new_calls))
        on_step(steps[-1])
        if steps[-1].val_accuracy >= target:
            return Purchase(target=target, budget=budget, reached=True, steps=steps)
    return Purchase(target=target, budget=budget, reached=False, steps=steps)


def _step(out: Path, n: int, calls: int, new_calls: int) -> Step:
    results = collect(out)
    runs = results[(results["n"] == n) & results["chosen"]]
    validation = runs["best_val_accuracy"]
    return Step(
        n=n,
        calls=calls,
        new_calls=new_calls,
        val_accuracy=float(validation.mean()),
        val_std=float(validation.std(ddof=1)) if len(runs) > 1 else None,
        test_accuracy=float(runs["test_accuracy"].mean()),
    )
