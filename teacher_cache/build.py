"""Build a store: make it or grow it, settle what earlier builds left, then do the work beside other builders."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import asdict, replace
from typing import Any

from ground.durable import remove_partials
from ground.errors import FewerBusy, StoreBusy, StoreUnreadable
from ground.places import ObjectUrl
from storage.blocks import RowSource
from storage.ledger import Ledger
from storage.locks import CellLocks, FileLock
from storage.manifest import FILE_NAME
from storage.new_manifest import new_manifest
from storage.objects import Objects
from storage.schema import SOURCE_INDEX
from storage.store import Store
from storage.store_folder import BUILD_LOCK, CELL_LOCK, prepare_folder
from storage.store_ledger import open_ledger_of, recorded_as, witness_of
from teacher_cache.build_report import BuildReport
from teacher_cache.builder import Builder
from teacher_cache.chunk_builder import ChunkBuilder, clear_desk
from teacher_cache.config import CallConfig
from teacher_cache.outputs import kept_parameters, parameter_rows
from teacher_cache.plan import BuildPlan, matching_store, require_buildable
from teacher_cache.rounds import require_bought
from teacher_cache.settle import Leftovers, require_only_place, require_storable, settle_store
from teacher_cache.shown import Shown
from teacher_cache.teachers import Card, Teacher
from teacher_cache.teachers.attempts import RemoteTeacher

log = logging.getLogger(__name__)

# A teacher's answers in hand are worth waiting for a server that is started again.
PATIENCE_SECONDS = 300.0
_POLL_SECONDS = 0.1
# To make a store, or to grow or extend it, takes longer than a batch, and nobody shows meanwhile that it lives.
_LEASES_ALONE = 10


def build(
    plan: BuildPlan,
    teacher: Teacher | RemoteTeacher,
    shown: Shown,
    on_progress: Callable[[int, str], None] = lambda steps, note: None,
    report: BuildReport | None = None,
) -> BuildReport:
    """Make the plan's rows whole, calling the teacher on what nobody has paid for; see `prepare_build`.

    Args:
        report: to be added to; None for a new one.

    Raises:
        BudgetRefused: before the first call, if the budget does not allow all that are needed; or later, if other
            builders spent it meanwhile.
        Interrupted: the user asked to stop; everything called so far is kept.
        TeacherFailed, TeacherChanged: one that is elsewhere gives no answer, or is another; what it answered is kept.
        TeacherDoubted: the first answers do not go with the labels; they are kept, and nothing more is called.
        TooNarrow: the store's types do not hold an answer; it is kept beside the store, and others are committed.
        StoreBusy: a build of fewer rows, or a repair, is at work on the store; or our lease was taken away.
        BoughtOtherwise: another builder chose other rows meanwhile; prepare the build again, and it goes on from those.
        RolledBack: the ledger is older than its witness, or a fork.
        DiskFull, StoreUnreadable: nothing that was finished is lost.
    """
    folder = plan.config.store
    if isinstance(folder, ObjectUrl):
        return _build_objects(folder, plan, teacher, shown, on_progress, report)
    prepare_folder(folder)
    with ExitStack() as stack:
        lock = stack.enter_context(FileLock(folder / BUILD_LOCK))
        locks = stack.enter_context(CellLocks(folder / CELL_LOCK, plan.config.lease_seconds))
        found = _enter(plan, lambda: store_arrays(plan, teacher.card, shown), lock, locks)
        store = _matching(plan)
        assert store is not None, "a store is made before its lock is shared"
        require_bought(store, plan, shown.arrays[SOURCE_INDEX])
        ledger = stack.enter_context(closing(_open_ledger(plan, store)))
        # However it ends, what it recorded is seen.
        stack.callback(witness_of(store, ledger).advance)
        builder = Builder(plan, teacher, shown.kept_in(store), store, ledger, locks, on_progress, report)
        builder.note(found)
        report = builder.run()
        store.record_ledger_head(ledger.head(), ledger.genesis())
    return report


def lay_out(plan: BuildPlan, teacher: Teacher | RemoteTeacher, shown: Shown, budget: int | None = None) -> None:
    """Make a store, or grow it, and call nobody: images, labels and views are there, and answers are still to be paid.

    `build` finds it as one that was stopped before its first call.

    Args:
        budget: recorded as the most calls ever to be spent on the teacher, where no more were; what is suggested to
            finish the store is then held to it. None leaves the ledger's as it is.

    Raises:
        InvalidInput: it is to be in object storage.
        StoreBusy, RolledBack, DiskFull, StoreUnreadable: as `build` says.
    """
    prepare_folder(plan.config.folder)
    with (
        FileLock(plan.config.folder / BUILD_LOCK) as lock,
        CellLocks(plan.config.folder / CELL_LOCK, plan.config.lease_seconds) as locks,
    ):
        _enter(plan, lambda: store_arrays(plan, teacher.card, shown), lock, locks)
        if budget is not None:
            _record_budget(plan, budget)


def _record_budget(plan: BuildPlan, budget: int) -> None:
    store, teacher = _matching(plan), plan.identity.teacher
    assert store is not None, "a store is made before its lock is shared"
    with closing(_open_ledger(plan, store)) as ledger:
        if ledger.summary(teacher.fingerprint).spent > budget:
            return
        ledger.set_budget(teacher.fingerprint, teacher.name, budget)
        store.record_ledger_head(ledger.head(), ledger.genesis())
        witness_of(store, ledger).advance()


def _build_objects(
    url: ObjectUrl,
    plan: BuildPlan,
    teacher: Teacher | RemoteTeacher,
    shown: Shown,
    on_progress: Callable[[int, str], None],
    report: BuildReport | None,
) -> BuildReport:
    """The same in object storage, where nothing is changed once it is there: each chunk of rows is written whole.

    Raises:
        StorageFailed: the bucket is not there or may not be written to, or the service has no conditional writes, or
            does not answer.
        InvalidInput: something else is there.
    """
    objects = Objects(url, make=True)
    objects.require_writable()
    with ExitStack() as stack:
        store = _matching(plan) or _begin(plan, objects, lambda: store_arrays(plan, teacher.card, shown))
        require_buildable(plan, store)
        lock = stack.enter_context(FileLock(store.desk / BUILD_LOCK))
        locks = stack.enter_context(CellLocks(store.desk / CELL_LOCK, plan.config.lease_seconds))
        ledger = stack.enter_context(closing(_open_ledger(plan, store, accept_rollback=plan.config.accept_rollback)))
        stack.callback(witness_of(store, ledger).advance)
        accept_rollback(plan.config, store, ledger)
        # Chained once, by whoever comes first.
        ledger.record_store(store.manifest.store_id, _said_of(store, "build"))
        _require_known(plan, store, ledger)
        if lock.try_exclusive():
            clear_desk(store, ledger)
        lock.share(plan.config.lease_seconds)
        return ChunkBuilder(plan, teacher, shown.kept_in(store), store, ledger, locks, on_progress, report).run()


def _begin(plan: BuildPlan, objects: Objects, arrays: Callable[[], dict[str, RowSource]]) -> Store:
    """Write what a store in object storage is made with; of several who do, one makes the store, and all find it."""
    url, ledger_url = plan.config.store, plan.config.ledger
    assert ledger_url is not None, "a store in object storage has no ledger of its own"
    with closing(Ledger(ledger_url, create=True, patience_seconds=PATIENCE_SECONDS)) as ledger:
        samples = arrays()
        manifest = new_manifest(
            plan.identity,
            array_format=plan.array_format,
            samples=samples,
            rest=plan.rest,
            ledger=recorded_as(ledger_url),
            sources=plan.sources,
        )
        genesis, head = ledger.genesis(), ledger.head()
    manifest = replace(manifest, aligned_chunks=True, ledger_genesis=genesis, ledger_head=head)
    objects.create(FILE_NAME, Store.lay_out(url, manifest, samples).manifest.content())
    store = _matching(plan)
    assert store is not None, "somebody has made it"
    return store


def store_arrays(plan: BuildPlan, card: Card, shown: Shown) -> dict[str, RowSource]:
    """What a store is made, or grown, with: the sample arrays, and the teacher's parameters."""
    return {**shown.arrays, **parameter_rows(kept_parameters(card, plan.identity.outputs))}


