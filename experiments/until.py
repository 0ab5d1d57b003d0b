"""How many teacher calls does an accuracy take? Buy them in steps, train, and stop when it is reached.

Where images are kept that nobody is asked about, the first step is one of no call: what their labels alone give.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from math import isnan
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.brought import brought
from analysis.expectation import Expected, Line
from analysis.figures import pairs_of
from analysis.grid_plan import PLAN_FILE, GridPlan
from analysis.labels_only import beyond_labels, of_labels_alone, of_samples
from analysis.results import chosen, collect
from experiments.execution import ExecutionConfig, execute_whole
from experiments.grid import Grid, MethodEntry, labels_alone, single_grid
from experiments.images import FEWEST_IMAGES, open_images
from experiments.plan import as_bought, plan_stores
from experiments.rests import reads_labels
from experiments.rules import RANDOM
from ground.errors import CKDError, InvalidInput, UnknownName
from storage.manifest import FILE_NAME, Manifest
from storage.schema import UNLABELLED
from student_train.rest.proxy import Proxy
from student_train.rest.spec import REST_LOSSES, parse_rest
from teacher_cache.datasets import ImageDataset
from teacher_cache.sample import draw_sample, largest_sample

# Keeps all images of the pool, and teaches nothing beside calls.
ALL = "all"


@dataclass(frozen=True, slots=True, kw_only=True)
class Beyond:
    """What students have beyond those of labels alone, as a difference of test accuracies of the same seed.

    Args:
        low, high: of the 95 % bootstrap interval of the mean; None for one seed.
        sentence: the same for people.
    """

    mean: float
    low: float | None
    high: float | None
    sentence: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What one purchase brought.

    Args:
        n: images that were bought; 0 for labels alone.
        calls: that a sample of this size takes.
        new_calls: of those, made in this step; 0 where an earlier execution made them.
        val_accuracy, val_std: best validation accuracy of each seed, mean and sample deviation; None for one seed.
        test_accuracy: mean, at the best validation accuracy; it decides nothing.
        labelled_rows: images that were learned by their label alone.
        expected: what one more student is expected to gain in validation by the next step, from a line on log2(n)
            through all students so far (`analysis.expectation`); None before there are three of two n.
        beyond: labels alone; None for those, and where they were not trained on.
    """

    n: int
    calls: int
    new_calls: int
    val_accuracy: float
    val_std: float | None
    test_accuracy: float
    labelled_rows: int
    expected: Expected | None = None
    beyond: Beyond | None = None


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

    @property
    def labels_alone(self) -> Step | None:
        """The step of no call, where there is one."""
        return None if self.steps[0].n else self.steps[0]

    def document(self) -> dict[str, Any]:
        """For --json."""
        return {**asdict(self), "calls": self.calls}


def until_grid(*, rest: Sequence[str] = (), select: str = RANDOM, **asked: Any) -> Grid:
    """A grid of one pair and one method, without sizes, and with labels alone where images are kept for them.

    Args:
        rest: what is done with the images that nobody is asked about: `ALL` keeps them, a loss (as `ckd-train --rest`
            has it) also learns from them beside calls; none of either leaves them out.
        select: the rule that chooses what is bought.
        asked: as `single_grid` takes it.

    Raises:
        CKDError: a name is not known, or a setting is refused.
    """
    losses = tuple(text for text in rest if text != ALL)
    _check_rest(losses, select)
    grid = single_grid(rest=losses, select=select, **asked)
    if not rest:
        return grid
    [entry] = grid.methods
    if losses:
        usual = tuple(spec.text for spec in parse_rest(entry.rest))
        told = losses if entry.weighed else usual
        entry = replace(entry, label=f"{entry.text}, rest {'+'.join(told)}", rest=usual)
    return replace(grid, methods=(entry,), labels_only=_alone(entry))


def _alone(entry: MethodEntry) -> MethodEntry:
    """Labels alone, trained as a method is. They come before any rule has bought, so by none."""
    return labels_alone(entry.candidates, select=RANDOM)


