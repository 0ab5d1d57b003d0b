"""How calls are read from the ledger's tables: by input, by session, by store; and any query in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from operator import attrgetter
from typing import Any, TypeVar

import sqlalchemy as sa

from ground.errors import StoreUnreadable
from storage.ledger_records import RecordedCall
from storage.ledger_tables import UNANSWERED, calls, sessions
from storage.schema import DIGEST_BYTES

_LOOKUP_SIZE = 500
_STREAMED_ROWS = 256

_Value = TypeVar("_Value")


def find_calls(connection: sa.Connection, account: int, digests: Sequence[bytes]) -> dict[bytes, list[RecordedCall]]:
    """Calls of an account on these inputs that are paid for and not lost, in any precision, in order of their ids."""
    found: dict[bytes, list[RecordedCall]] = {}
    # Written as the index has it, so that it is used.
    stands = [calls.c.status != status for status in UNANSWERED]
    for part in lookups(digests):
        query = _select_calls().where(calls.c.account == account, *stands, calls.c.input_digest.in_(part))
        for call in _read_calls(connection.execute(query.order_by(calls.c.id))):
            found.setdefault(call.input_digest, []).append(call)
    return found


def in_precision(found: Mapping[bytes, Sequence[RecordedCall]], precision: str) -> dict[bytes, list[RecordedCall]]:
    """Those that a teacher answered in one precision, as in another it says something else."""
    same = {digest: [call for call in calls if call.precision == precision] for digest, calls in found.items()}
    return {digest: calls for digest, calls in same.items() if calls}


def calls_of_store(connection: sa.Connection, store: str, status: str) -> list[RecordedCall]:
    """Calls with a status whose outputs belong to a store, in order of their ids."""
    # In two steps, so that no database goes through the calls of all stores, in the order that is asked for.
    return calls_of_sessions(connection, _sessions_of(connection, store), status)


def calls_of_sessions(
    connection: sa.Connection, numbers: Sequence[int], status: str, *conditions: sa.ColumnElement[bool]
) -> list[RecordedCall]:
    """Calls with a status that some sessions made, in order of their ids."""
    found: list[RecordedCall] = []
    for part in lookups(numbers):
        query = _select_calls().where(calls.c.session.in_(part), calls.c.status == status, *conditions)
        found += _read_calls(connection.execute(query))
    return sorted(found, key=attrgetter("id"))


def calls_outside(connection: sa.Connection, store: str, rows: int) -> list[RecordedCall]:
    """Committed calls of a store that has so many rows, for other rows than these; few, where all is well.

    Raises:
        StoreUnreadable: one of its committed calls, for whichever row, is none that any release recorded.
    """
    num_outputs = 1 + sa.func.length(sessions.c.outputs) - sa.func.length(sa.func.replace(sessions.c.outputs, ",", ""))
    # What `_read_calls` refuses comes along, so that it is refused.
    odd = sa.or_(
        calls.c.row >= rows,
        calls.c.row < 0,
        calls.c.view < 0,
        sa.func.length(calls.c.input_digest) != DIGEST_BYTES,
        sa.func.length(calls.c.output_digest) != DIGEST_BYTES * num_outputs,
    )
    return calls_of_sessions(connection, _sessions_of(connection, store), "committed", odd)


def lookups(values: Sequence[_Value]) -> list[Sequence[_Value]]:
    """Values in pieces that are small enough for one query."""
    return [values[first : first + _LOOKUP_SIZE] for first in range(0, len(values), _LOOKUP_SIZE)]


def streamed(connection: sa.Connection, query: sa.Select[Any]) -> Iterator[Any]:
    """Rows of a query of any size, a few hundred at a time in memory, from a server too."""
    # A server keeps a cursor for as long as it is not closed, read to its end or not.
    with connection.execute(query, execution_options={"yield_per": _STREAMED_ROWS}) as rows:
        for part in rows.partitions():
            yield from part


def _sessions_of(connection: sa.Connection, store: str) -> Sequence[int]:
    return connection.execute(sa.select(sessions.c.id).where(sessions.c.store == store)).scalars().all()


def _select_calls() -> sa.Select[Any]:
    """The columns that `_read_calls` reads: the fields of `RecordedCall`, in their order."""
    names = ("input_digest", "repeat", "row", "view", "status", "output_digest")
    where = (sessions.c.store, sessions.c.location, sessions.c.precision, sessions.c.outputs)
    columns = (calls.c.id, calls.c.session, *where, *(calls.c[name] for name in names))
    return sa.select(*columns).join(sessions, calls.c.session == sessions.c.id)


def _read_calls(rows: sa.CursorResult[Any]) -> list[RecordedCall]:
    """Rows of a `_select_calls` query; raises `StoreUnreadable` for what no release wrote."""
    found, kept = [], dict[str, tuple[str, ...]]()
    read: Sequence[Any] = rows.all()
    for id_, session, store, location, precision, outputs, *rest in read:
        names = kept.get(outputs) or kept.setdefault(outputs, tuple(outputs.split(",")))
        call = RecordedCall(id_, session, store, location, precision, names, *rest)
        digest = call.output_digest
        whole = digest is None or len(digest) == DIGEST_BYTES * len(names)
        if not whole or call.row < 0 or call.view < 0 or len(call.input_digest) != DIGEST_BYTES:
            raise StoreUnreadable(f"call {id_} of the ledger is no call that any release recorded")
        found.append(call)
    return found
