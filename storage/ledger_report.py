"""The ledger read for people: calls by teacher, store, status, run and time; seconds; the history of budgets.

Calls come a page at a time, so a ledger of any size can be listed. A ledger may come from anybody: entries that no
release writes are an error with a sentence, and what is only shown is not checked; `storage/ledger_check.py` does that.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from ground.errors import InvalidInput, StoreUnreadable, UnknownName, suggested
from storage.ledger import Ledger
from storage.ledger_calls import lookups, streamed
from storage.ledger_tables import accounts, bills, calls, entries, sessions


@dataclass(frozen=True, slots=True, kw_only=True)
class CallFilter:
    """Which calls; what is None does not matter.

    Args:
        teacher: fingerprint.
        store: id, or its first digits.
        status: reserved, committed, lost or returned.
        run: number of a builder's session.
        since, until: UTC times as in the ledger, of the reservation; `until` is not included.
        ids: calls by number; a few hundred at most.
    """

    teacher: str | None = None
    store: str | None = None
    status: str | None = None
    run: int | None = None
    since: str | None = None
    until: str | None = None
    ids: Sequence[int] | None = None

    def conditions(self, head: int, bills: sa.FromClause) -> list[sa.ColumnElement[bool]]:
        """What a call must satisfy, over the tables that `list_calls` joins, in the state at an entry."""
        reserved = _RESERVED.c.at
        ours = sa.select(sessions.c.id).where(sessions.c.store.startswith(self.store or "", autoescape=True))
        made = {
            "teacher": accounts.c.teacher == self.teacher,
            "store": calls.c.session.in_(ours),
            "status": sa.and_(self._may_have_status(head), _status_at(head, bills) == self.status),
            "run": calls.c.session == self.run,
            "since": reserved >= (self.since or ""),
            "until": reserved < (self.until or ""),
            "ids": calls.c.id.in_(self.ids or ()),
        }
        asked = [condition for name, condition in made.items() if getattr(self, name) is not None]
        return [calls.c.reserved_in <= head, *asked]

    def _may_have_status(self, head: int) -> sa.ColumnElement[bool]:
        """What the row of a call says by itself of its status after an entry: most need no look at other tables."""
        changed_since = (calls.c.settled_in > head, calls.c.revoked_in > head, calls.c.status == "returned")
        return sa.or_(calls.c.status == self.status, *changed_since)

    @property
    def is_in_totals(self) -> bool:
        """Whether the running totals of accounts say how many calls it lets through."""
        return self == CallFilter(teacher=self.teacher)


_RESERVED, _SETTLED = entries.alias("reserved"), entries.alias("settled")
# What a bill says of a call; None of all for a call without one.
BILL_COLUMNS = ("billed", "cost_micros", "tokens_in", "tokens_out", "model", "request_id", "failure")
# Of a page of calls that is read at once: some 10 MB.
PAGE_ROWS = 8192
COLUMNS = (
    calls.c.id,
    calls.c.status,
    accounts.c.name.label("teacher"),
    accounts.c.teacher.label("fingerprint"),
    sessions.c.purpose,
    calls.c.sample,
    calls.c.row,
    calls.c.view,
    calls.c.repeat,
    calls.c.session.label("run"),
    sessions.c.store,
    sessions.c.location,
    sessions.c.device,
    sessions.c.precision,
    sessions.c.outputs,
    _RESERVED.c.at.label("reserved_at"),
    _SETTLED.c.at.label("settled_at"),
    calls.c.input_digest,
    calls.c.output_digest,
    _RESERVED.c.hash.label("entry_hash"),
    *(bills.c[name] for name in BILL_COLUMNS),
)
# Column of a listed call -> the type of its values, which may also be None.
COLUMN_TYPES: dict[str, type] = {column.name: int if isinstance(column.type, sa.Integer) else str for column in COLUMNS}


def list_calls(
    ledger: Ledger, where: CallFilter | None = None, *, limit: int | None = None, offset: int = 0, after: int = 0
) -> Iterator[dict[str, Any]]:
    """Calls in the order they were charged, one flat dict each, for printing and export; digests are in hex.

    Args:
        limit: the most that are listed.
        offset: calls to pass over, of those after `after`.
        after: number of the call after which to begin; unlike an offset it costs nothing.

    All of them as they were at one entry, the newest when the first is asked for; however long the caller takes for
    them, and whatever is recorded meanwhile. Between pages no transaction is open, which a server would end.
    """
    head, last, bills = _newest(ledger), after, ledger.tables.bills
    while limit is None or limit > 0:
        size = PAGE_ROWS if limit is None else min(limit, PAGE_ROWS)
        query = _joined(head, bills, *_columns_at(head, bills))
        query = query.where(*(where or CallFilter()).conditions(head, bills), calls.c.id > last)
        with ledger.reading() as connection:
            page = connection.execute(query.order_by(calls.c.id).limit(size).offset(offset)).mappings().all()
        for row in page:
            yield {name: value.hex() if isinstance(value, bytes) else value for name, value in row.items()}
        if len(page) < size:
            return
        last, offset = page[-1]["id"], 0
        limit = None if limit is None else limit - size


def count_calls(ledger: Ledger, where: CallFilter | None = None) -> int:
    """How many calls a filter lets through."""
    where = where or CallFilter()
    if where.is_in_totals:
        totals = ledger.summary(where.teacher)
        return totals.spent + totals.returned
    head, bills = _newest(ledger), ledger.tables.bills
    query = _joined(head, bills, sa.func.count()).where(*where.conditions(head, bills))
    with ledger.reading() as connection:
        return int(connection.execute(query).scalar_one())


def _newest(ledger: Ledger) -> int:
    with ledger.reading() as connection:
        return int(connection.execute(sa.select(sa.func.max(entries.c.seq))).scalar() or 0)


def _status_at(head: int, bills: sa.FromClause) -> sa.ColumnElement[str]:
    """A call's status after an entry: what later entries changed is known, since a call is settled and revoked once.

    Args:
        bills: joined as after that entry; one that was replaced since was unknown then.
    """
    given_back_since = sa.and_(calls.c.status == "returned", bills.c.replaced_in.is_not(None))
    return sa.case(
        (calls.c.settled_in > head, "reserved"),
        (calls.c.revoked_in > head, "committed"),
        (given_back_since, "lost"),
        else_=calls.c.status,
    )


def _columns_at(head: int, bills: sa.FromClause) -> list[sa.ColumnElement[Any]]:
    """`COLUMNS` in the state after an entry."""
    later = calls.c.settled_in > head
    changed: dict[str, sa.ColumnElement[Any]] = {
        "status": _status_at(head, bills),
        "settled_at": sa.case((later, None), else_=_SETTLED.c.at),
        "output_digest": sa.case((later, None), else_=calls.c.output_digest),
        **{name: bills.c[name] for name in BILL_COLUMNS},
    }
    return [changed[column.name].label(column.name) if column.name in changed else column for column in COLUMNS]


def calls_by_id(ledger: Ledger, ids: Sequence[int]) -> Iterator[dict[str, Any]]:
    """Some calls as `list_calls` gives them, in the order of their ids."""
    for part in lookups(sorted(ids)):
        yield from list_calls(ledger, CallFilter(ids=part))


def teacher_seconds(ledger: Ledger) -> Counter[str]:
    """Teacher's fingerprint -> seconds that its committed calls took, as far as builders measured them."""
    who: sa.Select[Any] = sa.select(sessions.c.id, accounts.c.teacher).join(
        accounts, sessions.c.account == accounts.c.id
    )
    seconds: Counter[str] = Counter()
    with ledger.reading() as connection, _written_by_a_release(ledger):
        teachers: dict[int, str] = dict(connection.execute(who).all())
        for (payload,) in streamed(connection, sa.select(entries.c.payload).where(entries.c.kind == "commit")):
            content = json.loads(payload)
            seconds[teachers[content["session"]]] += content["seconds"]
    return seconds


