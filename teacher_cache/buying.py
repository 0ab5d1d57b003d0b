"""Buy a store's rows in rounds: prepare each when the rows of those before are there, then run it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from ground.errors import BoughtOtherwise
from storage.manifest import Manifest, is_store
from teacher_cache.build_report import BuildReport
from teacher_cache.config import BuildConfig
from teacher_cache.fallback import prepared_wide_enough, run_wide_enough
from teacher_cache.prepare import Prepared, images_of_build, prepare_build
from teacher_cache.rounds import round_ends

# Each time that others were faster they have bought a round, which is then only to be finished.
_MOST_ATTEMPTS = 8


def buy(
    config: BuildConfig,
    size: int | None,
    run: Callable[[Prepared, BuildReport], None],
    prepare: Callable[[BuildConfig], Prepared] | None = None,
) -> BuildReport:
    """Have a store of n rows, bought in rounds of at most `size` beyond what it has; None for all in one.

    Args:
        run: makes the rows of one round whole, and adds what it does to a report.
        prepare: None for `prepare_build`, with images that are opened once.

    Raises:
        CKDError: as `prepare_build` and `run`.
    """
    bought = Manifest.load(config.store).n if is_store(config.store) else 0
    ends = round_ends(config.n, bought, size)
    if prepare is None:
        prepare = partial(prepare_build, dataset=images_of_build(config)) if len(ends) > 1 else prepare_build
    report = BuildReport(config.store, config.n)
    for end in ends:
        # What follows the rows of the last round is kept when these are there.
        of_round = replace(config, n=end, rest=config.rest if end == config.n else None)
        _run_round(of_round, prepare, run, report)
    return report


def _run_round(
    config: BuildConfig,
    prepare: Callable[[BuildConfig], Prepared],
    run: Callable[[Prepared, BuildReport], None],
    report: BuildReport,
) -> None:
    for attempt in range(1, _MOST_ATTEMPTS + 1):
        try:
            run_wide_enough(config, prepared_wide_enough(config, prepare), prepare, run, report)
            return
        except BoughtOtherwise:
            if attempt == _MOST_ATTEMPTS:
                raise
