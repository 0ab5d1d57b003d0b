"""How many teacher calls does an accuracy take? Buy them in steps, train, and stop when it is reached."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from analysis.expectation import Expected, Line
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
        expected: what one more student is expected to gain in validation by the next step, from a line on log2(n)
            through all students so far (`analysis.expectation`); None before there are three of two n.
    """

    n: int
    calls: int
    new_calls: int
    val_accuracy: float
    val_std: float | None
    test_accuracy: float
    expected: Expected | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Purchase:
    """How the question was answered.

    Args:
        reached: whether the last step is at the target.
        stopped: whether the next step was expected to gain too little.
    """

    target: float
    budget: int
    reached: bool
    stopped: bool = False
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
    min_gain: float = 0.0,
    on_step: Callable[[Step], None] = lambda step: None,
) -> Purchase:
    """Grow the sample by `step` images at a time until validation says that the target is reached.

    Validation decides, not test: n/4 images that the teacher never saw. The best of many evaluations is a little better
    than what new images would show, most of all while n is small.

    Args:
        grid: one pair and one method; its sizes are not used.
        target: mean over the seeds of the best validation accuracy, in (0, 1).
        budget: most teacher calls to spend on the sample, a hard stop in the ledger too.
        min_gain: in accuracy; once the next step is expected to gain less, on the mean, no more is bought. 0 for never.

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
        steps.append(_step(config.out, n, step, n * views, outcome.new_calls))
        on_step(steps[-1])
        if steps[-1].val_accuracy >= target:
            return Purchase(target=target, budget=budget, reached=True, steps=steps)
        expected = steps[-1].expected
        if min_gain and expected is not None and expected.mean < min_gain:
            return Purchase(target=target, budget=budget, reached=False, stopped=True, steps=steps)
    return Purchase(target=target, budget=budget, reached=False, steps=steps)


def _step(out: Path, n: int, step: int, calls: int, new_calls: int) -> Step:
    results = collect(out)
    so_far = results[(results["n"] <= n) & results["chosen"]]
    runs = so_far[so_far["n"] == n]
    validation = runs["best_val_accuracy"]
    return Step(
        n=n,
        calls=calls,
        new_calls=new_calls,
        val_accuracy=float(validation.mean()),
        val_std=float(validation.std(ddof=1)) if len(runs) > 1 else None,
        test_accuracy=float(runs["test_accuracy"].mean()),
        expected=_expected(so_far["n"].tolist(), so_far["best_val_accuracy"].tolist(), n, step),
    )


def _expected(sizes: Sequence[int], accuracies: Sequence[float], n: int, step: int) -> Expected | None:
    """What the next step brings, where enough is known to say so."""
    if len(sizes) < 3 or len(set(sizes)) < 2:
        return None
    return Line.through(sizes, accuracies).brought(n + step, n).within(-1, 1)
