"""What nobody has paid for yet, and whether what was paid for is there to be copied; looks, and changes nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from contextlib import closing

from storage.ledger import Ledger, check_budget, ledger_exists
from storage.ledger_records import RecordedCall
from storage.locks import is_held
from storage.rows import Rows
from storage.shared_ledger import require_shared
from storage.store import Store
from storage.store_folder import BUILD_LOCK, LEDGER_FILE
from storage.store_ledger import open_ledger_of
from storage.witness import Witness
from teacher_cache.plan import BuildPlan
from teacher_cache.reuse import PaidAnswers, keeper_of, open_keeper, require_alike
from teacher_cache.settle import dead_leases, require_storable, sort_out


def unpaid_inputs(plan: BuildPlan, store: Store | None) -> set[bytes]:
    """Inputs of a plan that nobody has paid for.

    Args:
        store: whose ledger it is, where there is a store already.

    Raises:
        BudgetRefused: the budget does not allow them.
        RolledBack: the ledger is older than its witness, or a fork.
        StoreUnreadable: what is there is no ledger, or one with tables in which nothing is recorded.
        InvalidInput: it is another store's own; or what was paid for in another store cannot be copied from it.
    """
    config, teacher = plan.config, plan.identity.teacher
    wanted = {plan.input_of(cell) for cell in plan.missing_cells.tolist()}
    place = config.folder / LEDGER_FILE if config.ledger is None else config.ledger
    is_new = store is None and config.ledger is None
    # Of a store that is there too: its build may be about to begin the ledger, or died before it could.
    unbegun = store is None or store.manifest.ledger_head is None
    if is_new or (unbegun and not ledger_exists(place)):
        check_budget(teacher.name, spent=0, budget=config.budget, wanted=len(wanted) + plan.canaries)
        return wanted
    accept = config.accept_rollback
    opened = Ledger(place) if store is None else open_ledger_of(store, config.ledger, accept_rollback=accept)
    with closing(opened) as ledger:
        if unbegun and config.ledger is not None:
            require_shared(ledger, config.ledger)
        if store is None and not accept:
            Witness(ledger, own=False).require_newest()
        ledger.require_recordable()
        # Read before what is known: what other builders reserve in between is then counted once, not twice.
        summary = ledger.summary(teacher.fingerprint)
        known = ledger.known_calls(teacher.fingerprint, teacher.precision, sorted(wanted))
        if store is not None:
            known = _without_lost(known, store, ledger, plan.rows)
        needed = {digest for digest in wanted if not plan.answered_by(known.get(digest, ()))}
        _require_copies(plan, {digest: known.get(digest, ()) for digest in wanted if known.get(digest)}, needed, store)
    if needed:
        budget = summary.budget if config.budget is None else config.budget
        check_budget(teacher.name, spent=summary.spent, budget=budget, wanted=len(needed) + plan.canaries)
    return needed


def _without_lost(
    known: Mapping[bytes, list[RecordedCall]], store: Store, ledger: Ledger, rows: Rows
) -> dict[bytes, list[RecordedCall]]:
    """What an interrupted build charged and did not keep has to be called again.

    Raises:
        InvalidInput: an answer to one of the rows is paid for, and the store's types cannot keep it.
    """
    alive = _living_sessions(store, ledger)
    left = [call for call in ledger.calls_of_store(store.manifest.store_id, "reserved") if call.session not in alive]
    found = sort_out(store, left)
    require_storable(store, found.misfits, rows)
    lost = set(found.lost)
    return {
        digest: kept for digest, calls in known.items() if (kept := [call for call in calls if call.id not in lost])
    }


def _living_sessions(store: Store, ledger: Ledger) -> set[int]:
    """Sessions with a lease, without those that share the store's build lock when nobody has that."""
    leases = ledger.leases().keys()
    if store.is_published:
        # What a builder that died left on this machine is gone on with.
        return set(leases)
    is_held_here = is_held(store.folder / BUILD_LOCK)
    return set(leases) - {lease.session for lease in ([] if is_held_here else dead_leases(store, ledger))}


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
