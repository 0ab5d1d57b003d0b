"""Buy a store's rows in rounds: prepare each when the rows of those before are whole, then run it.

Several builders may run the same command: whoever comes into a round that is under way helps to finish it, and who
chooses next while others are still busy waits for them.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from ground.errors import BoughtOtherwise, FewerBusy, InvalidInput
from ground.places import ObjectUrl
from storage.manifest import is_store
from storage.rows import Rows
from storage.store import Store
from teacher_cache.build_report import BuildReport
from teacher_cache.config import BuildConfig
from teacher_cache.fallback import prepared_wide_enough, run_wide_enough
from teacher_cache.prepare import Prepared, images_of_build, prepare_build
from teacher_cache.rounds import round_ends

log = logging.getLogger(__name__)

# Each time that others were faster they have bought a round, which is then only to be finished.
_MOST_ATTEMPTS = 8
# How long others have to finish a round, in leases: they are at its last batches when its rows are all in hand.
_LEASES_OF_OTHERS = 2
_POLL_SECONDS = 0.25
_FEWEST_ROWS = 2


def rounds_to_buy(config: BuildConfig, size: int | None) -> list[int]:
    """Where the rounds end that are still to be bought, or finished.

    Args:
        size: rows of a round at most, beyond what the store has; None for all in one.

    Raises:
        InvalidInput: the first has too few rows; or they are several, and the store is in object storage, where none
            grows.
    """
    if not is_store(config.store):
        ends = round_ends(config.n, 0, size)
    else:
        store = Store.open(config.store)
        bought = store.manifest.n
        ends = round_ends(config.n, bought, size)
        if bought < config.n and _goes_in_rounds(config, size) and len(store.missing_cells(Rows.first(bought))):
            ends = [bought, *ends]
    if ends[0] < _FEWEST_ROWS and len(ends) > 1:
        raise InvalidInput(f"--round {size} is too small to begin a store with; give at least {_FEWEST_ROWS}")
    if len(ends) > 1 and isinstance(config.store, ObjectUrl):
        raise InvalidInput(
            f"{config.store} is in object storage, where a store stays as long as it was made, and --round would have "
            "it grow; leave out --round"
        )
    return ends


def buy(
    config: BuildConfig,
    size: int | None,
    run: Callable[[Prepared, BuildReport], None],
    prepare: Callable[..., Prepared] | None = None,
) -> BuildReport:
    """Have a store of n rows, bought in rounds of at most `size` beyond what it has; None for all in one.

    Args:
        run: makes the rows of one round whole, and adds what it does to a report.
        prepare: `prepare_build`, with some of its arguments; None for that with images that are opened once.

    Raises:
        CKDError: as `prepare_build` and `run`; what can be known of all rounds before the first call.
    """
    ends = rounds_to_buy(config, size)
    if prepare is None:
        prepare = partial(prepare_build, dataset=images_of_build(config)) if len(ends) > 1 else prepare_build
    if len(ends) > 1:
        # Whatever the last round would be refused for, but for what its rule looks at.
        last = replace(config, n=_images_needed(config, ends), select=None)
        prepared_wide_enough(last, partial(prepare, rounds=len(ends)))
    report = BuildReport(config.store, config.n)
    for end in ends:
        _run_round(_of_round(config, end), prepare, run, report, waits=_goes_in_rounds(config, size))
    return report


def _images_needed(config: BuildConfig, ends: Sequence[int]) -> int:
    """Rows of the last round, without those that a rule makes of others."""
    if config.select is None:
        return config.n
    rule = config.select.make()
    bought = Store.open(config.store).manifest.n if is_store(config.store) else 0
    sizes = np.diff([bought, *(end for end in ends if end > bought)])
    return max(_FEWEST_ROWS, bought + sum(rule.num_images(size) for size in sizes.tolist()))


def _goes_in_rounds(config: BuildConfig, size: int | None) -> bool:
    """Whether what is bought next may depend on what was bought before, so that it waits for that."""
    return size is not None or config.select is not None


def _of_round(config: BuildConfig, end: int) -> BuildConfig:
    """What one round asks for: what is bought already is finished as it is; a rest is kept with the last rows."""
    if end == config.n:
        return config
    is_there = is_store(config.store) and Store.open(config.store).manifest.n >= end
    return replace(config, n=end, rest=None, select=None if is_there else config.select)


def _run_round(
    config: BuildConfig,
    prepare: Callable[[BuildConfig], Prepared],
    run: Callable[[Prepared, BuildReport], None],
    report: BuildReport,
    *,
    waits: bool,
) -> None:
    attempts, until = 0, time.monotonic() + _LEASES_OF_OTHERS * config.lease_seconds
    while True:
        try:
            run_wide_enough(config, prepared_wide_enough(config, prepare), prepare, run, report)
            return
        except BoughtOtherwise:
            attempts += 1
            if attempts == _MOST_ATTEMPTS:
                raise
            log.info("another builder has chosen the next rows of %s meanwhile; going on from those", config.store)
        except FewerBusy:
            if not waits or time.monotonic() > until:
                raise
            time.sleep(_POLL_SECONDS * (1 + random.random()))
