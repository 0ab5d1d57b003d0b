"""What the ledgers of a grid's stores say: totals, calls by time, and where each run stood in them.

Ledgers are read, never written. Only a store's own ledger is opened: what a manifest names elsewhere may be anybody's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import sqlalchemy as sa

from analysis.grid_plan import GridPlan
from ground.errors import CKDError, store_command
from storage.ledger import Ledger
from storage.ledger_records import Summary
from storage.ledger_report import teacher_seconds
from storage.ledger_tables import calls, entries, sessions
from storage.manifest import Manifest
from storage.store_ledger import own_ledger

# More steps than a drawing can show are thinned out.
MOST_STEPS = 400


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreLedger:
    """A store and its ledger.

    Args:
        store: folder, relative to the grid's.
        problem: why the rest is missing; empty when it is not.
        views: V, calls a row.
        summary: None where there is a problem.
        by_purpose: purpose -> status -> calls.
        seconds: that the teacher took for committed calls.
        steps: time and calls charged until then, oldest first.
        entries: head a run has noted -> number of that entry, None where the ledger lacks it.
    """

    store: str
    teacher: str
    problem: str = ""
    store_id: str = ""
    fingerprint: str = ""
    views: int = 1
    rows: int = 0
    summary: Summary | None = None
    by_purpose: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    seconds: float = 0.0
    steps: list[tuple[str, int]] = field(default_factory=list)
    entries: Mapping[str, int | None] = field(default_factory=dict)


def read_ledgers(folder: Path, plan: GridPlan, results: pd.DataFrame) -> list[StoreLedger]:
    """The ledger of every store of a plan, in its order.

    Args:
        results: of `analysis.results.collect`: which heads were noted.
    """
    found = []
    for planned in plan.stores:
        heads = results.loc[results["store"].eq(planned.store) & results["teacher_calls"].gt(0), "ledger_head"]
        found.append(_read(folder, planned.store, planned.teacher, heads.unique()))
    return found


def timeline(ledgers: Iterable[StoreLedger]) -> pd.DataFrame:
    """Columns store, at (UTC, as in the ledger), calls: how many were charged until then."""
    rows = [(ledger.store, at, count) for ledger in ledgers for at, count in ledger.steps]
    return pd.DataFrame(rows, columns=["store", "at", "calls"])


def _read(folder: Path, store: str, teacher: str, heads: Iterable[str]) -> StoreLedger:
    try:
        manifest = Manifest.load(folder / store)
        if manifest.ledger is not None:
            return StoreLedger(
                store=store,
                teacher=teacher,
                problem=f"the calls of {store} are recorded in a shared ledger, {manifest.ledger}, which a report does "
                f"not open; see them with: "
                f"{store_command('ledger summary', Path(store), ledger=manifest.ledger)}",
            )
        with closing(own_ledger(folder / store)) as ledger:
            return StoreLedger(
                store=store,
                teacher=manifest.identity.teacher.name,
                store_id=manifest.store_id,
                fingerprint=manifest.identity.teacher.fingerprint,
                views=manifest.identity.views,
                rows=manifest.n,
                summary=ledger.summary(),
                by_purpose=_by_purpose(ledger),
                seconds=teacher_seconds(ledger).total(),
                steps=_steps(ledger),
                entries={head: ledger.entry_number(head) for head in heads},
            )
    except (CKDError, OSError) as error:
        return StoreLedger(store=store, teacher=teacher, problem=str(error))


def _by_purpose(ledger: Ledger) -> dict[str, dict[str, int]]:
    query: sa.Select[Any] = (
        sa.select(sessions.c.purpose, calls.c.status, sa.func.count())
        .join(sessions, calls.c.session == sessions.c.id)
        .group_by(sessions.c.purpose, calls.c.status)
        .order_by(sa.func.min(calls.c.id))
    )
    found: dict[str, dict[str, int]] = {}
    with ledger.reading() as connection:
        for purpose, status, count in connection.execute(query):
            found.setdefault(purpose, {})[status] = count
    return found


def _steps(ledger: Ledger) -> list[tuple[str, int]]:
    """Calls charged by the end of each entry that reserved some."""
    query: sa.Select[Any] = (
        sa.select(entries.c.at, sa.func.count())
        .join(calls, calls.c.reserved_in == entries.c.seq)
        .group_by(entries.c.seq, entries.c.at)
        .order_by(entries.c.seq)
    )
    steps: list[tuple[str, int]] = []
    charged = 0
    with ledger.reading() as connection:
        for at, count in connection.execute(query):
            charged += count
            steps.append((at, charged))
    if len(steps) <= MOST_STEPS:
        return steps
    last = len(steps) - 1
    return [steps[place * last // (MOST_STEPS - 1)] for place in range(MOST_STEPS)]
