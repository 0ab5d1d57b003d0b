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
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path

from ground.durable import fsync_path
from ground.errors import IdentityMismatch, InvalidInput, StoreBusy
from ground.geometry import Rendering
from ground.layers import LOGITS
from models.compute import Compute
from models.names import CALL_PRECISIONS
from storage.identity import Identity, TeacherIdentity, require_same
from storage.locks import CellLocks
from storage.manifest import EXTENSION, FILE_NAME, Manifest
from storage.schema import OutputSpec
from storage.store import Store
from storage.store_folder import CELL_LOCK
from storage.store_ledger import open_ledger_of, witness_of
from teacher_cache.build import PATIENCE_SECONDS, accept_rollback, record_store, store_arrays
from teacher_cache.build_report import BuildReport
from teacher_cache.builder import Builder
from teacher_cache.config import ExtensionConfig, dataset_options_of
from teacher_cache.outputs import choose_layers, choose_outputs, further_layers, kept_parameters, parameter_specs
from teacher_cache.plan import BuildPlan, costed, draw_up, require_disk
from teacher_cache.prepare import Prepared
from teacher_cache.settle import require_only_place, require_storable, settle_store
from teacher_cache.shown import Shown, shown_in
from teacher_cache.teachers import Card, ClassChoice, Teacher, TeacherSource, open_teacher
from teacher_cache.teachers.attempts import RemoteTeacher
from teacher_cache.unpaid import unpaid_inputs


@dataclass(frozen=True, slots=True)
class _StoredFacts:
    """What a store says of its data set."""

    name: str
    classes: tuple[str, ...]
    digest: str
    rendering: Rendering
    options: Mapping[str, str]


def prepare_extension(config: ExtensionConfig) -> Prepared:
    """Check everything that can be checked without a call, and count the calls.

    Raises:
        StoreIncomplete: the store is not whole.
        IdentityMismatch: the weights are not those of its teacher.
        CKDError: anything else that would make the extension fail later.
    """
    store = Store.open(config.store)
    store.require_current()
    store.require_rows()
    _require_one_kind(store, config.features)
    identity = store.manifest.identity
    source = TeacherSource(
        name=config.teacher or identity.teacher.name,
        weights=config.weights,
        code=config.code,
        further=further_layers(config.features),
        prompts=config.prompts,
    )
    teacher = teacher_of(store, source, config.device, logits=LOGITS in config.features.split(","))
    new = added_outputs(store, teacher.card.identity, config.features)
    if not new:
        names = ", ".join(sorted(identity.features)) or "no features"
        raise InvalidInput(f"{config.store} has nothing to be extended by: it keeps {names} already")
    begun = (config.folder / EXTENSION).exists()
    kept = (*identity.kept_layers, *(Manifest.load(config.store, EXTENSION).identity.kept_layers if begun else ()))
    layers = ",".join(name for name in new if name != LOGITS) or "none"
    added = choose_outputs(teacher.card, layers, config.feature_dtype, kept, features_only=LOGITS not in new)
    identity = _extended(identity, added, teacher.card)
    staged = _staged(config.folder, identity)
    plan = draw_up(
        config,
        identity,
        shown := shown_in(store),
        staged,
        array_format=store.manifest.array_format,
        rows_of=store.manifest.rows_of,
        called_outputs=added,
        # Calls that were made without these outputs are made again.
        required=frozenset(output.name for output in added),
        purpose="extend",
    )
    plan = replace(plan, num_images=store.manifest.num_images, rest=store.manifest.rest)
    plan = costed(plan, unpaid_inputs(plan, store))
    require_disk(plan, staged)
    return Prepared(plan, teacher, shown)


def teacher_of(store: Store, source: TeacherSource, device: str, *, logits: bool = False) -> Teacher:
    """A store's own teacher; what of it the store says need not be given.

    Args:
        logits: they are to be kept, where the store has none.

    Raises:
        IdentityMismatch: it is not the store's.
        InvalidInput: logits are to be kept, and its classes are not those of the data set.
    """
    identity = store.manifest.identity
    data, teacher = identity.dataset, identity.teacher
    facts = _StoredFacts(
        data.name, data.classes, data.digest, identity.teacher_rendering, dataset_options_of(store.manifest)
    )
    # In a store, layers that were asked for by name are layers of its teacher as others are.
    further = tuple({*source.further, *teacher.layers}) if ":" in teacher.name else ()
    shown = replace(source.rendering, input_size=teacher.input_size)
    classes = ClassChoice(identity.settled_class_map, features_only=not (logits or identity.keeps_answers))
    source = replace(source, further=further, rendering=shown, classes=classes)
    opened = open_teacher(source, facts, Compute.choose(device, teacher.precision, precisions=CALL_PRECISIONS))
    same = replace(opened.card.identity, layers=teacher.layers)
    require_same(identity, replace(identity, teacher=same), store.folder, store.manifest.ledger)
    return opened


def keeps(store: Store, features: str) -> bool:
    """Whether a store has all that is asked for; raises as `added_outputs` for what it certainly cannot have."""
    _require_one_kind(store, features)
    teacher = store.manifest.identity.teacher
    # Of a network from elsewhere any module may be a layer; the network itself is asked.
    if ":" in teacher.name and not {*further_layers(features)} <= {*teacher.layers}:
        return False
    return not added_outputs(store, teacher, features)