def record_store(store: Store, ledger: Ledger, made_by: str) -> None:
    """Chain what a store is into its ledger, and note in the store how far the ledger has come."""
    ledger.record_store(store.manifest.store_id, _said_of(store, made_by))
    store.record_ledger_head(ledger.head(), ledger.genesis())


def _said_of(store: Store, made_by: str) -> dict[str, Any]:
    """What a ledger records of a store; how many images it keeps that nothing was asked about, where it does, and how
    the newest were chosen, where a rule did.
    """
    rest = store.manifest.rest
    unasked = {"unasked": rest} if rest else {}
    # What the newest rows were chosen by; the manifest, whose digest stands here too, says it of all rounds.
    chosen = {"round": asdict(store.manifest.rounds[-1])} if store.manifest.rounds else {}
    return {"manifest": store.manifest.digest, "made_by": made_by, **unasked, **chosen}


def accept_rollback(config: CallConfig, store: Store, ledger: Ledger) -> None:
    """Go on with a ledger that its witness contradicts, if that is what the user asked for."""
    accepted = witness_of(store, ledger).accept() if config.accept_rollback else None
    if accepted is not None:
        log.warning("going on from %s, though %s was seen before; the ledger says so", accepted.found, accepted.seen)


def _enter(plan: BuildPlan, arrays: Callable[[], dict[str, RowSource]], lock: FileLock, locks: CellLocks) -> Leftovers:
    """Share a store's build lock; who finds nobody else there first makes, settles or grows the store."""
    told, patience = False, _LEASES_ALONE * plan.config.lease_seconds
    deadline, busy = time.monotonic() + patience, f"{plan.config.store} is being made, grown or repaired"
    while not lock.try_exclusive():
        if lock.try_shared():
            store = _matching(plan)
            if store is not None and plan.fits(store):
                return Leftovers()
            lock.release()
            if store is not None:
                n, rest = store.manifest.n, "" if plan.n > store.manifest.n else ", and leave out --rest"
                raise FewerBusy(
                    f"a build of {n} rows is writing to {plan.config.store}: {lock.held_by()}, or ask for --n {n} or "
                    f"fewer{rest}"
                )
        elif time.monotonic() >= deadline:
            raise StoreBusy(f"{busy}: {lock.held_by()}, then run the same command again; nothing was called or written")
        elif not told:
            log.warning("%s; waiting until that ends (%s)", busy, lock.held_by())
            told = True
        time.sleep(_POLL_SECONDS * (1 + random.random()))
    found = _prepare(plan, arrays, locks)
    lock.share(patience)
    return found


