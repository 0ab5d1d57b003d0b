"""How reserved calls are settled in the ledger: what an entry says of them, their rows, their bills, the totals.

All of it inside a transaction of `storage/ledger.py`, which has the journal's lock.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import sqlalchemy as sa

from storage.bill import Bill, Billed, FailureKind
from storage.ledger_accounts import move_totals
from storage.ledger_bills import digest_of, insert_bills, settled_bills, unknown_bills, upper_bounds
from storage.ledger_calls import lookups
from storage.ledger_chain import id_ranges, settled_rows_digest
from storage.ledger_journal import Append
from storage.ledger_tables import UNANSWERED, accounts, bills, calls

# Of every batch, so put together once; see `storage.ledger_journal`.
_WHO: sa.Select[Any] = (
    sa.select(calls.c.session, calls.c.account, accounts.c.reserved_micros)
    .join(accounts, calls.c.account == accounts.c.id)
    .where(calls.c.id == sa.bindparam("call"))
)
_SETTLE = (
    sa.update(calls)
    .where(calls.c.id == sa.bindparam("call"), calls.c.status == "reserved")
    .values(status=sa.bindparam("became"), settled_in=sa.bindparam("seq"), output_digest=sa.bindparam("digest"))
)
_NUM_SETTLED: sa.Select[Any] = sa.select(sa.func.count()).where(
    calls.c.id.between(sa.bindparam("first"), sa.bindparam("last")), calls.c.settled_in == sa.bindparam("seq")
)


class SettledBeforeError(Exception):
    """Some of these calls are not reserved any more."""


# Kind of an entry -> what the calls are that it settled.
SETTLED_STATUS = {"commit": "committed", "lose": "lost", "return": "returned"}


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of calls that one entry settles.

    Args:
        answers: call -> digests of its outputs, or None.
        details: of the entry.
    """

    kind: str
    answers: Mapping[int, bytes | None]
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def status(self) -> str:
        """What its calls are from then on."""
        return SETTLED_STATUS[self.kind]

    @property
    def failure(self) -> FailureKind | None:
        """How those without a bill failed."""
        return None if self.kind == "commit" else FailureKind.UNKNOWN

    def still_reserved(self, connection: sa.Connection) -> Outcome:
        """The same for those that nobody settled before."""
        return replace(self, answers=_reserved_only(connection, self.answers))


def settle(connection: sa.Connection, append: Append, outcome: Outcome, bills: Mapping[int, Bill]) -> int:
    """Settle reserved calls of one session, with one entry; returns how many.

    Args:
        append: of an entry to the journal.
        bills: of some of them, and of others.

    Raises:
        SettledBeforeError: one of them is not reserved any more; the transaction is then to be undone.
    """
    settled = sorted(outcome.answers.items())
    ids = [id_ for id_, _ in settled]
    session, account, reserved_micros = connection.execute(_WHO, {"call": ids[0]}).one()
    uppers = upper_bounds(connection, ids) if reserved_micros else {}
    written = settled_bills(ids, bills, uppers, outcome.failure)
    payload = {
        "session": session,
        "calls": id_ranges(ids),
        "rows": settled_rows_digest(settled),
        **outcome.details,
        **({"bills": digest_of(written)} if written else {}),
    }
    seq = append(connection, outcome.kind, payload)
    became = {"became": outcome.status, "seq": seq}
    connection.execute(_SETTLE, [{"call": id_, "digest": digest, **became} for id_, digest in settled])
    changed = connection.execute(_NUM_SETTLED, {"first": ids[0], "last": ids[-1], "seq": seq})
    if changed.scalar_one() != len(ids):
        raise SettledBeforeError
    insert_bills(connection, written, seq)
    cost = sum(bill.cost_micros for bill in written.values())
    counts = {"reserved": -len(ids), outcome.status: len(ids)}
    move_totals(connection, account, counts | {"reserved_micros": -sum(uppers.values()), "spent_micros": cost})
    return len(ids)


def settle_unknown(connection: sa.Connection, append: Append, decided: Mapping[int, Bill], source: str) -> int:
    """Give calls whose bill is unknown another one, with one entry; returns how many.

    Args:
        decided: call -> its bill; those that are not unknown are left as they are.
        source: see `storage.ledger.Ledger.settle_unknown`.
    """
    found = unknown_bills(connection, sorted(decided))
    if not found:
        return 0
    written = {id_: decided[id_] for id_ in sorted(found)}
    returned = [
        id_
        for id_, bill in written.items()
        if bill.billed is Billed.NO and (found[id_].status, found[id_].revoked_in) == ("lost", None)
    ]
    payload = {
        "calls": id_ranges(list(written)),
        "returned": id_ranges(returned),
        "bills": digest_of(written),
        "source": source,
    }
    seq = append(connection, "settle", payload)
    _replace_bills(connection, list(written), seq)
    insert_bills(connection, written, seq)
    _give_back(connection, returned)
    for account in {row.account for row in found.values()}:
        ours = [id_ for id_, row in found.items() if row.account == account]
        given_back = len(set(returned).intersection(ours))
        cost = sum(written[id_].cost_micros - found[id_].cost_micros for id_ in ours)
        move_totals(connection, account, {"lost": -given_back, "returned": given_back, "spent_micros": cost})
    return len(written)


def revoke(connection: sa.Connection, append: Append, ids: Sequence[int]) -> int:
    """Mark committed calls of one teacher lost, with one entry; returns how many."""
    query = sa.select(calls.c.id, calls.c.account).where(calls.c.status == "committed").order_by(calls.c.id)
    found = [row for part in lookups(sorted(ids)) for row in connection.execute(query.where(calls.c.id.in_(part)))]
    if not found:
        return 0
    seq = append(connection, "revoke", {"calls": id_ranges([row.id for row in found])})
    connection.execute(
        sa.update(calls).where(calls.c.id == sa.bindparam("call")).values(status="lost", revoked_in=seq),
        [{"call": row.id} for row in found],
    )
    move_totals(connection, found[0].account, {"committed": -len(found), "lost": len(found)})
    return len(found)


def are_given_up(connection: sa.Connection, ids: Sequence[int]) -> bool:
    """Whether any of these calls is settled without an answer."""
    query = sa.select(calls.c.id).where(calls.c.status.in_(UNANSWERED))
    return any(connection.execute(query.where(calls.c.id.in_(part))).first() is not None for part in lookups(ids))


def _reserved_only(connection: sa.Connection, answers: Mapping[int, bytes | None]) -> dict[int, bytes | None]:
    reserved: dict[int, bytes | None] = {}
    for part in lookups(sorted(answers)):
        query = sa.select(calls.c.id).where(calls.c.id.in_(part), calls.c.status == "reserved")
        reserved |= {id_: answers[id_] for id_ in connection.execute(query).scalars()}
    return reserved


def _replace_bills(connection: sa.Connection, ids: Sequence[int], seq: int) -> None:
    """Say of the bills of calls that a later entry has another."""
    for part in lookups(ids):
        in_force = sa.and_(bills.c.call.in_(part), bills.c.replaced_in.is_(None))
        connection.execute(sa.update(bills).where(in_force).values(replaced_in=seq))


def _give_back(connection: sa.Connection, ids: Sequence[int]) -> None:
    for part in lookups(ids):
        connection.execute(sa.update(calls).where(calls.c.id.in_(part)).values(status="returned"))
