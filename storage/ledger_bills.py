"""What calls cost, in the ledger's tables: which bills are written when calls are settled, and what they sum up to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import sqlalchemy as sa

from storage.bill import Bill, Billed, FailureKind
from storage.ledger_calls import lookups
from storage.ledger_chain import bill_rows_digest
from storage.ledger_tables import bills, calls

# What an entry's digest covers of a bill, in this order.
COLUMNS = ("call", "billed", "cost_micros", "tokens_in", "tokens_out", "model", "request_id", "failure")
_MOST = 1 << 62
_LONGEST_TEXT = 256


def upper_bounds(connection: sa.Connection, ids: Sequence[int]) -> dict[int, int]:
    """Call -> micros that it was reserved at, for those that may cost something."""
    found: dict[int, int] = {}
    for part in lookups(ids):
        query: sa.Select[Any] = sa.select(calls.c.id, calls.c.upper_micros)
        found |= dict(connection.execute(query.where(calls.c.id.in_(part), calls.c.upper_micros > 0)).all())
    return found


def settled_bills(
    ids: Iterable[int], bills: Mapping[int, Bill], uppers: Mapping[int, int], failure: FailureKind | None
) -> dict[int, Bill]:
    """Call -> its bill, for calls that are settled together, in the order of their ids.

    What costs something and has no bill is billed at its upper bound, as unknown; so is what is said to be unknown,
    unless that is more.

    Args:
        failure: how calls without a bill ended; None with an answer.
    """
    found = {}
    for id_ in sorted(ids):
        upper, bill = uppers.get(id_, 0), bills.get(id_)
        if bill is None and upper:
            bill = Bill(billed=Billed.UNKNOWN, failure=failure)
        if bill is not None and bill.billed is Billed.UNKNOWN:
            bill = replace(bill, cost_micros=max(upper, bill.cost_micros))
        if bill is not None:
            found[id_] = bill
    return found


def insert_bills(connection: sa.Connection, found: Mapping[int, Bill], seq: int) -> None:
    """Write bills that the entry `seq` settled."""
    if found:
        rows = [dict(zip(COLUMNS, row_of(id_, bill), strict=True)) for id_, bill in found.items()]
        connection.execute(sa.insert(bills), [row | {"settled_in": seq} for row in rows])


def digest_of(found: Mapping[int, Bill]) -> str:
    """What an entry says of the bills that it settled."""
    return bill_rows_digest(row_of(id_, bill) for id_, bill in found.items())


def row_of(id_: int, bill: Bill) -> tuple[object, ...]:
    """A bill as `COLUMNS`; texts of a provider's are kept where they can be printed, and spelled out where not."""
    failure = None if bill.failure is None else bill.failure.value
    tokens = (bill.tokens_in, bill.tokens_out)
    return (id_, bill.billed.value, bill.cost_micros, *tokens, *map(kept_text, (bill.model, bill.request_id)), failure)


def kept_text(text: str | None) -> str | None:
    """A provider's text as a database takes it, and a terminal shows it."""
    if text is None:
        return None
    return (text if text.isprintable() else ascii(text)[1:-1])[:_LONGEST_TEXT]


def require_sound(found: Mapping[int, Bill]) -> None:
    """Raise `ValueError` for bills that contradict themselves, or hold numbers that no database takes."""
    for id_, bill in found.items():
        numbers = (bill.cost_micros, bill.tokens_in or 0, bill.tokens_out or 0)
        if not all(0 <= number < _MOST for number in numbers):
            raise ValueError(f"the bill of call {id_} has a number that is none: {bill}")
        if bill.billed is Billed.NO and bill.cost_micros:
            raise ValueError(f"call {id_} is not billed, and costs {bill.cost_micros} micros")


def unknown_bills(connection: sa.Connection, ids: Sequence[int]) -> dict[int, Any]:
    """Call -> account, status, revoked_in and cost of those whose bill is still unknown."""
    columns = (calls.c.id, calls.c.account, calls.c.status, calls.c.revoked_in, bills.c.cost_micros)
    query = sa.select(*columns).join(bills, bills.c.call == calls.c.id)
    query = query.where(bills.c.replaced_in.is_(None), bills.c.billed == Billed.UNKNOWN.value)
    rows = (row for part in lookups(ids) for row in connection.execute(query.where(calls.c.id.in_(part))))
    return {row.id: row for row in rows}