def added_outputs(store: Store, teacher: TeacherIdentity, features: str) -> list[str]:
    """Of what is asked for, that which a store does not keep.

    Args:
        features: as for `build`, and `logits` among them, for a store without.

    Raises:
        UnknownName: a layer that is none.
        InvalidInput: logits, for a store that keeps the teacher's answers as something else.
    """
    _require_one_kind(store, features)
    asked, kept = features.split(","), {output.name for output in store.outputs}
    layers = ",".join(name for name in asked if name != LOGITS) or "none"
    wanted = [*([LOGITS] if LOGITS in asked else []), *choose_layers(teacher, layers)]
    return [name for name in wanted if name not in kept]


def _require_one_kind(store: Store, features: str) -> None:
    """Refuse logits beside answers of another kind."""
    form = store.manifest.identity.answer_form
    if LOGITS in features.split(",") and form is not None and not store.manifest.identity.keeps_logits:
        raise InvalidInput(
            f"{store.folder} keeps its teacher's answers as {form.text}, and a store keeps them in one way; build "
            "another one, with --keep logits, or extend this one by features alone"
        )


def _extended(identity: Identity, added: tuple[OutputSpec, ...], card: Card) -> Identity:
    order = (*identity.answer_names, *card.identity.layers)
    outputs = tuple(sorted((*identity.outputs, *added), key=lambda output: order.index(output.name)))
    teacher = replace(identity.teacher, layers=card.identity.layers)
    return replace(
        identity, teacher=teacher, outputs=outputs, parameters=parameter_specs(kept_parameters(card, outputs))
    )


def extend(
    plan: BuildPlan,
    teacher: Teacher | RemoteTeacher,
    shown: Shown,
    on_progress: Callable[[int, str], None] = lambda steps, note: None,
    report: BuildReport | None = None,
) -> BuildReport:
    """Call the teacher again on all views of a store, and keep the outputs that it lacks.

    Args:
        report: to be added to; None for a new one.

    Raises:
        BudgetRefused: before the first call.
        StoreBusy: a build is at work on the store.
        RolledBack: the ledger is older than its witness, or a fork.
        Interrupted: the user asked to stop; everything called so far is kept.
    """
    folder = plan.config.folder
    with ExitStack() as stack:
        stack.enter_context(Store.alone(folder))
        locks = stack.enter_context(CellLocks(folder / CELL_LOCK, plan.config.lease_seconds))
        store = Store.open(folder)
        ledger = stack.enter_context(
            closing(
                open_ledger_of(
                    store,
                    plan.config.ledger,
                    patience_seconds=PATIENCE_SECONDS,
                    accept_rollback=plan.config.accept_rollback,
                )
            )
        )
        sizes = (store.manifest.n, store.manifest.num_images)
        outputs = {*store.outputs, *plan.called_outputs}
        if (plan.n, plan.num_images) != sizes or outputs != {*plan.identity.outputs}:
            raise StoreBusy(f"{folder} was grown or extended after this extension was planned; run it again")
        accept_rollback(plan.config, store, ledger)
        # However it ends, what it recorded is seen.
        stack.callback(witness_of(store, ledger).advance)
        require_only_place(store, ledger)
        settle_store(store, ledger, locks)
        staged = _staged(folder, plan.identity) or _stage(plan, teacher.card, shown, store)
        if not plan.fits(staged):
            staged.grow(store_arrays(plan, teacher.card, shown), plan.n, store.manifest.rounds)
        record_store(staged, ledger, "extend")
        found = settle_store(staged, ledger, locks)
        require_storable(staged, found.misfits, plan.rows)
        builder = Builder(plan, teacher, shown, staged, ledger, locks, on_progress, report)
        builder.note(found)
        report = builder.run()
        staged.record_ledger_head(ledger.head(), ledger.genesis())
        _take_place(folder, store, staged)
    return report


def _staged(folder: Path, identity: Identity) -> Store | None:
    """An extension that was begun; raises `IdentityMismatch` if it is of other features."""
    if not (folder / EXTENSION).exists():
        return None
    staged = Store.open(folder, EXTENSION)
    if staged.manifest.identity != identity:
        names = ", ".join(output.name for output in _added(staged))
        raise IdentityMismatch(
            f"an extension of {folder} to {names} was interrupted; finish that one first, with: "
            f"{finish_command(staged)}"
        )
    return staged


def finish_command(staged: Store) -> str:
    """The command that finishes an extension that was interrupted."""
    added = _added(staged)
    return staged.command(
        "extend",
        features=",".join(output.name for output in added),
        weights=staged.manifest.sources.get("weights"),
    )


def _added(staged: Store) -> list[OutputSpec]:
    kept = {output.name for output in Manifest.load(staged.folder).identity.outputs}
    return [output for output in staged.outputs if output.name not in kept]


def _stage(plan: BuildPlan, card: Card, shown: Shown, store: Store) -> Store:
    before = store.manifest
    manifest = replace(
        before,
        store_id=uuid.uuid4().hex,
        arrays=next_arrays_name(before),
        identity=plan.identity,
        samples={},
        history=(*before.history, {"store_id": before.store_id, "made_by": "extend"}),
    )
    staged = Store.lay_out(plan.config.folder, manifest, store_arrays(plan, card, shown), EXTENSION)
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