def seconds_of_calls(ledger: Ledger, ids: Sequence[int]) -> float:
    """Seconds the teacher took for some committed calls: each has an equal part of its batch's."""
    seconds = 0.0
    with ledger.reading() as connection, _written_by_a_release(ledger):
        settled: Counter[int] = Counter()
        for part in lookups(ids):
            settled.update(connection.execute(sa.select(calls.c.settled_in).where(calls.c.id.in_(part))).scalars())
        for seqs in lookups(sorted(settled)):
            query: sa.Select[Any] = sa.select(entries.c.seq, entries.c.payload).where(entries.c.seq.in_(seqs))
            for seq, payload in connection.execute(query):
                content = json.loads(payload)
                batch = sum(last - first + 1 for first, last in content["calls"])
                seconds += content["seconds"] * settled[seq] / batch
    return seconds


@dataclass(frozen=True, slots=True)
class CallHistory:
    """What a call was about, and the numbers of the entries that reserved and, if so, revoked it."""

    id: int
    teacher: str
    store: str
    row: int
    view: int
    repeat: int
    status: str
    input_digest: bytes
    output_digest: bytes | None
    reserved_in: int
    revoked_in: int | None
    kept: str
    precision: str

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of what was kept of it."""
        return tuple(self.kept.split(","))

    def answered_by(self, seq: int) -> bool:
        """Whether somebody who saw the ledger up to an entry, and the outputs in the store, had this call's.

        A builder's newest calls can be in a store before whoever reads it looks at the ledger again, so only a repeat,
        which an earlier call answered before, has to be older than the entry.
        """
        if self.output_digest is None or (self.repeat and self.reserved_in > seq):
            return False
        return self.revoked_in is None or self.revoked_in > seq


def call_histories(ledger: Ledger, ids: Sequence[int]) -> dict[int, CallHistory]:
    """Call -> its history, for those that are in the ledger."""
    with ledger.reading() as connection:
        rows = [row for part in lookups(ids) for row in connection.execute(_HISTORY.where(calls.c.id.in_(part)))]
    return {row.id: CallHistory(*row) for row in rows}


def calls_revoked_after(ledger: Ledger, teacher: str, seq: int) -> list[CallHistory]:
    """Calls to a teacher that were committed once, and whose outputs were found damaged after an entry."""
    query = _HISTORY.where(accounts.c.teacher == teacher, calls.c.revoked_in > seq)
    with ledger.reading() as connection:
        return [CallHistory(*row) for row in connection.execute(query.order_by(calls.c.id))]


_CALLS = ("at", "from", "to")
_MONEY = {"from_micros", "to_micros"}


def budget_history(ledger: Ledger, teacher: str) -> list[dict[str, Any]]:
    """Every change of a teacher's budgets, oldest first: at, from, to; where money's changed from_micros, to_micros."""
    query: sa.Select[Any] = sa.select(entries.c.at, entries.c.payload).where(entries.c.kind == "budget")
    with ledger.reading() as connection, _written_by_a_release(ledger):
        changes = [
            {"at": at, **json.loads(payload)} for at, payload in connection.execute(query.order_by(entries.c.seq))
        ]
        ours = [change for change in changes if change["teacher"] == teacher]
        return [{name: change[name] for name in (*_CALLS, *sorted(_MONEY & change.keys()))} for change in ours]


def find_teacher(ledger: Ledger, text: str | None) -> str:
    """Fingerprint of the one teacher with this name, or whose fingerprint begins so; None for the only one there is.

    Raises:
        InvalidInput: there is none, or several.
    """
    teachers = ledger.teachers()
    if not teachers:
        raise InvalidInput(
            "the ledger knows no teacher yet; build a store first with: "
            "ckd-cache build --teacher NAME --dataset DATASET --n N"
        )
    found = [
        teacher
        for teacher, name in teachers.items()
        if text is None or text == name or (text and teacher.startswith(text.lower()))
    ]
    if len(found) == 1:
        return found[0]
    known = [f"{name} {teacher[:12]}" for teacher, name in teachers.items() if not found or teacher in found]
    if not found:
        raise UnknownName("teacher of the ledger", text or "", known)
    asked = "the ledger has" if text is None else f"{text} stands for"
    raise InvalidInput(f"{asked} {len(found)} teachers ({', '.join(known)}); name one by its fingerprint")


@contextmanager
def _written_by_a_release(ledger: Ledger) -> Iterator[None]:
    try:
        yield
    except (KeyError, ValueError, TypeError, AttributeError, ZeroDivisionError) as error:
        raise StoreUnreadable(
            "the ledger's entries are not what any release writes; see what is wrong with: "
            f"{suggested('ckd-cache ledger verify', ledger=ledger.shown_url)}"
        ) from error


def _joined(head: int, bills: sa.FromClause, *columns: Any) -> sa.Select[Any]:
    """Columns of all calls, each with the bill that it had after an entry, if any."""
    in_force = sa.or_(bills.c.replaced_in.is_(None), bills.c.replaced_in > head)
    return (
        sa.select(*columns)
        .select_from(calls)
        .join(sessions, calls.c.session == sessions.c.id)
        .join(accounts, calls.c.account == accounts.c.id)
        .join(_RESERVED, calls.c.reserved_in == _RESERVED.c.seq)
        .outerjoin(_SETTLED, calls.c.settled_in == _SETTLED.c.seq)
        .outerjoin(bills, sa.and_(bills.c.call == calls.c.id, bills.c.settled_in <= head, in_force))
    )


_HISTORY: sa.Select[Any] = (
    sa.select(
        calls.c.id,
        accounts.c.teacher,
        sessions.c.store,
        calls.c.row,
        calls.c.view,
        calls.c.repeat,
        calls.c.status,
        calls.c.input_digest,
        calls.c.output_digest,
        calls.c.reserved_in,
        calls.c.revoked_in,
        sessions.c.outputs,
        sessions.c.precision,
    )
    .join(sessions, calls.c.session == sessions.c.id)
    .join(accounts, calls.c.account == accounts.c.id)
)
