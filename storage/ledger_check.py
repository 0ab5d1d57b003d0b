"""Recompute a ledger from its journal, and say where the two differ.

Entries and rows pass by side by side, in the order of the entries, so a ledger of any size is checked in the same
memory; the database sorts, on its own disk.
"""

from __future__ import annotations

import json
from bisect import bisect
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from operator import attrgetter
from typing import Any, TypeVar

import sqlalchemy as sa

from ground.errors import StoreUnreadable
from storage.bill import Billed
from storage.ledger import Ledger
from storage.ledger_bills import COLUMNS
from storage.ledger_calls import streamed
from storage.ledger_chain import GENESIS, bill_rows_digest, id_ranges, reserved_rows_digest, settled_rows_digest
from storage.ledger_migrations import Tables
from storage.ledger_settling import SETTLED_STATUS
from storage.ledger_tables import UNANSWERED, calls, entries, sessions

_REMEDY = "bring the ledger back from a copy"
_MAX_LISTED = 20
# Kinds of entries that may settle bills.
_WITH_BILLS = (*SETTLED_STATUS, "settle")
# What an entry says of itself.
_Content = Mapping[str, Any]
_Said = TypeVar("_Said")


def ledger_problems(ledger: Ledger) -> list[str]:
    """Every disagreement between the chain, the calls and the accounts; empty when the ledger is whole.

    Raises:
        InvalidInput: it is sealed with a key that is not set.
    """
    ledger.require_key()
    try:
        with ledger.reading() as connection:
            # What SQLite itself calls damaged is not looked at any further.
            found = _file_problems(connection) or _content_problems(connection, ledger)
            return [*ledger.schema_problems(), *found]
    except StoreUnreadable as error:
        return [str(error)]
    except (KeyError, ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        # The chain holds, and what it holds was not written by us.
        wrong = f"the ledger's entries are not what any release writes ({error!r}); {_REMEDY}"
        return [*ledger.schema_problems(), wrong]


def _content_problems(connection: sa.Connection, ledger: Ledger) -> list[str]:
    broken = list(_chain_problems(_journal(connection), ledger.seal.hash))
    if broken:
        # Nothing can be compared with a journal that does not hold.
        return broken
    tables = ledger.tables
    return [
        *_duplicate_problems(connection),
        *_reserved_problems(connection, tables),
        *_settled_problems(connection, tables),
        *_revoked_problems(connection, tables),
        *_bill_problems(connection, tables),
        *_session_problems(connection, tables),
        *_account_problems(connection, tables),
    ]


def _file_problems(connection: sa.Connection) -> list[str]:
    """An SQLite file that is damaged; a server looks after its own."""
    if connection.dialect.name != "sqlite":
        return []
    found = list(connection.exec_driver_sql(f"PRAGMA integrity_check({_MAX_LISTED})").scalars())
    return [f"the ledger's file is damaged ({line}); {_REMEDY}" for line in found if line != "ok"]


def _chain_problems(journal: Iterable[Any], entry_hash: Callable[..., str]) -> Iterator[str]:
    previous = GENESIS
    for place, entry in enumerate(journal, start=1):
        if entry.seq != place:
            yield f"ledger entry {place} is missing: the next one is {entry.seq}; {_REMEDY}"
            return
        if entry.previous != previous:
            yield f"ledger entry {entry.seq} does not follow the one before it; {_REMEDY}"
        expected = entry_hash(entry.seq, entry.kind, entry.at, entry.payload, entry.previous)
        if entry.hash != expected:
            yield f"ledger entry {entry.seq} ({entry.kind}) was changed: its hash does not match; {_REMEDY}"
        previous = entry.hash


def _reserved_problems(connection: sa.Connection, tables: Tables) -> Iterator[str]:
    who: sa.Select[Any] = sa.select(sessions.c.id, sessions.c.account)
    account_of: dict[int, int] = dict(connection.execute(who).all())
    calls = tables.calls
    chained, named = ("id", "repeat", "sample", "row", "view", "input_digest"), ("session", "account", "upper_micros")
    # Numbers ascend as entries do: nothing has to be sorted.
    query = sa.select(*(calls.c[name] for name in (*chained, *named, "reserved_in"))).order_by(calls.c.id)
    reserved = _contents(connection, "reserve")
    for seq, payload, rows in _side_by_side(reserved, _grouped(connection, query, "reserved_in")):
        digest = reserved_rows_digest(row[: len(chained)] for row in rows)
        if not rows and payload is not None:
            yield f"the {payload['count']} calls that ledger entry {seq} reserved are missing; {_REMEDY}"
            continue
        if payload is None or (payload["rows"], len(rows)) != (digest, payload["count"]):
            yield f"calls {_span(rows)} differ from what ledger entry {seq} reserved; {_REMEDY}"
            continue
        # The same of all of them, mostly.
        names = {row[len(chained) :] for row in rows}
        if any(said[:2] != (payload["session"], account_of.get(said[0])) for said in names):
            yield f"calls {_span(rows)} are not of the session that ledger entry {seq} names; {_REMEDY}"
        elif any(said[2] != payload.get("upper_micros", 0) for said in names):
            yield f"calls {_span(rows)} have another upper bound than ledger entry {seq} reserved; {_REMEDY}"


def _duplicate_problems(connection: sa.Connection) -> Iterator[str]:
    """Inputs that were paid for more than once; the database's own index should have refused them."""
    # Written so that no index can answer: which one there is, and what is in it, is the question.
    stands = calls.c.status.concat("").not_in(UNANSWERED)
    key = (calls.c.account, calls.c.input_digest, calls.c.repeat)
    query = sa.select(sa.func.count().label("calls"), sa.func.min(calls.c.id).label("first")).where(stands)
    twice = query.group_by(*key).having(sa.func.count() > 1).subquery()
    paid = sa.select(sa.func.count(), sa.func.sum(twice.c.calls), sa.func.min(twice.c.first))
    inputs, paid_calls, first = connection.execute(paid).one()
    if inputs:
        yield (
            f"{inputs} input(s) were paid for more than once, by {paid_calls} calls that are not lost, the first of "
            f"them call {first}: whatever refuses that was missing when they were charged; {_REMEDY}"
        )
    numbered = sa.select(sa.func.count(), sa.func.count(sa.distinct(calls.c.id + 0))).select_from(calls)
    rows, numbers = connection.execute(numbered).one()
    if rows != numbers:
        yield f"the ledger has {rows} calls under {numbers} numbers; {_REMEDY}"


def _settled_problems(connection: sa.Connection, tables: Tables) -> Iterator[str]:
    calls = tables.calls
    given_back = _given_back(connection)
    columns = (calls.c[name] for name in ("id", "output_digest", "session", "status", "revoked_in", "settled_in"))
    query = sa.select(*columns).where(calls.c.settled_in.is_not(None)).order_by(calls.c.settled_in, calls.c.id)
    settled = ((entry.seq, entry) for entry in _journal(connection, *SETTLED_STATUS))
    for seq, entry, rows in _side_by_side(settled, _grouped(connection, query, "settled_in")):
        if not rows:
            yield f"the calls that ledger entry {seq} settled are missing or no longer settled; {_REMEDY}"
            continue
        content = {} if entry is None else json.loads(entry.payload)
        found = {
            "calls": id_ranges([id_ for id_, *_ in rows]),
            "rows": settled_rows_digest(row[:2] for row in rows),
        }
        if (
            entry is None
            or {name: content[name] for name in found} != found
            or {row[2] for row in rows} != {content["session"]}
            or any(
                status != _status_of(id_, entry.kind, given_back)
                for id_, _, _, status, revoked_in, _ in rows
                if revoked_in is None
            )
        ):
            yield f"calls {_span(rows)} differ from what ledger entry {seq} settled; {_REMEDY}"
    wrong = sa.select(calls).where(
        sa.or_(
            sa.and_(calls.c.status != "reserved", calls.c.settled_in.is_(None)),
            sa.and_(calls.c.status == "reserved", calls.c.output_digest.is_not(None)),
        )
    )
    rows = list(connection.execute(wrong.order_by(calls.c.id)))
    if rows:
        yield f"calls {_span(rows)} are settled, and no ledger entry says so; {_REMEDY}"


def _status_of(call: int, kind: str, given_back: Sequence[Sequence[int]]) -> str:
    """What a call must be that an entry of this kind settled."""
    run = bisect(given_back, call, key=lambda run: run[0]) - 1
    return "returned" if run >= 0 and call <= given_back[run][1] else SETTLED_STATUS[kind]


def _given_back(connection: sa.Connection) -> list[list[int]]:
    """Calls that were lost, and that a provider's bill did not hold, as sorted [first, last] runs."""
    return sorted(run for _, content in _contents(connection, "settle") for run in content["returned"])


def _bill_problems(connection: sa.Connection, tables: Tables) -> Iterator[str]:
    bills = tables.bills
    decided = {seq: content["calls"] for seq, content in _contents(connection, "settle")}
    billed = ((seq, content) for seq, content in _contents(connection, *_WITH_BILLS) if "bills" in content)
    query = sa.select(bills, calls.c.settled_in.label("call_settled_in")).join(calls, calls.c.id == bills.c.call)
    found = _grouped(connection, query.order_by(bills.c.settled_in, bills.c.call), "settled_in")
    for seq, content, rows in _side_by_side(billed, found):
        ids = [row.call for row in rows]
        digest = bill_rows_digest(tuple(getattr(row, name) for name in COLUMNS) for row in rows)
        if not rows:
            yield f"the bills that ledger entry {seq} settled are missing; {_REMEDY}"
        elif content is None or content["bills"] != digest:
            yield f"the bills of calls {_runs(ids)} differ from what ledger entry {seq} settled; {_REMEDY}"
        elif seq in decided and id_ranges(ids) != decided[seq]:
            yield f"the bills of calls {_runs(ids)} are not of the calls that ledger entry {seq} decided; {_REMEDY}"
        elif any(row.call_settled_in != seq for row in rows) and seq not in decided:
            yield f"the bills of calls {_runs(ids)} are of calls that another entry than {seq} settled; {_REMEDY}"
    yield from _replaced_problems(connection, tables, decided)
    yield from _unbilled_problems(connection, tables)


def _replaced_problems(connection: sa.Connection, tables: Tables, decided: Mapping[int, Any]) -> Iterator[str]:
    """Bills that later ones take the place of: which ones is what the later entries say, and only unknown ones."""
    bills = tables.bills
    query = sa.select(bills).where(bills.c.replaced_in.is_not(None)).order_by(bills.c.replaced_in, bills.c.call)
    left = dict(decided)
    for seq, rows in _grouped(connection, query, "replaced_in"):
        ids = [row.call for row in rows]
        if left.pop(seq, None) != id_ranges(ids) or any(row.billed != Billed.UNKNOWN for row in rows):
            yield f"the bills of calls {_runs(ids)} were replaced, and ledger entry {seq} does not say so; {_REMEDY}"
    for seq in left:
        yield f"the bills that ledger entry {seq} replaced are in force; {_REMEDY}"


def _unbilled_problems(connection: sa.Connection, tables: Tables) -> Iterator[str]:
    """Settled calls that cost something and have no bill; and calls with several that are in force."""
    calls, bills = tables.calls, tables.bills
    in_force = sa.and_(bills.c.call == calls.c.id, bills.c.replaced_in.is_(None))
    without = (
        sa.select(calls.c.id)
        .outerjoin(bills, in_force)
        .where(calls.c.upper_micros > 0, calls.c.status != "reserved", bills.c.call.is_(None))
    )
    if ids := list(connection.execute(without.order_by(calls.c.id)).scalars()):
        yield f"calls {_runs(ids)} cost something, and have no bill; {_REMEDY}"
    several = sa.select(bills.c.call).where(bills.c.replaced_in.is_(None)).group_by(bills.c.call)
    several = several.having(sa.func.count() > 1).order_by(bills.c.call)
    if ids := list(connection.execute(several).scalars()):
        yield f"calls {_runs(ids)} have several bills; {_REMEDY}"


def _revoked_problems(connection: sa.Connection, tables: Tables) -> Iterator[str]:
    calls = tables.calls
    query = sa.select(calls).where(calls.c.revoked_in.is_not(None)).order_by(calls.c.revoked_in, calls.c.id)
    revoked = _contents(connection, "revoke")
    for seq, content, rows in _side_by_side(revoked, _grouped(connection, query, "revoked_in")):
        same = content is not None and content["calls"] == id_ranges([row.id for row in rows])
        if not rows:
            yield f"the calls that ledger entry {seq} revoked are no longer revoked; {_REMEDY}"
        elif not same or any(row.status != "lost" for row in rows):
            yield f"calls {_span(rows)} differ from what ledger entry {seq} revoked; {_REMEDY}"


def _session_problems(connection: sa.Connection, tables: Tables) -> Iterator[str]:
    accounts = tables.accounts
    recorded = {fields["id"]: fields for _, fields in _contents(connection, "session")}
    query = sa.select(sessions, accounts.c.teacher, accounts.c.name.label("teacher_name"))
    for row in connection.execute(query.join(accounts, sessions.c.account == accounts.c.id)).mappings():
        found = {name: value for name, value in row.items() if name != "account"}
        fields = recorded.pop(row["id"], {})
        if {name: fields.get(name) for name in found} != found:
            yield f"session {row['id']} differs from its ledger entry; {_REMEDY}"
    for session_id in recorded:
        yield f"session {session_id} is missing; {_REMEDY}"


def _account_problems(connection: sa.Connection, tables: Tables) -> Iterator[str]:
    accounts = tables.accounts
    counts, amounts = _sums(connection, tables)
    budgets: dict[str, tuple[object, object]] = {}
    names = {}
    for entry in _journal(connection, "budget", "session"):
        content = json.loads(entry.payload)
        if entry.kind == "session":
            names[content["teacher"]] = content["teacher_name"]
            continue
        teacher, (_, most) = content["teacher"], budgets.get(content["teacher"], (None, None))
        budgets[teacher] = (content["to"], content.get("to_micros", most))
        names[teacher] = content["name"]
    rows_of: Sequence[Any] = connection.execute(sa.select(accounts)).all()
    for account in {account for account, _ in counts} - {account.id for account in rows_of}:
        yield f"account {account} is missing; {_REMEDY}"
    for teacher in names.keys() - {account.teacher for account in rows_of}:
        yield f"the account of teacher {teacher[:12]} is missing; {_REMEDY}"
    for column in ("id", "teacher"):
        for value, count in Counter(getattr(account, column) for account in rows_of).items():
            if count > 1:
                yield f"the ledger has {count} accounts with the {column} {str(value)[:12]}; {_REMEDY}"
    for account in rows_of:
        if account.name != names.get(account.teacher):
            yield f"the account of {account.name} ({account.teacher[:12]}) has another name in the journal; {_REMEDY}"
        for status in ("reserved", "committed", "lost", "returned"):
            total, rows = getattr(account, status), counts[account.id, status]
            if total != rows:
                yield f"the account of {account.name} says {total} calls {status}, the ledger has {rows}; {_REMEDY}"
        for column in ("reserved_micros", "spent_micros"):
            total, rows = getattr(account, column), amounts[account.id, column]
            if total != rows:
                yield f"the account of {account.name} says {total} {column}, its calls {rows}; {_REMEDY}"
        if (account.budget, account.budget_micros) != budgets.get(account.teacher, (None, None)):
            yield f"the account of {account.name} has a budget that no ledger entry set; {_REMEDY}"


def _sums(connection: sa.Connection, tables: Tables) -> tuple[Counter[tuple[int, str]], Counter[tuple[int, str]]]:
    """Account and status -> calls; account and what is summed -> micros."""
    calls, bills = tables.calls, tables.bills
    counts: Counter[tuple[int, str]] = Counter()
    amounts: Counter[tuple[int, str]] = Counter()
    by_status = sa.select(calls.c.account, calls.c.status, sa.func.count(), sa.func.sum(calls.c.upper_micros))
    for account, status, count, upper in connection.execute(by_status.group_by(calls.c.account, calls.c.status)):
        counts[account, status] = count
        if status == "reserved":
            amounts[account, "reserved_micros"] = int(upper)
    costs = sa.select(calls.c.account, sa.func.sum(bills.c.cost_micros)).join(bills, bills.c.call == calls.c.id)
    for account, cost in connection.execute(costs.where(bills.c.replaced_in.is_(None)).group_by(calls.c.account)):
        amounts[account, "spent_micros"] = int(cost)
    return counts, amounts


def _journal(connection: sa.Connection, *kinds: str) -> Iterator[Any]:
    """Entries in their order: of some kinds, or all."""
    query = sa.select(entries).order_by(entries.c.seq)
    return streamed(connection, query.where(entries.c.kind.in_(kinds)) if kinds else query)


def _contents(connection: sa.Connection, *kinds: str) -> Iterator[tuple[int, _Content]]:
    """Number and content of entries of some kinds, in their order."""
    return ((entry.seq, json.loads(entry.payload)) for entry in _journal(connection, *kinds))


def _grouped(connection: sa.Connection, query: sa.Select[Any], column: str) -> Iterator[tuple[int, list[Any]]]:
    """Rows that name the same entry in a column by which they are sorted."""
    for seq, group in groupby(streamed(connection, query), key=attrgetter(column)):
        yield seq, list(group)


def _side_by_side(
    expected: Iterator[tuple[int, _Said]], found: Iterator[tuple[int, list[Any]]]
) -> Iterator[tuple[int, _Said | None, list[Any]]]:
    """Number of an entry, what it says, and the rows that name it; both sides in the order of the entries.

    An entry that no row names comes with no rows; rows that name no entry, or an earlier one, with None.
    """
    said = next(expected, None)
    for seq, rows in found:
        while said is not None and said[0] < seq:
            yield (*said, [])
            said = next(expected, None)
        if said is None or said[0] != seq:
            yield seq, None, rows
            continue
        yield (*said, rows)
        said = next(expected, None)
    while said is not None:
        yield (*said, [])
        said = next(expected, None)


def _span(rows: list[Any]) -> str:
    return _runs([row.id for row in rows])


def _runs(ids: Sequence[int]) -> str:
    return ", ".join(f"{first}-{last}" for first, last in id_ranges(ids)[:5])
