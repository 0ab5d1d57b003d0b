"""What builders of a store paid for since some moment, those that died included: as the ledger has it."""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa

from storage.ledger import Ledger
from storage.ledger_tables import bills, calls, sessions


@dataclass(frozen=True, slots=True)
class Paid:
    """Answers that are in the store's ledger, and what all attempts cost."""

    calls: int
    micros: int


def newest_session(ledger: Ledger) -> int:
    """Number of the session that was begun last; 0 where none was."""
    with ledger.reading() as connection:
        return int(connection.execute(sa.select(sa.func.max(sessions.c.id))).scalar() or 0)


def paid_since(ledger: Ledger, store: str, session: int) -> Paid:
    """What sessions of a store that were begun after another one paid for, whoever committed it in the end."""
    ours = sa.select(sessions.c.id).where(sessions.c.store == store, sessions.c.id > session)
    with ledger.reading() as connection:
        answered = sa.select(sa.func.count()).where(calls.c.session.in_(ours), calls.c.status == "committed")
        cost = (
            sa.select(sa.func.sum(bills.c.cost_micros))
            .join(calls, calls.c.id == bills.c.call)
            .where(calls.c.session.in_(ours), bills.c.replaced_in.is_(None))
        )
        return Paid(int(connection.execute(answered).scalar_one()), int(connection.execute(cost).scalar() or 0))
