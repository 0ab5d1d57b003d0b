"""Plan a build: what it would call, write and cost. Nothing is called and nothing is written."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence, Set
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from ground.errors import DiskFull, IdentityMismatch, InvalidInput, UnknownName
from ground.geometry import VIEW_POLICIES
from ground.views import sample_views
from models import create_model
from models.compute import Compute
from storage.database import shown_url
from storage.digest import input_digests
from storage.formats import FORMATS
from storage.ledger import Ledger, check_budget, ledger_exists
from storage.ledger_records import RecordedCall
from storage.locks import is_held
from storage.manifest import FILE_NAME, MAX_VIEWS, DatasetIdentity, Identity, require_same
from storage.schema import OutputSpec, split_rows
from storage.store import BUILD_LOCK, LEDGER_FILE, Store, array_specs, own_ledger
from teacher_cache.datasets import ImageDataset, open_dataset
from teacher_cache.lease import this_host
from teacher_cache.reuse import PaidAnswers, keeper_of, open_keeper, require_alike
from teacher_cache.sample import NestedSample, draw_sample
from teacher_cache.settle import sort_out
from teacher_cache.teacher import (
    Teacher,
    choose_outputs,
    find_weights,
    load_teacher,
    parameter_rows,
    parameter_specs,
)

_SPARE_BYTES = 32 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildConfig:
    """What the user asks for; the defaults are those of the command.

    Args:
        n: training images the teacher is called on.
        views: V, calls per image.
        features: see `choose_outputs`.
        budget: most calls ever to be spent on this teacher; None leaves the ledger's as it is.
        ledger: URL of a shared ledger; None for the store's own.
        batch_size: teacher calls made together.
        lease_seconds: how long other builders wait for this one when it no longer shows that it lives.
    """

    teacher: str
    n: int
    store: Path
    dataset: str = "cifar100"
    data_root: Path | None = None
    image_size: int | None = None
    download: bool = False
    weights: Path | None = None
    array_format: str = "zarr"
    features: str = "none"
    feature_dtype: str = "float16"
    views: int = 1
    view_policy: str = "augmented"
    seed: int = 0
    budget: int | None = None
    ledger: str | None = None
    batch_size: int = 64
    device: str = "auto"
    precision: str = "auto"
    lease_seconds: float = 60.0

    def __post_init__(self) -> None:
        choices = {
            "format": (self.array_format, FORMATS),
            "feature dtype": (self.feature_dtype, ("float16", "float32")),
            "view policy": (self.view_policy, VIEW_POLICIES),
        }
        for kind, (name, known) in choices.items():
            if name not in known:
                raise UnknownName(kind, name, known)
        if self.view_policy == "plain" and self.views > 1:
            raise InvalidInput("every plain view of an image is the same; use --views 1, or --view-policy augmented")
        for name, most in (("views", MAX_VIEWS), ("batch_size", 1 << 16)):
            if not 1 <= getattr(self, name) <= most:
                raise InvalidInput(f"--{name.replace('_', '-')} must be 1 to {most}, got {getattr(self, name)}")
        if not 0.5 <= self.lease_seconds <= 86400:
            raise InvalidInput(f"--lease must be 0.5 to 86400 seconds, got {self.lease_seconds}")


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildPlan:
    """A build that is ready to start.

    Args:
        samples: reads the sample arrays of all n rows, whole, and the teacher's parameters.
        source_index: (n,) int64, where in the training split each row comes from.
        views: (n, V, 3).
        input_digests: n lists of V: the exact inputs of all calls.
        missing_cells: cells, row * V + view, without whole outputs.
        needed_calls: distinct inputs among them that nobody has paid for yet.
        array_bytes: array name -> bytes it will take, uncompressed.
        free_bytes: room on the store's disk.
        called_outputs: what is kept of each call; the other outputs are copied from calls that were made before.
        purpose: what the calls are for, as the ledger says it.
    """

    config: BuildConfig
    teacher: Teacher
    identity: Identity
    samples: Callable[[], dict[str, np.ndarray]] = field(repr=False)
    source_index: np.ndarray = field(repr=False)
    views: np.ndarray
    input_digests: list[list[bytes]] = field(repr=False)
    images: np.ndarray = field(repr=False)
    missing_cells: np.ndarray = field(repr=False)
    needed_calls: int
    array_bytes: dict[str, int]
    free_bytes: int
    called_outputs: tuple[OutputSpec, ...]
    purpose: str = "build"

    @property
    def n(self) -> int:
        """Rows this build makes whole; the store may have more."""
        return len(self.input_digests)

    @property
    def total_calls(self) -> int:
        """n * V."""
        return self.n * self.identity.views

    def input_of(self, cell: int) -> bytes:
        """Digest of the exact input that a cell is about."""
        row, view = divmod(cell, self.identity.views)
        return self.input_digests[row][view]

    def answered_by(self, calls: Sequence[RecordedCall]) -> bool:
        """Whether calls that were made answer for an input, so that none has to be made."""
        if self.purpose == "build":
            return bool(calls)
        wanted = {output.name for output in self.called_outputs}
        return any(wanted <= set(call.outputs) for call in calls)

    @property
    def paid_calls(self) -> int:
        """Of those, how many need no new call."""
        return self.total_calls - self.needed_calls


def plan_build(config: BuildConfig, dataset: ImageDataset | None = None) -> BuildPlan:
    """Check everything that can be checked without a call, and count what is to be done.

    Args:
        dataset: the one that `config` names, where it is open already; its files are read once.

    Raises:
        CKDError: anything that would make the build fail later.
    """
    # Cheapest checks first: names, then files, then the images.
    compute, dataset = _open_names(config, dataset)
    sample = draw_sample(len(dataset.train), config.n, config.seed)
    return _plan(config, dataset, _identity(config, dataset, compute), sample)


def plan_test_calls(config: BuildConfig, dataset: ImageDataset | None = None) -> BuildPlan:
    """The same for the first n images of the test split, as evaluation shows them: one plain view each.

    Where a student and its teacher are compared on unseen images, those calls are calls like any others. They are kept
    in a store of their own, whose training split is the test images; it can grow. `config.views` and its policy are not
    used.

    Raises:
        CKDError: as `plan_build`; InvalidInput if the test split is smaller than n.
    """
    config = replace(config, views=1, view_policy="plain")
    compute, dataset = _open_names(config, dataset)
    if not 2 <= config.n <= len(dataset.test):
        raise InvalidInput(
            f"{config.n} test images are asked for, and {dataset.name} has {len(dataset.test)}; ask for 2 to that many"
        )
    index = np.arange(config.n, dtype=np.int64)
    # Looked for by the name of the whole data set.
    weights = find_weights(config.teacher, dataset, config.weights)
    dataset = replace(dataset, name=f"{dataset.name}/test", train=dataset.test)
    identity = _identity(replace(config, weights=weights), dataset, compute)
    # A store holds at least one image for validation; nobody uses it.
    return _plan(config, dataset, identity, NestedSample(train=index, val=index[:1]))


def _open_names(config: BuildConfig, dataset: ImageDataset | None) -> tuple[Compute, ImageDataset]:
    compute = Compute.choose(config.device, "fp32" if config.precision == "auto" else config.precision)
    create_model(config.teacher, num_classes=2)
    if dataset is None:
        dataset = open_dataset(
            config.dataset, data_root=config.data_root, image_size=config.image_size, download=config.download
        )
    return compute, dataset


def _identity(config: BuildConfig, dataset: ImageDataset, compute: Compute) -> tuple[Teacher, Identity]:
    outputs = choose_outputs(config.teacher, dataset, config.features, config.feature_dtype)
    teacher = load_teacher(config.teacher, find_weights(config.teacher, dataset, config.weights), dataset, compute)
    return teacher, Identity(
        teacher=teacher.identity,
        dataset=DatasetIdentity(name=dataset.name, digest=dataset.digest, classes=dataset.classes),
        geometry=dataset.geometry,
        seed=config.seed,
        views=config.views,
        view_policy=config.view_policy,
        outputs=outputs,
        parameters=parameter_specs(teacher.parameters(outputs)),
    )


def _plan(
    config: BuildConfig, dataset: ImageDataset, asked: tuple[Teacher, Identity], sample: NestedSample
) -> BuildPlan:
    teacher, identity = asked
    store = open_matching_store(config, identity)
    images = dataset.train.read(sample.train)
    views = sample_views(
        dataset.geometry,
        config.view_policy,
        seed=config.seed,
        source_index=sample.train,
        num_views=config.views,
    )
    n, rows = len(sample.train), split_rows(len(sample.train), len(sample.val), len(dataset.test))
    parameters = parameter_rows(teacher.parameters(identity.outputs))
    plan = BuildPlan(
        config=config,
        teacher=teacher,
        identity=identity,
        samples=lambda: _sample_values(dataset, sample, images, views) | parameters,
        source_index=sample.train,
        views=views,
        input_digests=input_digests(images, views, dataset.geometry),
        images=images,
        missing_cells=np.arange(n * config.views) if store is None else store.missing_cells(n),
        needed_calls=0,
        array_bytes={spec.name: spec.stored_bytes(rows[spec.split]) for spec in array_specs(identity)},
        free_bytes=free_bytes(config.store),
        called_outputs=identity.outputs,
    )
    plan = replace(plan, needed_calls=len(unpaid_inputs(plan, store)))
    require_disk(plan, store)
    return plan


def _sample_values(
    dataset: ImageDataset, sample: NestedSample, images: np.ndarray, views: np.ndarray
) -> dict[str, np.ndarray]:
    pool, test = dataset.train, dataset.test
    test_index = np.arange(len(test), dtype=np.int64)
    return {
        "train/images": images,
        "train/labels": pool.labels[sample.train],
        "train/source_index": sample.train,
        "train/views": views,
        "val/images": pool.read(sample.val),
        "val/labels": pool.labels[sample.val],
        "val/source_index": sample.val,
        "test/images": test.read(test_index),
        "test/labels": test.labels,
        "test/source_index": test_index,
    }


def open_matching_store(config: BuildConfig, identity: Identity) -> Store | None:
    """The store that is already there, or None; raises `IdentityMismatch` if it is of something else."""
    if not (config.store / FILE_NAME).exists():
        return None
    store = Store.open(config.store)
    require_same(store.manifest.identity, identity, config.store)
    if store.manifest.array_format != config.array_format:
        raise InvalidInput(
            f"{config.store} is a {store.manifest.array_format} store, not {config.array_format}; "
            f"pass --format {store.manifest.array_format}, or another --store"
        )
    return store


def shared_ledger(url: str | None) -> str | None:
    """How a manifest names the ledger that was asked for; None is the store's own."""
    return None if url is None else shown_url(url)


