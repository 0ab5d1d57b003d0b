"""What was spent, by teacher, by day or by model: attempts, how they ended, tokens, and what they cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from storage.ledger import Ledger
from storage.ledger_tables import accounts, calls, entries

DAY, MODEL = "day", "model"
STATUSES = ("committed", "reserved", "lost", "returned")


@dataclass(slots=True)
class Spending:
    """What some attempts came to.

    Args:
        committed, reserved, lost, returned: attempts by what became of them.
        billed: of how many a bill is known, by what it says: yes, no, unknown.
        failures: kind of failure -> attempts. A refusal is committed, and a failure.
        tokens_in, tokens_out: as far as providers counted them.
        cost_micros: of settled ones; what is unknown at its upper bound.
    """

    committed: int = 0
    reserved: int = 0
    lost: int = 0
    returned: int = 0
    billed: dict[str, int] = field(default_factory=dict)
    failures: dict[str, int] = field(default_factory=dict)
    tokens_in: int = 0
    tokens_out: int = 0
    cost_micros: int = 0

    @property
    def calls(self) -> int:
        """Those that are spent: as in `storage.ledger_records.Summary`."""
        return self.committed + self.reserved + self.lost

    @property
    def attempts(self) -> int:
        """All that were ever charged."""
        return self.calls + self.returned

    def add(self, row: Any) -> None:
        """Count attempts that are alike."""
        setattr(self, row.status, getattr(self, row.status) + row.attempts)
        for counts, name in ((self.billed, row.billed), (self.failures, row.failure)):
            if name is not None:
                counts[name] = counts.get(name, 0) + row.attempts
        # A server's sums of large numbers are decimals.
        self.tokens_in += int(row.tokens_in or 0)
        self.tokens_out += int(row.tokens_out or 0)
        self.cost_micros += int(row.cost_micros or 0)


def total_of(found: Iterable[Spending]) -> Spending:
    """The sum of several."""
    total = Spending()
    for each in found:
        for name in (*STATUSES, "tokens_in", "tokens_out", "cost_micros"):
            setattr(total, name, getattr(total, name) + getattr(each, name))
        total.billed = dict(Counter(total.billed) + Counter(each.billed))
        total.failures = dict(Counter(total.failures) + Counter(each.failures))
    return total


def spending_of_teachers(ledger: Ledger) -> dict[str, Spending]:
    """Teacher's fingerprint -> what was spent on it, of attempts that have a bill; local ones have none."""
    found: dict[str, Spending] = {}
    for row in _alike(ledger, accounts.c.teacher, billed=True):
        found.setdefault(row.key, Spending()).add(row)
    return found


def spending_by(ledger: Ledger, what: str) -> dict[str, Spending]:
    """Day, or model, -> what was spent, in order.

    Args:
        what: `DAY`, in UTC, of the reservation; or `MODEL`, as the provider resolved it, and the teacher's name where
            no bill names one.
    """
    bills = ledger.tables.bills
    keys: dict[str, sa.ColumnElement[str]] = {
        DAY: sa.func.substr(entries.c.at, 1, 10),
        MODEL: sa.func.coalesce(bills.c.model, accounts.c.name),
    }
    found: dict[str, Spending] = {}
    for row in sorted(_alike(ledger, keys[what], billed=False), key=lambda row: str(row.key)):
        found.setdefault(row.key, Spending()).add(row)
    return found


def _alike(ledger: Ledger, key: sa.ColumnElement[str], *, billed: bool) -> Iterator[Any]:
    """Attempts counted by a key, status, and what their bills say.

    Args:
        billed: only those that have a bill, which does not look at others.
    """
    bills = ledger.tables.bills
    kinds = (key.label("key"), calls.c.status, bills.c.billed, bills.c.failure)
    sums = (sa.func.sum(bills.c[name]).label(name) for name in ("tokens_in", "tokens_out", "cost_micros"))
    query = (
        sa.select(*kinds, sa.func.count().label("attempts"), *sums)
        .select_from(calls)
        .join(accounts, calls.c.account == accounts.c.id)
        .join(entries, calls.c.reserved_in == entries.c.seq)
        .join(bills, sa.and_(bills.c.call == calls.c.id, bills.c.replaced_in.is_(None)), isouter=not billed)
        .where(calls.c.status.in_(STATUSES))
        .group_by(*kinds)
    )
    with ledger.reading() as connection:
        yield from connection.execute(query).all()
