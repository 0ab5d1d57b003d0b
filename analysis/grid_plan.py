"""The plan of a grid, `grid.json`: which runs and stores there will be, and what they cost (docs/pipeline.md).

`ckd-pipeline run` writes it before the first call. It may come from elsewhere: its paths stay below the grid's folder.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any

from msgspec import UNSET, Struct, UnsetType

from ground.documents import (
    Count,
    Line,
    Malformed,
    Share,
    read_object,
    require_path_below,
    shown,
    typed,
    unreadable,
)

PLAN_FILE = "grid.json"
FORMAT = 1
# The rule by which a sample's own order is bought.
RANDOM = "random"
_ADVICE = "give the folder of a grid that `ckd-pipeline run` has made"


class GridStore(Struct, frozen=True, kw_only=True):
    """A store that students of the grid learn from, or are compared on; `store` is below the grid's folder."""

    teacher: Line
    dataset: Line
    store: Line
    n: Count
    calls: Count


class GridCost(Struct, frozen=True, kw_only=True):
    """Teacher calls of the grid: with its stores, with one for each n, and with none."""

    calls: Count
    calls_without_nesting: Count | UnsetType = UNSET
    calls_without_store: Count


class GridRun(Struct, frozen=True, kw_only=True):
    """A student of the grid.

    Args:
        run, store: folders below the grid's.
        n: images that the teacher was asked about; 0 for a run that learns from labels alone.
        sample_seed: of the images it learns from; plans of earlier releases do not say.
        select: the rule by which its images were bought; plans of earlier releases do not say.
        base: what its method is called whatever the rule, where one bought; likewise.
        weights: losses, with the weights of this run, among which validation chooses; plans of earlier releases name
            none.
        settings: of its training, which its `run.json` must agree with.
    """

    run: Line
    teacher: Line
    student: Line
    dataset: Line
    store: Line
    label: Line
    n: Count
    sample_seed: Count | None = None
    seed: Count
    select: Line = RANDOM
    base: Line | None = None
    weights: tuple[Line, ...] = ()
    settings: dict[str, Any]


class GridPlan(Struct, frozen=True, kw_only=True):
    """All that is planned.

    Args:
        targets: accuracies whose price in calls is asked for.
        test_images: that teachers and students are compared on; 0 for none.
        budget: of each store; None for no bound.
        runs: in the order in which they are trained.
        labelled: whether students could learn from labels alone; plans of earlier releases do not say.
    """

    name: Line
    targets: tuple[Share, ...]
    test_images: Count
    budget: Count | None
    stores: tuple[GridStore, ...]
    cost: GridCost
    runs: tuple[GridRun, ...]
    labelled: bool | UnsetType = UNSET

    @classmethod
    def load(cls, folder: Path) -> GridPlan:
        """What a grid has planned.

        Raises:
            InvalidInput: it is absent, damaged, of another format, or has a path that leads out of the folder.
        """
        path = folder / PLAN_FILE
        try:
            document = read_object(path)
            if document.get("format") != FORMAT:
                raise Malformed(f"it is of format {str(document.get('format'))[:20]!a}, this release reads {FORMAT}")
            plan = typed(document, cls)
            _require_paths_below(folder, plan)
        except Malformed as error:
            raise unreadable(path, error, _ADVICE) from error
        return plan


def _require_paths_below(folder: Path, plan: GridPlan) -> None:
    """Refuse folders outside the grid's, and one that two runs would share."""
    for place, store in enumerate(plan.stores):
        require_path_below(folder, store.store, f"stores[{place}].store")
    seen = set()
    for place, run in enumerate(plan.runs):
        require_path_below(folder, run.store, f"runs[{place}].store")
        require_path_below(folder, run.run, f"runs[{place}].run")
        where = PurePosixPath(run.run)
        if where in seen:
            raise Malformed(f"it has the run {shown(str(where))} twice")
        seen.add(where)