def open_ledger_of(store: Store, url: str | None, *, create: bool = False, patience_seconds: float = 0.0) -> Ledger:
    """The ledger that a store's calls are recorded in, after checking that it is the same one as ever.

    Args:
        url: of a shared ledger. The manifest names it too, but a store may come from anybody: what it names is not
            opened unless the user names it as well.
        create: begin it if the store was only just made.

    Raises:
        IdentityMismatch: another ledger is asked for.
        StoreUnreadable: the ledger lacks what the store's calls were recorded in.
    """
    recorded, asked = store.manifest.ledger, shared_ledger(url)
    if asked != recorded:
        raise IdentityMismatch(
            f"the calls of {store.folder} are recorded in {recorded or 'its own ledger'}, not in "
            f"{asked or 'its own'}; {'give that as --ledger' if recorded else 'leave --ledger out'}, "
            "or another --store"
        )
    is_new = store.manifest.ledger_head is None
    if url is None:
        ledger = own_ledger(store.folder, create=create and is_new, patience_seconds=patience_seconds)
    else:
        ledger = Ledger(url, create=create and is_new, patience_seconds=patience_seconds)
    if is_new and create:
        store.record_ledger_head(ledger.head())
    if store.manifest.ledger_head is not None:
        ledger.require_entry(store.manifest.ledger_head, store.folder)
    return ledger