def _check_rest(losses: Sequence[str], select: str) -> None:
    """Refuse losses of a rest that cannot be learned from while rows are bought."""
    for text in losses:
        if (name := text.partition(":")[0]) == Proxy.name:
            raise InvalidInput(
                "--rest proxy answers by a student of the store, which is yet to be bought here; name one in a grid, "
                "or give ce, pseudo or mean_teacher"
            )
        if name not in REST_LOSSES:
            raise UnknownName("loss of the rest", name, [*REST_LOSSES, ALL])
    if losses and select != RANDOM:
        raise InvalidInput(
            f"--rest {losses[0]} learns from what is not bought, and what {select} leaves is another rest after every "
            f"step; give --select {RANDOM}, or --rest {ALL}, which keeps images for labels alone"
        )


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

    Validation decides, not test: n/4 images that the teacher never saw, and a quarter of all labelled ones for students
    that know all labels. The best of many evaluations is a little better than what new images would show, most of all
    while n is small.

    Args:
        grid: of `until_grid`; its sizes are not used.
        target: mean over the seeds of the best validation accuracy, in (0, 1). Where labels alone are at it, nothing is
            bought.
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
    grid = _with_room(replace(grid, sizes=(step,), store=replace(grid.store, budget=budget)), config.out, dataset)
    steps: list[Step] = []

    def answer(*, reached: bool, stopped: bool = False) -> Purchase:
        return Purchase(target=target, budget=budget, reached=reached, stopped=stopped, steps=steps)

    if grid.labels_only is not None:
        execute_whole(grid, replace(config, asks=False), dataset)
        steps.append(_of_labels(chosen(collect(config.out))))
        on_step(steps[-1])
        if steps[-1].val_accuracy >= target:
            return answer(reached=True)
    for n in range(step, min(budget // views, _most_asked(grid, dataset, largest)) + 1, step):
        outcome = execute_whole(replace(grid, sizes=tuple(range(step, n + 1, step))), config, dataset)
        steps.append(_bought(chosen(collect(config.out)), n, step, n * views, outcome.new_calls))
        on_step(steps[-1])
        if steps[-1].val_accuracy >= target:
            return answer(reached=True)
        expected = steps[-1].expected
        if min_gain and expected is not None and expected.mean < min_gain:
            return answer(reached=False, stopped=True)
    return answer(reached=False)


def _most_asked(grid: Grid, dataset: ImageDataset, largest: int) -> int:
    """The largest n, beside which as many images are left as a rest is learned from, where one is."""
    [entry] = grid.methods
    if not entry.rest:
        return largest
    images = draw_sample(len(dataset.train), grid.sizes[0], grid.store.seed, dataset.is_labelled).images
    serves = np.arange(len(images))
    if any(reads_labels(text) for text in entry.rest):
        serves = np.flatnonzero(dataset.train.labels[images] != UNLABELLED)
    return min(largest, int(serves[-FEWEST_IMAGES])) if len(serves) >= FEWEST_IMAGES else 0


def _with_room(grid: Grid, out: Path, dataset: ImageDataset) -> Grid:
    """The same with a store that holds all images of the pool, where labels alone are to learn from them.

    So large a store need not grow, whatever the budget becomes: labels alone are then trained once, and chosen by as
    many validation images as go with them. There are labels wherever there are validation images.
    """
    if grid.labels_only is None and _keeps_rest(grid, out):
        grid = replace(grid, labels_only=_alone(grid.methods[0]))
    if grid.labels_only is None:
        return grid
    sample = draw_sample(len(dataset.train), grid.sizes[0], grid.store.seed, dataset.is_labelled)
    return replace(grid, room=len(sample.images))


def _keeps_rest(grid: Grid, out: Path) -> bool:
    """Whether a purchase that goes on began with labels alone, or its store was given images without an answer."""
    stores = [out / need.folder for need in plan_stores(as_bought(grid, out))]
    if any(Manifest.load(folder).rest for folder in stores if (folder / FILE_NAME).exists()):
        return True
    try:
        return (out / PLAN_FILE).exists() and any(not run.n for run in GridPlan.load(out).runs)
    except CKDError:  # it is about to be written again
        return False


def _of_labels(runs: pd.DataFrame) -> Step:
    return Step(n=0, calls=0, new_calls=0, **_measured(of_labels_alone(runs)))


def _bought(runs: pd.DataFrame, n: int, step: int, calls: int, new_calls: int) -> Step:
    so_far = of_samples(runs)[lambda asked: asked["n"] <= n]
    return Step(
        n=n,
        calls=calls,
        new_calls=new_calls,
        **_measured(so_far[so_far["n"] == n]),
        expected=_expected(so_far["n"].tolist(), so_far["best_val_accuracy"].tolist(), n, step),
        beyond=_beyond(runs, n),
    )


def _measured(runs: pd.DataFrame) -> dict[str, Any]:
    """Of students that differ in nothing but their seeds."""
    validation = runs["best_val_accuracy"]
    return {
        "val_accuracy": float(validation.mean()),
        "val_std": float(validation.std(ddof=1)) if len(runs) > 1 else None,
        "test_accuracy": float(runs["test_accuracy"].mean()),
        # Runs of earlier releases do not say it, and had none.
        "labelled_rows": int(runs["labelled_rows"].fillna(0).max()),
    }


def _beyond(runs: pd.DataFrame, n: int) -> Beyond | None:
    """As the report of a grid has it."""
    found = beyond_labels(runs)[lambda table: table["n"] == n]
    if found.empty:
        return None
    [row], [sentence] = found.to_dict("records"), brought(found, pairs_of(found))
    low, high = (None if isnan(end) else end for end in (row["low"], row["high"]))
    return Beyond(mean=row["mean"], low=low, high=high, sentence=sentence)


def _expected(sizes: Sequence[int], accuracies: Sequence[float], n: int, step: int) -> Expected | None:
    """What the next step brings, where enough is known to say so."""
    if len(sizes) < 3 or len(set(sizes)) < 2:
        return None
    return Line.through(sizes, accuracies).brought(n + step, n).within(-1, 1)
