"""Keep more of each call: the teacher is called again on every view of a whole store, for feature maps it lacks.

What the store has stays as it is. The new arrays, with everything copied into them, are built beside the old ones, as
any store is built, under a manifest of their own, `extension.json`. When they are whole it takes the place of
`manifest.json`, in one rename: until then the store is the old one, and an interrupted extension goes on.
"""

from __future__ import annotations

import os
import re
import shutil
import uuid
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ground.durable import fsync_path
from ground.errors import IdentityMismatch, InvalidInput, StoreBusy, store_command
from ground.geometry import Normalisation, ViewGeometry
from models.compute import Compute
from storage.digest import input_digests
from storage.ledger import Ledger
from storage.locks import CellLocks
from storage.manifest import EXTENSION, FILE_NAME, Identity, Manifest, require_same
from storage.schema import OutputSpec
from storage.store import CELL_LOCK, Store, array_specs, sample_digests
from teacher_cache.build import PATIENCE_SECONDS, Builder, BuildReport, record_store
from teacher_cache.lease import this_host
from teacher_cache.plan import BuildConfig, BuildPlan, free_bytes, open_ledger_of, require_disk, unpaid_inputs
from teacher_cache.settle import require_only_place, settle_store
from teacher_cache.teacher import (
    Teacher,
    choose_outputs,
    find_weights,
    load_teacher,
    parameter_rows,
    parameter_specs,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtensionConfig:
    """What the user asks for.

    Args:
        features: see `choose_outputs`.
        weights: of the store's own teacher; None looks where `build` does.
        ledger: URL of the ledger the store was built with; None for its own.
    """

    store: Path
    features: str
    weights: Path | None = None
    ledger: str | None = None
    budget: int | None = None
    feature_dtype: str = "float16"
    batch_size: int = 64
    device: str = "auto"
    lease_seconds: float = 60.0


@dataclass(frozen=True, slots=True)
class _StoredFacts:
    """What a store says of its data set."""

    name: str
    classes: tuple[str, ...]
    geometry: ViewGeometry
    normalisation: Normalisation


def plan_extension(config: ExtensionConfig) -> BuildPlan:
    """Check everything that can be checked without a call, and count the calls.

    Raises:
        StoreIncomplete: the store is not whole.
        IdentityMismatch: the weights are not those of its teacher.
        CKDError: anything else that would make the extension fail later.
    """
    store = Store.open(config.store)
    store.require_current()
    store.require_rows(store.manifest.n)
    identity = store.manifest.identity
    added = missing_outputs(store, config.features, config.feature_dtype)
    if not added:
        names = ", ".join(sorted(identity.features)) or "no features"
        raise InvalidInput(f"{config.store} has nothing to be extended by: it keeps {names} already")
    teacher = teacher_of(store, config.weights, config.device)
    order = ("logits", *identity.teacher.layers)
    outputs = tuple(sorted((*identity.outputs, *added), key=lambda output: order.index(output.name)))
    parameters = teacher.parameters(outputs)
    identity = replace(identity, outputs=outputs, parameters=parameter_specs(parameters))
    samples = store.read_samples() | parameter_rows(parameters)
    plan = _plan(config, store, identity, samples, teacher=teacher, called_outputs=added)
    plan = replace(plan, needed_calls=len(unpaid_inputs(plan, store)))
    require_disk(plan, _staged(config.store, plan.identity))
    return plan


def teacher_of(store: Store, weights: Path | None, device: str) -> Teacher:
    """A store's own teacher, from its weights; None looks where `build` does.

    Raises:
        IdentityMismatch: the weights are not those of its teacher.
    """
    identity, facts = store.manifest.identity, _facts_of(store)
    compute = Compute.choose(device, identity.teacher.precision)
    teacher = load_teacher(identity.teacher.name, find_weights(identity.teacher.name, facts, weights), facts, compute)
    require_same(identity, replace(identity, teacher=teacher.identity), store.folder)
    return teacher


def missing_outputs(store: Store, features: str, feature_dtype: str) -> tuple[OutputSpec, ...]:
    """Of the features that are asked for, those that a store does not keep; raises `UnknownName` for no layers."""
    wanted = choose_outputs(store.manifest.identity.teacher.name, _facts_of(store), features, feature_dtype)
    kept = {output.name for output in store.outputs}
    return tuple(output for output in wanted if output.name not in kept)


def _facts_of(store: Store) -> _StoredFacts:
    identity = store.manifest.identity
    return _StoredFacts(
        identity.dataset.name, identity.dataset.classes, identity.geometry, identity.teacher.normalisation
    )


def _plan(
    config: ExtensionConfig, store: Store, identity: Identity, samples: dict[str, np.ndarray], **fields: object
) -> BuildPlan:
    manifest = store.manifest
    staged = _staged(config.store, identity)
    specs = array_specs(identity)
    build_config = BuildConfig(
        teacher=identity.teacher.name,
        n=manifest.n,
        store=config.store,
        dataset=identity.dataset.name,
        array_format=manifest.array_format,
        views=identity.views,
        view_policy=identity.view_policy,
        seed=identity.seed,
        budget=config.budget,
        ledger=config.ledger,
        batch_size=config.batch_size,
        lease_seconds=config.lease_seconds,
    )
    return BuildPlan(
        config=build_config,
        identity=identity,
        samples=lambda: samples,
        source_index=samples["train/source_index"],
        views=samples["train/views"],
        images=samples["train/images"],
        input_digests=input_digests(samples["train/images"], samples["train/views"], identity.geometry),
        missing_cells=np.arange(manifest.n * identity.views) if staged is None else staged.missing_cells(manifest.n),
        needed_calls=0,
        array_bytes={spec.name: spec.stored_bytes(manifest.rows[spec.split]) for spec in specs},
        free_bytes=free_bytes(config.store),
        purpose="extend",
        **fields,  # type: ignore[arg-type]
    )


def extend(plan: BuildPlan, on_progress: Callable[[int, str], None] = lambda steps, note: None) -> BuildReport:
    """Call the teacher again on all views of a store, and keep the outputs that it lacks.

    Raises:
        BudgetRefused: before the first call.
        StoreBusy: a build is at work on the store.
        Interrupted: the user asked to stop; everything called so far is kept.
    """
    folder = plan.config.store
    with ExitStack() as stack:
        stack.enter_context(Store.alone(folder))
        locks = stack.enter_context(CellLocks(folder / CELL_LOCK))
        store = Store.open(folder)
        ledger = stack.enter_context(
            closing(open_ledger_of(store, plan.config.ledger, patience_seconds=PATIENCE_SECONDS))
        )
        if plan.n != store.manifest.n or {*store.outputs, *plan.called_outputs} != {*plan.identity.outputs}:
            raise StoreBusy(f"{folder} was grown or extended after this extension was planned; run it again")
        require_only_place(store, ledger)
        settle_store(store, ledger, locks, this_host())
        staged = _staged(folder, plan.identity) or _stage(plan, store)
        if staged.manifest.n < store.manifest.n:
            staged.grow(plan.samples())
        record_store(staged, ledger, "extend")
        report = _fill(plan, staged, ledger, locks, on_progress)
        staged.record_ledger_head(ledger.head())
        _take_place(folder, store, staged)
    return report


def _fill(
    plan: BuildPlan,
    staged: Store,
    ledger: Ledger,
    locks: CellLocks,
    on_progress: Callable[[int, str], None],
) -> BuildReport:
    found = settle_store(staged, ledger, locks, this_host())
    builder = Builder(plan, staged, ledger, locks, on_progress)
    builder.report.adopted_calls, builder.report.lost_calls = len(found.adopted), len(found.lost)
    return builder.run()


def _staged(folder: Path, identity: Identity) -> Store | None:
    """An extension that was begun; raises `IdentityMismatch` if it is of other features."""
    if not (folder / EXTENSION).exists():
        return None
    staged = Store.open(folder, EXTENSION)
    if staged.manifest.identity != identity:
        names = ",".join(output.name for output in staged.outputs if output.name != "logits")
        raise IdentityMismatch(
            f"an extension of {folder} to {names} was interrupted; finish that one first, with: "
            f"{store_command('extend', folder, features=names)}"
        )
    return staged


def _stage(plan: BuildPlan, store: Store) -> Store:
    before = store.manifest
    samples = plan.samples()
    manifest = replace(
        before,
        store_id=uuid.uuid4().hex,
        arrays=next_arrays_name(before),
        identity=plan.identity,
        samples=sample_digests(samples),
        history=(*before.history, {"store_id": before.store_id, "made_by": "extend"}),
    )
    staged = Store.lay_out(plan.config.store, manifest, samples, EXTENSION)
    staged.save()
    return staged


def next_arrays_name(manifest: Manifest) -> str:
    """data.zarr -> data-1.zarr -> data-2.zarr."""
    stem, suffix = os.path.splitext(manifest.arrays)
    number = re.search(r"-(\d+)$", stem)
    return f"data-{int(number[1]) + 1 if number else 1}{suffix}"


def _take_place(folder: Path, store: Store, staged: Store) -> None:
    os.replace(folder / EXTENSION, folder / FILE_NAME)
    fsync_path(folder)
    old = store.arrays.path
    shutil.rmtree(old) if old.is_dir() else old.unlink()
    fsync_path(folder)