def estimate_seconds(plan: BuildPlan, calls: int) -> float:
    """Time for `calls` calls, from timing an untrained copy on random pixels: not a teacher call."""
    compute, size = plan.teacher.compute, plan.identity.geometry.crop_size
    network = create_model(plan.config.teacher, num_classes=plan.identity.teacher.num_classes, seed=0).eval()
    compute.place(network)
    probe = Teacher(plan.teacher.identity, network, compute)
    batch = torch.zeros(min(plan.config.batch_size, 64), 3, size, size, dtype=torch.uint8)
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        probe.call(batch, plan.called_outputs)
        compute.synchronise()
        seconds.append(time.perf_counter() - started)
    return min(seconds) / len(batch) * calls


def unpaid_inputs(plan: BuildPlan, store: Store | None) -> set[bytes]:
    """Inputs that nobody has paid for.

    Raises:
        BudgetRefused: the budget does not allow them.
        InvalidInput: what was paid for in another store cannot be copied from it.
    """
    config, teacher = plan.config, plan.identity.teacher
    wanted = {plan.input_of(cell) for cell in plan.missing_cells.tolist()}
    place = config.store / LEDGER_FILE if config.ledger is None else config.ledger
    is_new = store is None and config.ledger is None
    # Of a store that is there too: its build may be about to begin the ledger, or died before it could.
    unbegun = store is None or store.manifest.ledger_head is None
    if is_new or (unbegun and not ledger_exists(place)):
        check_budget(teacher.name, spent=0, budget=config.budget, wanted=len(wanted))
        return wanted
    opened = Ledger(place) if store is None else open_ledger_of(store, config.ledger)
    with closing(opened) as ledger:
        ledger.require_key()
        # Read before what is known: what other builders reserve in between is then counted once, not twice.
        summary = ledger.summary(teacher.fingerprint)
        known = ledger.known_calls(teacher.fingerprint, sorted(wanted))
        if store is not None:
            known = _without_lost(known, store, ledger)
        needed = {digest for digest in wanted if not plan.answered_by(known.get(digest, ()))}
        _require_copies(plan, {digest: known.get(digest, ()) for digest in wanted if known.get(digest)}, needed, store)
    if needed:
        budget = summary.budget if config.budget is None else config.budget
        check_budget(teacher.name, spent=summary.spent, budget=budget, wanted=len(needed))
    return needed


