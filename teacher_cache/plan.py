"""A plan: what a build will call, write and cost, as data. Nothing is called and nothing is written.

Whoever executes a plan is given the teacher and the images beside it.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from ground.errors import DiskFull, InvalidInput
from ground.places import ObjectUrl, Place, only_read
from storage.identity import Identity, require_same
from storage.ledger_records import RecordedCall
from storage.manifest import Round, is_store
from storage.rows import Rows
from storage.schema import CHUNK_ROWS, OutputSpec, RowsOf
from storage.spool import room_bytes
from storage.stage import Stage, rows_of
from storage.store import Store, array_specs
from storage.store_folder import DESKS, desks
from teacher_cache.config import CallConfig
from teacher_cache.in_hand import MOST_BATCHES
from teacher_cache.shown import Shown

_SPARE_BYTES = 32 << 20


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BuildPlan:
    """Calls to make, and the cells of a store that they fill.

    Args:
        config: how the calls are made.
        identity: of the store.
        array_format: "zarr" or "hdf5".
        rows: what is to be whole; the store may have more.
        source_index: (n,) int64, where in the training split each row comes from.
        input_digests: n lists of V: the exact inputs of all calls; those that are asked for are made then.
        missing_cells: cells, row * V + view, without whole outputs.
        needed_calls: distinct inputs among them that nobody has paid for yet.
        array_bytes: array name -> bytes it will take, uncompressed.
        free_bytes: room on the store's disk.
        called_outputs: what is kept of each call; the other outputs are copied from calls that were made before.
        required: what a call that was made before must have kept to answer for an input; a new one is made otherwise.
        purpose: what the ledger says that the calls were for.
        sources: what the store's manifest is to say of where images and teacher lie.
        canaries: calls that a build makes before any of these, where it makes any; see `teacher_cache.remote.canaries`.
        gate: cells that are answered and judged before any other; see `teacher_cache.sanity`.
        num_images: training images that the store is to have at least, asked about or not.
        rest: of those, how many the teacher will not have been asked about.
        rounds: how rows are chosen, as the store's manifest is to say it.
    """

    config: CallConfig
    identity: Identity
    array_format: str
    rows: Rows
    source_index: np.ndarray = field(repr=False)
    input_digests: Sequence[list[bytes]] = field(repr=False)
    missing_cells: np.ndarray = field(repr=False)
    needed_calls: int = 0
    array_bytes: Mapping[str, int]
    free_bytes: int
    called_outputs: tuple[OutputSpec, ...]
    required: frozenset[str]
    purpose: str
    sources: Mapping[str, str] = field(default_factory=dict)
    gate: tuple[int, ...] = ()
    canaries: int = 0
    num_images: int = 0
    rest: int = 0
    rounds: tuple[Round, ...] = ()

    @property
    def n(self) -> int:
        """Rows this build makes whole."""
        return len(self.rows)

    def fits(self, store: Store) -> bool:
        """Whether a store has room for all rows, and need not grow."""
        return store.manifest.n >= self.rows.end and store.manifest.num_images >= self.num_images

    @property
    def total_calls(self) -> int:
        """n * V."""
        return self.n * self.identity.views

    @property
    def paid_calls(self) -> int:
        """Of those, how many need no new call."""
        return self.total_calls - self.needed_calls

    @property
    def called_names(self) -> tuple[str, ...]:
        """Names of what is kept of each call."""
        return tuple(output.name for output in self.called_outputs)

    def input_of(self, cell: int) -> bytes:
        """Digest of the exact input that a cell is about."""
        row, view = divmod(cell, self.identity.views)
        return self.input_digests[row][view]

    def answered_by(self, calls: Sequence[RecordedCall]) -> bool:
        """Whether calls that were made answer for an input, so that none has to be made."""
        return any(self.required <= set(call.outputs) for call in calls)


def draw_up(
    config: CallConfig,
    identity: Identity,
    shown: Shown,
    found: Store | None,
    *,
    array_format: str,
    rows_of: RowsOf,
    called_outputs: tuple[OutputSpec, ...],
    required: frozenset[str] = frozenset(),
    purpose: str,
    sources: Mapping[str, str] | None = None,
) -> BuildPlan:
    """A plan, before anybody has looked at the ledger.

    Args:
        found: where cells may be whole already.
        rows_of: rows of each array.
    """
    rows = Rows.first(len(shown.views))
    return BuildPlan(
        config=config,
        identity=identity,
        array_format=array_format,
        rows=rows,
        source_index=shown.source_index,
        input_digests=shown.input_digests(),
        missing_cells=rows.cells(identity.views) if found is None else found.missing_cells(rows),
        array_bytes={
            spec.name: spec.stored_bytes(rows_of(spec))
            for spec in array_specs(identity, aligned=isinstance(config.store, ObjectUrl))
        },
        free_bytes=free_bytes(config.store),
        called_outputs=called_outputs,
        required=required,
        purpose=purpose,
        sources=sources or {},
    )


def costed(plan: BuildPlan, unpaid: set[bytes]) -> BuildPlan:
    """The same with what is still to be paid."""
    return replace(plan, needed_calls=len(unpaid))


def matching_store(place: Place, identity: Identity, array_format: str) -> Store | None:
    """The store that is already there, or None; raises `IdentityMismatch` if it is of something else."""
    if not is_store(place):
        return None
    store = Store.open(place)
    store.require_current()
    require_same(store.manifest.identity, identity, place, store.manifest.ledger)
    if store.manifest.array_format != array_format:
        raise InvalidInput(
            f"{place} is a {store.manifest.array_format} store, not {array_format}; "
            f"pass --format {store.manifest.array_format}, or another --store"
        )
    return store


def require_buildable(plan: BuildPlan, store: Store) -> None:
    """Raise `InvalidInput` for a store in object storage that would have to be changed to hold a plan's rows whole."""
    n, place = store.manifest.n, store.place
    if not store.manifest.aligned_chunks:
        raise only_read(place)
    if plan.n != n:
        raise InvalidInput(
            f"{place} is in object storage, where a store stays as long as it was made, and it has {n} rows; give "
            f"--n {n}, or build a store of {plan.n} at a new URL, which takes the answers that the ledger knows from "
            "this one"
        )
    if plan.num_images > store.manifest.num_images:
        raise InvalidInput(
            f"{place} is in object storage, where a store stays as it was made, and it keeps {store.manifest.rest} "
            "images beside those rows; leave out --rest, or build another store at a new URL"
        )
    numbers = set((plan.missing_cells // (CHUNK_ROWS * plan.identity.views)).tolist())
    for number in numbers & store.answered_chunks():
        if len(store.missing_cells(rows_of(number, n))):
            raise only_read(place)


def free_bytes(place: Place) -> int:
    """Room on the disk that holds, or will hold, a store; of one in object storage, what its builder has in hand."""
    absolute = (desks() if isinstance(place, ObjectUrl) else place).absolute()
    return shutil.disk_usage(next(parent for parent in (absolute, *absolute.parents) if parent.exists())).free


def require_disk(plan: BuildPlan, store: Store | None) -> None:
    """Raise `DiskFull` before anything is done if the arrays, less what a store already has, do not fit."""
    spooled = room_bytes(plan.identity.outputs, MOST_BATCHES * min(plan.config.batch_size, plan.needed_calls))
    if isinstance(plan.config.store, ObjectUrl):
        _require_desk(plan, spooled)
        return
    have = 0 if store is None else store.arrays.size_bytes()
    # An HDF5 store grows on a copy of itself.
    copied = have if store is not None and not plan.fits(store) else 0
    needed = max(0, sum(plan.array_bytes.values()) - have) + copied + spooled + _SPARE_BYTES
    if plan.free_bytes < needed:
        raise DiskFull(
            f"the store needs {needed / 1e6:.0f} MB and the disk of {plan.config.store} has "
            f"{plan.free_bytes / 1e6:.0f} MB free; free some space, keep fewer --features, or choose another --store"
        )


def _require_desk(plan: BuildPlan, spooled: int) -> None:
    """The same for what a builder of a store in object storage has in hand: the rows of one chunk."""
    specs = {spec.name: spec for spec in array_specs(plan.identity, aligned=True)}
    needed = Stage.room_bytes(specs, plan.identity.views) + spooled + _SPARE_BYTES
    if plan.free_bytes < needed:
        raise DiskFull(
            f"the rows in hand need {needed / 1e6:.0f} MB and the disk of {desks()} has {plan.free_bytes / 1e6:.0f} MB "
            f"free; free some space, keep fewer --features, or name a folder on another disk with {DESKS}"
        )
