"""Accounts of teachers: running totals of their calls and money, and the budgets that no charge may pass.

Totals are moved in the transaction that moves the calls, so neither a summary nor a charge ever counts them.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import sqlalchemy as sa

from ground.errors import BudgetRefused
from storage.ledger_journal import Append, newest
from storage.ledger_migrations import Tables
from storage.ledger_records import Summary
from storage.ledger_tables import accounts
from storage.price import shown_micros

_COUNTS = ("committed", "reserved", "lost")
# Columns that `check_account` reads.
ACCOUNT = (*_COUNTS, "budget", "spent_micros", "reserved_micros", "budget_micros")


def is_of(teacher: str) -> sa.ColumnElement[bool]:
    """The account of the teacher with this fingerprint."""
    condition: sa.ColumnElement[bool] = accounts.c.teacher == teacher
    return condition


def account_of(connection: sa.Connection, teacher: str) -> int | None:
    """Number of a teacher's account, if there is one."""
    return connection.execute(sa.select(accounts.c.id).where(is_of(teacher))).scalar()


def open_account(connection: sa.Connection, teacher: str, name: str) -> int:
    """Number of a teacher's account, which is made if there is none."""
    found = account_of(connection, teacher)
    if found is not None:
        return found
    number = (connection.execute(sa.select(sa.func.max(accounts.c.id))).scalar() or 0) + 1
    zero = dict.fromkeys(_COUNTS, 0)
    connection.execute(sa.insert(accounts).values(id=number, teacher=teacher, name=name, **zero))
    return number


def names_of_teachers(connection: sa.Connection) -> dict[str, str]:
    """Fingerprint -> name of every teacher, in the order in which their accounts were opened."""
    query: sa.Select[Any] = sa.select(accounts.c.teacher, accounts.c.name).order_by(accounts.c.id)
    return dict(connection.execute(query).all())


def summary_of(connection: sa.Connection, tables: Tables, teacher: str | None) -> Summary:
    """Totals over one teacher, or over all; the budgets of several teachers are None."""
    table = tables.accounts
    query = sa.select(table)
    if teacher is not None:
        query = query.where(table.c.teacher == teacher)
    rows, (_, head) = connection.execute(query).all(), newest(connection)
    names = (*_COUNTS, "returned", "spent_micros", "reserved_micros")
    committed, reserved, lost, returned, cost, reserved_cost = (
        sum(getattr(row, name) for row in rows) for name in names
    )
    spent = committed + reserved + lost
    budget, most = (rows[0].budget, rows[0].budget_micros) if len(rows) == 1 else (None, None)
    return Summary(
        committed,
        reserved,
        lost,
        spent,
        budget,
        None if budget is None else budget - spent,
        head,
        returned=returned,
        cost_micros=cost,
        reserved_micros=reserved_cost,
        budget_micros=most,
        remaining_micros=None if most is None else most - cost - reserved_cost,
    )


def move_totals(connection: sa.Connection, account: int, changes: Mapping[str, int]) -> None:
    """Change running totals of an account, by their names."""
    by = {f"by_{name}": change for name, change in changes.items() if change}
    if by:
        names = tuple(name for name, change in changes.items() if change)
        connection.execute(_moving(names), {"account": account, **by})


@cache
def _moving(names: tuple[str, ...]) -> sa.Update:
    """A statement is put together once; see `storage.ledger_journal`."""
    values = {name: accounts.c[name] + sa.bindparam(f"by_{name}") for name in names}
    return sa.update(accounts).where(accounts.c.id == sa.bindparam("account")).values(values)


def set_budget(
    connection: sa.Connection, append: Append, teacher: str, name: str, budget: int | None, cost_micros: int | None
) -> None:
    """Set the most calls, and the most money, that may ever be spent on a teacher; see `storage.ledger.Ledger`."""
    open_account(connection, teacher, name)
    account = connection.execute(sa.select(accounts).where(is_of(teacher))).one()
    _require_above_spent(account, budget, cost_micros)
    limit = account.budget if budget is None else budget
    most = account.budget_micros if cost_micros is None else cost_micros
    if (account.budget, account.budget_micros) == (limit, most):
        return
    payload = {"teacher": teacher, "name": account.name, "from": account.budget, "to": limit}
    if account.budget_micros != most:
        payload |= {"from_micros": account.budget_micros, "to_micros": most}
    append(connection, "budget", payload)
    connection.execute(sa.update(accounts).where(is_of(teacher)).values(budget=limit, budget_micros=most))


def check_budget(name: str, *, spent: int, budget: int | None, wanted: int) -> None:
    """Raise `BudgetRefused` when `wanted` more calls of a teacher would pass its budget."""
    if budget is not None and spent + wanted > budget:
        raise BudgetRefused(
            f"asked for {wanted} calls of {name}, {spent} are already paid and {budget - spent} of the budget of "
            f"{budget} remain; ask for fewer, with a smaller --n, or raise it, with: --budget {spent + wanted}"
        )


def check_cost_budget(
    name: str, *, paid_micros: int, budget_micros: int | None, wanted: int, upper_micros: int
) -> None:
    """Raise `BudgetRefused` when `wanted` more calls of a teacher could pass its budget in money.

    Args:
        paid_micros: what settled calls cost, and reserved ones do at most.
        upper_micros: what each of those that are wanted costs at most.
    """
    cost = wanted * upper_micros
    if budget_micros is not None and cost and paid_micros + cost > budget_micros:
        raise BudgetRefused(
            f"asked for {wanted} calls of {name}, which cost up to {shown_micros(cost)} ({shown_micros(upper_micros)} "
            f"each); {shown_micros(paid_micros)} is already paid and {shown_micros(budget_micros - paid_micros)} of "
            f"the budget of {shown_micros(budget_micros)} remains; ask for fewer, with a smaller --n, or raise it, "
            f"with: --budget-cost {shown_micros(paid_micros + cost)}"
        )


def check_account(account: Any, wanted: int, upper_micros: int) -> None:
    """Raise `BudgetRefused` when more calls would pass either budget of an account, a row of `ACCOUNT` and its name."""
    check_budget(account.name, spent=_spent(account), budget=account.budget, wanted=wanted)
    most = account.budget_micros
    check_cost_budget(
        account.name, paid_micros=_paid(account), budget_micros=most, wanted=wanted, upper_micros=upper_micros
    )


def _require_above_spent(account: Any, budget: int | None, budget_micros: int | None) -> None:
    spent, paid = _spent(account), _paid(account)
    if budget is not None and budget < spent:
        raise BudgetRefused(
            f"a budget of {budget} calls is below the {spent} already spent on {account.name}; give {spent} or more"
        )
    if budget_micros is not None and budget_micros < paid:
        raise BudgetRefused(
            f"a budget of {shown_micros(budget_micros)} is below the {shown_micros(paid)} already paid for "
            f"{account.name}; give {shown_micros(paid)} or more"
        )


def _spent(account: Any) -> int:
    return int(account.committed + account.reserved + account.lost)


def _paid(account: Any) -> int:
    return int(account.spent_micros + account.reserved_micros)
