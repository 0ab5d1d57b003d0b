"""How calls are charged before they are made: all that nobody has paid for yet, or none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from typing import Any

import sqlalchemy as sa

from storage.ledger_accounts import check_account, move_totals
from storage.ledger_calls import find_calls, in_precision
from storage.ledger_chain import reserved_rows_digest
from storage.ledger_journal import Append
from storage.ledger_records import CallRequest, Reservation
from storage.ledger_sessions import leaseholder
from storage.ledger_tables import calls

# Of every batch, so put together once; see `storage.ledger_journal`.
_LAST_CALL: sa.Select[Any] = sa.select(sa.func.max(calls.c.id))
_CHARGE = sa.insert(calls)


def reserve_new(
    connection: sa.Connection, append: Append, session: int, requests: Sequence[CallRequest], upper_micros: int
) -> Reservation:
    """Charge calls on inputs that nobody has paid for.

    Raises:
        IntegrityError: somebody has; the transaction is then to be undone, and `reserve_unknown` asked.
        BudgetRefused: a budget does not allow all of them.
        StoreBusy: the session's lease was taken away.
    """
    who = leaseholder(connection, session)
    return Reservation(_charge(connection, append, session, who, requests, {}, upper_micros), {})


def reserve_unknown(
    connection: sa.Connection,
    append: Append,
    session: int,
    requests: Sequence[CallRequest],
    required: Set[str],
    upper_micros: int,
) -> Reservation:
    """Charge those calls on inputs that nobody has paid for; see `storage.ledger.Ledger.reserve`."""
    who = leaseholder(connection, session)
    paid = find_calls(connection, who.account, [request.input_digest for request in requests])
    known = in_precision(paid, who.precision)
    # An answer that was lost on its way back: the calls are charged, and ours.
    ids = {
        digest: call.id
        for digest, found in known.items()
        for call in found
        if call.session == session and call.status == "reserved"
    }
    answered = {
        digest: answers
        for digest, found in known.items()
        if digest not in ids and (answers := [call for call in found if required <= set(call.outputs)])
    }
    new = [request for request in requests if request.input_digest not in ids.keys() | answered.keys()]
    repeats = {digest: max(call.repeat for call in found) + 1 for digest, found in paid.items()}
    return Reservation(ids | _charge(connection, append, session, who, new, repeats, upper_micros), answered)


def _charge(
    connection: sa.Connection,
    append: Append,
    session: int,
    who: Any,
    requests: Sequence[CallRequest],
    repeats: Mapping[bytes, int],
    upper_micros: int,
) -> dict[bytes, int]:
    if not requests:
        return {}
    check_account(who, len(requests), upper_micros)
    # What costs nothing takes no room for saying so.
    upper = {"upper_micros": upper_micros} if upper_micros else {}
    first = (connection.execute(_LAST_CALL).scalar() or 0) + 1
    rows: list[dict[str, Any]] = [
        {
            "id": first + place,
            "session": session,
            "account": who.account,
            "status": "reserved",
            "input_digest": request.input_digest,
            "repeat": repeats.get(request.input_digest, 0),
            "sample": request.sample,
            "row": request.row,
            "view": request.view,
            **upper,
        }
        for place, request in enumerate(requests)
    ]
    payload = {
        "session": session,
        "first": first,
        "count": len(rows),
        "rows": reserved_rows_digest(
            (row["id"], row["repeat"], row["sample"], row["row"], row["view"], row["input_digest"]) for row in rows
        ),
        **upper,
    }
    seq = append(connection, "reserve", payload)
    connection.execute(_CHARGE, [row | {"reserved_in": seq} for row in rows])
    move_totals(connection, who.account, {"reserved": len(rows), "reserved_micros": len(rows) * upper_micros})
    return {request.input_digest: first + place for place, request in enumerate(requests)}
