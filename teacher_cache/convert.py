"""A store in another format: the same images, answers and history, in a new folder.

Everything is written into a folder beside the new one, which gets its name when it is whole.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from ground.durable import fsync_path, not_own, remove_own
from ground.errors import InvalidInput, StoreBusy, StoreIncomplete, UnknownName
from storage.canaries import CanaryRecord
from storage.digest import output_digests
from storage.formats import FORMATS
from storage.ledger import Ledger
from storage.locks import exclusive_lock
from storage.rows import Rows
from storage.schema import DIGEST
from storage.store import Store, runs_of
from storage.store_folder import BUILD_LOCK, LEDGER_FILE
from storage.store_ledger import open_ledger_of, own_ledger, witness_of
from teacher_cache.settle import require_storable, sort_out

_CELLS_AT_ONCE = 256
_MOST_BYTES = 8 << 20


@dataclass(frozen=True, slots=True)
class ConversionReport:
    """What a conversion made: cells are (row, view)."""

    store: Path
    out: Path
    array_format: str
    cells: int


def convert(
    folder: Path,
    array_format: str,
    out: Path,
    ledger_url: str | None = None,
    on_progress: Callable[[int, str], None] = lambda steps, note: None,
) -> ConversionReport:
    """Copy a store into another format; no call is made, and the store itself is not changed.

    Raises:
        StoreIncomplete: calls of it are not settled.
        StoreUnreadable: something in it is damaged.
        InvalidInput: `out` is not new.
        StoreBusy: a build is at work on the store, or another conversion on `out`.
    """
    if array_format not in FORMATS:
        raise UnknownName("format", array_format, FORMATS)
    out = out.absolute()
    require_new(out)
    if out.is_relative_to(folder.absolute()):
        raise InvalidInput(f"{out} lies in the store itself; give a folder elsewhere as --out")
    out.parent.mkdir(parents=True, exist_ok=True)
    with made_at(out) as partial:
        cells = _write_copy(folder, array_format, partial, ledger_url, on_progress)
    return ConversionReport(folder, out, array_format, cells)


def require_new(out: Path) -> None:
    """Raise `InvalidInput` for a place that a store cannot be made at."""
    if out.is_symlink():
        raise InvalidInput(f"{out} is a link; give the folder that it leads to, or a new one, as --out")
    if not out.name or (out.exists() and (not out.is_dir() or any(out.iterdir()))):
        raise InvalidInput(f"{out} exists; give a new folder as --out")


@contextmanager
def made_at(out: Path) -> Iterator[Path]:
    """An empty folder beside a new one, which gets its name when the block ends well.

    It has one name, and its maker the lock in it: what a conversion that was killed left is known by that, and deleted.
    """
    partial = out.with_name(f".{out.name}.convert.partial")
    if partial.is_symlink():
        raise not_own(partial)
    partial.mkdir(exist_ok=True)
    with exclusive_lock(partial / BUILD_LOCK, f"another conversion to {out} is at work"):
        # Who held the lock before may have finished, and given the folder its name.
        require_new(out)
        if not (partial / BUILD_LOCK).is_file():
            raise StoreBusy(f"another conversion to {out} was at work; run this one again")
        try:
            for left in partial.iterdir():
                if left.name != BUILD_LOCK:
                    left.unlink() if left.is_symlink() else remove_own(left)
            yield partial
            if out.exists():
                out.rmdir()
            os.rename(partial, out)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    fsync_path(out.parent)


def _write_copy(
    folder: Path,
    array_format: str,
    partial: Path,
    ledger_url: str | None,
    on_progress: Callable[[int, str], None],
) -> int:
    with Store.alone(folder, clean=False):
        source = Store.open(folder)
        with closing(open_ledger_of(source, ledger_url)) as ledger:
            ledger.require_recordable()
            require_settled(source, ledger)
            target = _lay_out(source, array_format, partial)
            cells = copy_cells(source, target, on_progress)
            recorded = CanaryRecord.load(folder)
            if recorded is not None:
                recorded.create(partial)
            _copy_history(source, target, ledger)
            target.save()
    return cells


def require_settled(store: Store, ledger: Ledger) -> None:
    """Raise `StoreIncomplete` for a store of which calls are not settled, `InvalidInput` where they cannot be."""
    left = ledger.calls_of_store(store.manifest.store_id, "reserved")
    if left:
        require_storable(store, sort_out(store, left).misfits, Rows.first(store.manifest.n))
        raise StoreIncomplete(
            f"{len(left)} calls of {store.folder} are not settled, a build was interrupted; settle them with: "
            f"{store.command('repair')}"
        )


def _lay_out(source: Store, array_format: str, folder: Path) -> Store:
    before = source.manifest
    manifest = replace(
        before,
        store_id=uuid.uuid4().hex,
        array_format=array_format,
        arrays=f"data{FORMATS[array_format].suffix}",
        history=(*before.history, {"store_id": before.store_id, "made_by": "convert"}),
    )
    return Store.lay_out(folder, manifest, source.samples())


def copy_cells(source: Store, target: Store, on_progress: Callable[[int, str], None]) -> int:
    """Copy every whole cell, in the target's types, which hold all that the source's do; returns how many.

    Raises:
        StoreUnreadable: one of them is damaged.
    """
    copied, at_once = 0, _cells_at_once(source)
    for first, count in runs_of(source.valid().reshape(-1).nonzero()[0].tolist()):
        for start in range(first, first + count, at_once):
            cells = range(start, min(start + at_once, first + count))
            values = {
                output.name: source.arrays.read_cells(source.array_of(output.name), cells.start, cells.stop)
                for output in source.outputs
            }
            written = source.arrays.read_cells(DIGEST, cells.start, cells.stop)
            found = target.write_outputs(cells, values)
            if target.outputs != source.outputs:
                found = output_digests(source.outputs, values)
            if (found != written).any():
                raise source.arrays.unreadable(DIGEST, f"cells {cells.start} to {cells.stop - 1} do not match it")
            target.publish(cells)
            copied += len(cells)
            on_progress(len(cells), "")
    return copied


def _cells_at_once(source: Store) -> int:
    """Few enough that memory does not grow with what is kept of each."""
    cell = sum(source.arrays.specs[source.array_of(output.name)].cell_bytes for output in source.outputs)
    return max(1, min(_CELLS_AT_ONCE, _MOST_BYTES // cell))


def _copy_history(source: Store, target: Store, ledger: Ledger) -> None:
    """Take the ledger along if it is the store's own, and record in it what the new store was made from."""
    content = {
        "manifest": target.manifest.digest,
        "made_by": "convert",
        "from": source.manifest.store_id,
    }
    if source.manifest.ledger is None:
        ledger.copy_to(target.folder / LEDGER_FILE)
        with closing(own_ledger(target.folder)) as copy:
            copy.record_store(target.manifest.store_id, content)
            head, genesis = copy.head(), copy.genesis()
            witness_of(target, copy).advance()
    else:
        ledger.record_store(target.manifest.store_id, content)
        head, genesis = ledger.head(), ledger.genesis()
        witness_of(source, ledger).advance()
    target.manifest = replace(target.manifest, ledger_head=head, ledger_genesis=genesis)