def _without_lost(
    known: Mapping[bytes, list[RecordedCall]], store: Store, ledger: Ledger
) -> dict[bytes, list[RecordedCall]]:
    """What an interrupted build charged and did not keep has to be called again."""
    alive = _living_sessions(store, ledger)
    left = [call for call in ledger.calls_of_store(store.manifest.store_id, "reserved") if call.session not in alive]
    lost = set(sort_out(store, left).lost)
    return {
        digest: kept for digest, calls in known.items() if (kept := [call for call in calls if call.id not in lost])
    }


def _living_sessions(store: Store, ledger: Ledger) -> set[int]:
    """Sessions with a lease, without those of this machine when no build is at work on the store here."""
    alone, host = not is_held(store.folder / BUILD_LOCK), this_host()
    return {session for session, lease in ledger.leases().items() if not (alone and lease.host == host)}


def _require_copies(
    plan: BuildPlan, known: Mapping[bytes, Sequence[RecordedCall]], needed: Set[bytes], store: Store | None
) -> None:
    """Find out before the first call whether what was paid for before is there to be copied."""
    answers = None if store is None else PaidAnswers(store)
    looked_at: set[tuple[str, str]] = set()
    for digest, calls in known.items():
        for output in plan.identity.outputs:
            if digest in needed and output in plan.called_outputs:
                continue
            call = keeper_of(calls, output)
            if call.status == "committed" and (call.store, output.name) not in looked_at:
                looked_at.add((call.store, output.name))
                keeper = open_keeper(call) if answers is None else answers.keeper(call)
                require_alike(keeper, plan.identity, call, output)


def free_bytes(folder: Path) -> int:
    """Room on the disk that holds, or will hold, a folder."""
    absolute = folder.absolute()
    return shutil.disk_usage(next(parent for parent in (absolute, *absolute.parents) if parent.exists())).free


def require_disk(plan: BuildPlan, store: Store | None) -> None:
    """Raise `DiskFull` before anything is done if the arrays, less what a store already has, do not fit."""
    have = 0 if store is None else store.arrays.size_bytes()
    # An HDF5 store grows on a copy of itself.
    copied = have if store is not None and len(plan.input_digests) > store.manifest.n else 0
    needed = max(0, sum(plan.array_bytes.values()) - have) + copied + _SPARE_BYTES
    if plan.free_bytes < needed:
        raise DiskFull(
            f"the store needs {needed / 1e6:.0f} MB and the disk of {plan.config.store} has "
            f"{plan.free_bytes / 1e6:.0f} MB free; free some space, keep fewer --features, or choose another --store"
        )
