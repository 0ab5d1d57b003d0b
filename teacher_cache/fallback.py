"""Where the type that features are kept in does not hold an answer, and nobody asked for that type: float32 instead.

Widening a store commits the answer, so the work goes on where it stopped and no call is repeated. A command that is
killed in between is run again: it finds a store that keeps its features in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from ground.errors import StoreBusy, TooNarrow
from ground.places import ObjectUrl
from ground.terminal import note
from storage.manifest import EXTENSION, FILE_NAME, is_store
from teacher_cache.build_report import BuildReport
from teacher_cache.config import BuildConfig, ExtensionConfig
from teacher_cache.prepare import Prepared
from teacher_cache.widen import widen

_Config = TypeVar("_Config", BuildConfig, ExtensionConfig)


def prepared_wide_enough(config: _Config, prepare: Callable[[_Config], Prepared]) -> Prepared:
    """What `prepare` makes of a configuration, where an earlier build may have kept an answer that does not fit.

    Raises:
        CKDError: as `prepare` and `go_on_wider`.
    """
    try:
        return prepare(config)
    except TooNarrow as error:
        return prepare(go_on_wider(config, error))


def run_wide_enough(
    config: _Config,
    prepared: Prepared,
    prepare: Callable[[_Config], Prepared],
    run: Callable[[Prepared, BuildReport], None],
    report: BuildReport | None = None,
) -> BuildReport:
    """What was done in all, where an answer may turn out not to fit.

    Args:
        prepared: what `prepare` made of the configuration.
        run: adds what it does to a report.
        report: to be added to; None for a new one.

    Raises:
        CKDError: as `prepare`, `run` and `go_on_wider`.
    """
    report = BuildReport(config.store, prepared.plan.n) if report is None else report
    try:
        run(prepared, report)
    except TooNarrow as error:
        run(prepare(go_on_wider(config, error)), report)
    return report


def go_on_wider(config: _Config, error: TooNarrow) -> _Config:
    """Widen what a build, or an extension, stopped at, as far as it is there, and say so; no call is made.

    Returns:
        What to ask for from now on.

    Raises:
        TooNarrow: the same, where a type was asked for, it is another store's, or others are at work on this one.
        DiskFull: there is no room for both widths; the store is as it was.
    """
    folder = config.store.absolute()
    if isinstance(folder, ObjectUrl):
        if config.feature_dtype is not None or is_store(folder):
            raise error
        return replace(config, feature_dtype="float32")
    is_extension, is_extended = isinstance(config, ExtensionConfig), (folder / EXTENSION).exists()
    is_ours = error.store is None or error.store.absolute() == folder
    # Of a store whose extension is unfinished, that one would be widened.
    if config.feature_dtype is not None or not is_ours or (is_extended and not is_extension):
        raise error
    if is_extended or (not is_extension and (folder / FILE_NAME).exists()):
        try:
            widen(config.folder, ledger_url=config.ledger)
        except StoreBusy:
            raise error from None
    what = "the features that are added" if is_extension else "its features"
    note(f"{error.why}; {config.store} keeps {what} in float32 from now on, and no call is repeated")
    return replace(config, feature_dtype="float32")
