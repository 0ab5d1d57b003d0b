"""What the ledger knows of calls, and of who makes them; and how calls are read from its tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import sqlalchemy as sa

from ground.errors import StoreUnreadable
from storage.ledger_tables import UNANSWERED, calls, sessions
from storage.schema import DIGEST_BYTES

_LOOKUP_SIZE = 500

_Value = TypeVar("_Value")


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """Who calls, and how: constant during one run of a builder.

    Args:
        teacher: fingerprint, 64 hex digits.
        teacher_name: architecture, for people.
        store: id of the store that keeps the outputs.
        location: absolute folder of that store, so that other builds can copy from it.
        purpose: what the calls are for, for people.
        device, precision: where and in which number format the teacher runs.
        outputs: names of what is kept of each call.
        host: the machine, and the file that builders of the store lock there: text of a `teacher_cache.place.Place`, or
            of another shape in sessions of earlier releases.
    """

    teacher: str
    teacher_name: str
    store: str
    location: str
    purpose: str
    device: str
    precision: str
    outputs: tuple[str, ...]
    host: str


@dataclass(frozen=True, slots=True)
class CallRequest:
    """One call about to be made: which input, and where its outputs will go."""

    input_digest: bytes
    sample: int
    row: int
    view: int


@dataclass(frozen=True, slots=True)
class RecordedCall:
    """What the ledger knows of a call; `output_digest` holds 16 bytes for each of `outputs`."""

    id: int
    session: int
    store: str
    location: str
    precision: str
    outputs: tuple[str, ...]
    input_digest: bytes
    repeat: int
    row: int
    view: int
    status: str
    output_digest: bytes | None

    def digest_of(self, output: str) -> bytes | None:
        """What the call's outputs must digest to, or None for one that was not kept."""
        if self.output_digest is None or output not in self.outputs:
            return None
        first = self.outputs.index(output) * DIGEST_BYTES
        return self.output_digest[first : first + DIGEST_BYTES]


@dataclass(frozen=True, slots=True)
class Reservation:
    """What became of requests: ids of those that are charged, and the calls that already answer the others."""

    ids: dict[bytes, int]
    known: dict[bytes, list[RecordedCall]]


@dataclass(frozen=True, slots=True)
class Lease:
    """A living session's: `beat` grows for as long as it lives."""

    session: int
    store: str
    location: str
    host: str
    beat: int


@dataclass(frozen=True, slots=True)
class Summary:
    """Totals of one teacher, or of all: every count is in teacher calls, every amount in micros.

    Args:
        spent: committed + reserved + lost.
        budget, budget_micros: the most that may ever be spent; None where there is no limit, or several teachers.
        remaining, remaining_micros: what is left of them; less than 0 where a provider charged more than its bound.
        returned: charged, and given back, since nobody billed them; not among `spent`.
        cost_micros: what settled calls cost.
        reserved_micros: upper bounds of the reserved ones.
    """

    committed: int
    reserved: int
    lost: int
    spent: int
    budget: int | None
    remaining: int | None
    head: str
    returned: int = 0
    cost_micros: int = 0
    reserved_micros: int = 0
    budget_micros: int | None = None
    remaining_micros: int | None = None


def select_calls() -> sa.Select[Any]:
    """The columns that `read_calls` reads."""
    names = ("input_digest", "repeat", "row", "view", "status", "output_digest")
    where = (sessions.c.store, sessions.c.location, sessions.c.precision, sessions.c.outputs)
    columns = (calls.c.id, calls.c.session, *where, *(calls.c[name] for name in names))
    return sa.select(*columns).join(sessions, calls.c.session == sessions.c.id)


def read_calls(rows: sa.CursorResult[Any]) -> list[RecordedCall]:
    """Rows of a `select_calls` query; raises `StoreUnreadable` for what no release wrote."""
    found = [RecordedCall(**{**row, "outputs": tuple(row["outputs"].split(","))}) for row in rows.mappings()]
    for call in found:
        kept = None if call.output_digest is None else len(call.output_digest) == DIGEST_BYTES * len(call.outputs)
        if kept is False or call.row < 0 or call.view < 0 or len(call.input_digest) != DIGEST_BYTES:
            raise StoreUnreadable(f"call {call.id} of the ledger is no call that any release recorded")
    return found


def find_calls(connection: sa.Connection, account: int, digests: Sequence[bytes]) -> dict[bytes, list[RecordedCall]]:
    """Calls of an account on these inputs that are paid for and not lost, in any precision, in order of their ids."""
    found: dict[bytes, list[RecordedCall]] = {}
    # Written as the index has it, so that it is used.
    stands = [calls.c.status != status for status in UNANSWERED]
    for part in lookups(digests):
        query = select_calls().where(calls.c.account == account, *stands, calls.c.input_digest.in_(part))
        for call in read_calls(connection.execute(query.order_by(calls.c.id))):
            found.setdefault(call.input_digest, []).append(call)
    return found


def in_precision(found: Mapping[bytes, Sequence[RecordedCall]], precision: str) -> dict[bytes, list[RecordedCall]]:
    """Those that a teacher answered in one precision, as in another it says something else."""
    same = {digest: [call for call in calls if call.precision == precision] for digest, calls in found.items()}
    return {digest: calls for digest, calls in same.items() if calls}


def lookups(values: Sequence[_Value]) -> list[Sequence[_Value]]:
    """Values in pieces that are small enough for one query."""
    return [values[first : first + _LOOKUP_SIZE] for first in range(0, len(values), _LOOKUP_SIZE)]