def _prepare(plan: BuildPlan, arrays: Callable[[], dict[str, RowSource]], locks: CellLocks) -> Leftovers:
    """What has to be done alone: make the store and its ledger, settle what was left, grow."""
    folder = plan.config.folder
    remove_partials(folder)
    store = _matching(plan) or Store.create(
        folder,
        plan.identity,
        array_format=plan.array_format,
        samples=arrays(),
        rest=plan.rest,
        ledger=recorded_as(plan.config.ledger),
        sources=plan.sources,
        rounds=plan.rounds,
    )
    with closing(_open_ledger(plan, store, accept_rollback=plan.config.accept_rollback)) as ledger:
        accept_rollback(plan.config, store, ledger)
        require_only_place(store, ledger)
        found = settle_store(store, ledger, locks)
        require_storable(store, found.misfits, plan.rows)
        require_bought(store, plan, arrays()[SOURCE_INDEX])
        _require_known(plan, store, ledger)
        if found.adopted or found.lost:
            log.info("an earlier build stopped: %d calls adopted, %d lost", len(found.adopted), len(found.lost))
        if not plan.fits(store):
            store.grow(arrays(), plan.rows.end, plan.rounds)
        store.record_sources(plan.sources)
        record_store(store, ledger, "build")
        witness_of(store, ledger).advance()
    return found


def _require_known(plan: BuildPlan, store: Store, ledger: Ledger) -> None:
    """Refuse a ledger without calls for cells that are whole: it is an older one, and would have them paid again."""
    views = plan.identity.views
    whole = set(plan.rows.below(store.manifest.n).cells(views).tolist()) - set(store.missing_cells(plan.rows).tolist())
    # Most are of calls that were made for the very cell; only for the others it takes their images to say of which.
    calls = ledger.calls_of_store(store.manifest.store_id, "committed")
    inputs = {plan.input_of(cell) for cell in sorted(whole - {call.row * views + call.view for call in calls})}
    teacher = plan.identity.teacher
    unknown = inputs - ledger.known_calls(teacher.fingerprint, teacher.precision, sorted(inputs)).keys()
    if unknown:
        raise StoreUnreadable(
            f"the ledger knows no call for {len(unknown)} answers that {store.place} holds: it was replaced or rolled "
            f"back; bring back the right one, and see with: {store.command('verify')}"
        )


def _matching(plan: BuildPlan) -> Store | None:
    return matching_store(plan.config.store, plan.identity, plan.array_format)


def _open_ledger(plan: BuildPlan, store: Store, *, accept_rollback: bool = False) -> Ledger:
    return open_ledger_of(
        store,
        plan.config.ledger,
        create=True,
        patience_seconds=PATIENCE_SECONDS,
        accept_rollback=accept_rollback,
    )
