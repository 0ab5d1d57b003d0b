"""Keep features in float32 from now on, where their type turned out too narrow for an answer; no call is made.

What is there is copied into new arrays beside the old ones, number by number: what was rounded stays rounded. The
new manifest takes the old one's place in one rename, and then answers that were spooled because they did not fit are
committed. Stopped anywhere, it leaves the old store or the new one; the same command finishes.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from pathlib import Path

from ground.durable import fsync_path, remove_own
from ground.errors import DiskFull
from ground.layers import LOGITS
from storage.float_types import NARROW_TYPES
from storage.ledger import Ledger
from storage.locks import CellLocks
from storage.manifest import EXTENSION, FILE_NAME, Manifest
from storage.schema import OutputSpec
from storage.store import Store, array_specs
from storage.store_folder import CELL_LOCK
from storage.store_ledger import open_ledger_of, witness_of
from teacher_cache.convert import copy_cells
from teacher_cache.extend import next_arrays_name
from teacher_cache.plan import free_bytes
from teacher_cache.settle import require_only_place, settle_store


@dataclass(slots=True)
class WideningReport:
    """What was widened; cells are (row, view).

    Args:
        manifest: file name of the manifest that was replaced: the store's, or its unfinished extension's.
        outputs: what is kept in float32 from now on; none if everything was before.
        cells: that were copied.
        committed: answers that were paid for, and are kept now.
    """

    store: Path
    manifest: str
    outputs: list[str] = field(default_factory=list)
    cells: int = 0
    committed: int = 0


def widen(
    folder: Path,
    *,
    ledger_url: str | None = None,
    on_progress: Callable[[int, str], None] = lambda steps, note: None,
) -> WideningReport:
    """Keep a store's features in float32; of a store with an unfinished extension, those that it adds.

    Raises:
        StoreBusy: a build is at work.
        RolledBack: the ledger is older than its witness, or a fork.
        StoreUnreadable: something in it is damaged.
        DiskFull: there is no room for both widths; the store is as it was.
    """
    with ExitStack() as stack:
        stack.enter_context(Store.alone(folder))
        locks = stack.enter_context(CellLocks(folder / CELL_LOCK))
        base = Store.open(folder)
        store = Store.open(folder, EXTENSION) if (folder / EXTENSION).exists() else base
        ledger = stack.enter_context(closing(open_ledger_of(base, ledger_url)))
        ledger.require_recordable()
        require_only_place(base, ledger)
        report = WideningReport(folder, store.file_name, _narrow(store, base))
        before = len(settle_store(store, ledger, locks).adopted)
        if report.outputs:
            store, report.cells = _widened(store, report.outputs, ledger, on_progress)
        report.committed = before + len(settle_store(store, ledger, locks).adopted)
        store.record_ledger_head(ledger.head(), ledger.genesis())
        witness_of(base, ledger).advance()
    return report


def _narrow(store: Store, base: Store) -> list[str]:
    """Features that are kept in a narrower type; of an extension, those that the store itself lacks."""
    kept = set() if store.file_name == FILE_NAME else {output.name for output in base.outputs}
    return [
        output.name
        for output in store.outputs
        if output.name != LOGITS and output.dtype in NARROW_TYPES and output.name not in kept
    ]


def _widened(
    store: Store, names: list[str], ledger: Ledger, on_progress: Callable[[int, str], None]
) -> tuple[Store, int]:
    """The store with wider arrays in place of its own, and how many cells were copied."""
    before = store.manifest
    manifest = _wide_manifest(before, names)
    specs = array_specs(manifest.identity, aligned=manifest.aligned_chunks)
    needed = sum(spec.stored_bytes(manifest.rows_of(spec)) for spec in specs)
    if free_bytes(store.folder) < needed:
        raise DiskFull(
            f"the wider arrays need {needed / 1e6:.0f} MB beside the old ones, and the disk of {store.folder} has "
            f"{free_bytes(store.folder) / 1e6:.0f} MB free; free some space, then run the same command again"
        )
    try:
        wide = Store.lay_out(store.folder, manifest, store.samples(), store.file_name)
        cells = copy_cells(store, wide, on_progress)
    except BaseException:
        remove_own(store.folder / manifest.arrays)
        raise
    # As in an upgrade: chained before the manifest is replaced, the entry holds for both.
    content = {"manifest": wide.manifest.digest, "made_by": "widen", "replaces": before.digest}
    ledger.record_store(before.store_id, content)
    wide.save(replace(wide.manifest, ledger_head=ledger.head()))
    old = store.arrays.path
    shutil.rmtree(old) if old.is_dir() else old.unlink()
    fsync_path(store.folder)
    return wide, cells


def _wide_manifest(before: Manifest, names: list[str]) -> Manifest:
    outputs = tuple(
        OutputSpec(output.name, output.shape, "float32") if output.name in names else output
        for output in before.identity.outputs
    )
    return replace(
        before,
        arrays=next_arrays_name(before),
        identity=replace(before.identity, outputs=outputs),
        history=(*before.history, {"store_id": before.store_id, "made_by": "widen"}),
    )
