"""Keep further images beside those that the teacher was asked about, in a store that is there; no call is made.

They come from the images that the store was built from, which are opened again and have to be the same. What the store
has stays as it is: stopped anywhere, it is the old store or the new one, and the same command finishes.
"""

from __future__ import annotations

from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ground.errors import DatasetMissing, DiskFull, IdentityMismatch, InvalidInput
from storage.manifest import Manifest
from storage.rows import Rows
from storage.schema import RowCounts
from storage.store import Store
from storage.store_ledger import open_ledger_of, witness_of
from teacher_cache.build import PATIENCE_SECONDS, accept_rollback, record_store
from teacher_cache.config import CallConfig, division_of
from teacher_cache.datasets import ImageDataset, open_dataset
from teacher_cache.datasets.registry import DATASETS, may_be, takes_path
from teacher_cache.plan import free_bytes
from teacher_cache.rest import Rest, rest_to_keep
from teacher_cache.rounds import bought_by_rules
from teacher_cache.sample import NestedSample, draw_sample
from teacher_cache.settle import require_only_place
from teacher_cache.shown import training_rows


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageOptions:
    """Where a store's images lie; None for what the store says itself."""

    dataset: str | None = None
    data_root: Path | None = None
    split: str | None = None
    split_seed: int | None = None


@dataclass(frozen=True, slots=True)
class RestReport:
    """What a store keeps afterwards, or would: rows that were asked about, further images, how many of these are new,
    and calls, of which there are none.
    """

    store: Path
    n: int
    rest: int
    added: int
    new_calls: int = 0


def add_rest(config: CallConfig, asked: Rest, where: ImageOptions, *, act: bool = True) -> RestReport:
    """Have a store keep so many images that nothing was asked about, or with `act` off say how many that adds.

    Raises:
        InvalidInput: the pool has fewer, or nobody says where the images lie.
        IdentityMismatch: they are not those that the store was built from.
        StoreBusy: a build is at work on the store.
        RolledBack: the ledger is older than its witness, or a fork.
        DiskFull: there is no room for them; the store is as it was.
    """
    folder = config.folder
    dataset = images_of(Store.open(folder), where)
    with Store.alone(folder, clean=act), ExitStack() as stack:
        store = Store.open(folder)
        before = store.manifest
        sample = draw_sample(len(dataset.train), before.n, before.identity.seed, dataset.is_labelled, _bought(store))
        rest = rest_to_keep(asked, sample, before)
        report = RestReport(folder, before.n, rest, rest - before.rest)
        _require_order(store, sample)
        _require_disk(store, rest)
        if not act:
            return report
        opened = open_ledger_of(
            store, config.ledger, patience_seconds=PATIENCE_SECONDS, accept_rollback=config.accept_rollback
        )
        ledger = stack.enter_context(closing(opened))
        ledger.require_recordable()
        accept_rollback(config, store, ledger)
        require_only_place(store, ledger)
        if report.added:
            _grow(store, dataset, sample.keeping(rest))
        record_store(store, ledger, "extend")
        witness_of(store, ledger).advance()
    return report


def images_of(store: Store, where: ImageOptions) -> ImageDataset:
    """The images that a store was built from, opened again; see `add_rest`."""
    manifest, name = store.manifest, where.dataset
    identity = manifest.identity
    if name is None:
        name = identity.dataset.name
        if takes_path(name):
            kind = name.partition(":")[0]
            raise InvalidInput(
                f"{store.place} was built from {name}, and only you can say where that lies: say it, with --dataset "
                f"{kind}:{DATASETS[kind].place}"
            )
    fit, options = identity.fit, dict[str, Any]()
    if takes_path(name):
        options = {
            "image_size": identity.geometry.image_size,
            "interpolation": fit.interpolation,
            "squares": fit.shape,
            **division_of(manifest),
        }
    said = {"split": where.split, "split_seed": where.split_seed}
    options |= {option: value for option, value in said.items() if value is not None}
    dataset = _opened(store, name, data_root=where.data_root, **options)
    # The files are read for the digest, and not for the classes.
    for field in ("classes", "digest"):
        found, wanted = getattr(dataset, field), getattr(identity.dataset, field)
        if found != wanted:
            raise _another(store, name, f"dataset.{field} (store: {_shown(wanted)}, found: {_shown(found)})")
    return dataset


def _opened(store: Store, name: str, **options: Any) -> ImageDataset:
    """A data set; what cannot be the store's by its name is not looked for."""
    own = store.manifest.identity.dataset.name
    field = f"dataset.name (store: {own}, asked: {name})"
    if not may_be(name, own):
        raise _another(store, name, field)
    try:
        return open_dataset(name, **options)
    except DatasetMissing as error:
        # A folder may be called otherwise by now, so that its name alone refuses nothing that is there.
        if not takes_path(name) or Path(name.partition(":")[2]).name == own.partition(":")[2]:
            raise
        raise _another(store, name, f"{field}, where nothing is ({error})") from error


def _another(store: Store, name: str, difference: str) -> IdentityMismatch:
    own, options = store.manifest.identity.dataset.name, store.image_options
    remedy = f"give the very same, with --dataset {options['dataset']}" if takes_path(own) else "leave it out"
    return IdentityMismatch(
        f"{store.place} is of the data set {own}, and --dataset {name} is not the one that it was built from: "
        f"{difference}; {remedy}"
    )


def _shown(value: str | tuple[str, ...]) -> str:
    """A digest by its beginning, and classes by their number and the first of them."""
    return value[:12] if isinstance(value, str) else f"{len(value)}, {value[0]} first"


def _require_order(store: Store, sample: NestedSample) -> None:
    """Refuse to go on from rows that are not the beginning of the sample."""
    there = store.read_sample("train/source_index", Rows.first(store.manifest.num_images))
    if not np.array_equal(there, sample.images[: len(there)]):
        raise IdentityMismatch(
            f"the images of {store.place} are in another order than its seed gives; build another store, with --rest"
        )


def _bought(store: Store) -> np.ndarray | None:
    identity = store.manifest.identity
    return bought_by_rules(store.place, identity.dataset.digest, identity.seed)


def _require_disk(store: Store, rest: int) -> None:
    """Raise `DiskFull` before anything is written."""
    before: Manifest = store.manifest
    counts = RowCounts(n=before.n, rest=rest, num_val=before.num_val, num_test=before.num_test)
    specs = store.arrays.specs.values()
    needed = sum(spec.stored_bytes(counts.of(spec)) - spec.stored_bytes(before.rows_of(spec)) for spec in specs)
    # An HDF5 store grows on a copy of itself.
    needed += store.arrays.size_bytes() if needed and before.array_format == "hdf5" else 0
    free = free_bytes(store.place)
    if free < needed:
        raise DiskFull(
            f"{rest - before.rest} more images need {needed / 1e6:.0f} MB and the disk of {store.place} has "
            f"{free / 1e6:.0f} MB free; free some space, or keep fewer"
        )


def _grow(store: Store, dataset: ImageDataset, sample: NestedSample) -> None:
    identity = store.manifest.identity
    rows = training_rows(
        dataset,
        sample,
        identity.geometry,
        policy=identity.view_policy,
        seed=identity.seed,
        num_views=identity.views,
    )
    store.grow({**store.samples(), **rows}, store.manifest.n)
