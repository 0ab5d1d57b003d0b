"""Sessions, each one run of a builder, and their leases: who is alive, and what a reservation belongs to.

A lease is a row with a beat that grows for as long as its session lives. Who sees it stand still takes it away.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import sqlalchemy as sa

from ground.errors import StoreBusy
from storage.ledger_accounts import ACCOUNT, is_of, open_account
from storage.ledger_journal import Append
from storage.ledger_records import Lease, Session
from storage.ledger_tables import accounts, leases, sessions

_COLUMNS = ("store", "location", "purpose", "device", "precision", "outputs")
# Of every batch, so put together once; see `storage.ledger_journal`.
_IS_HOLDER = leases.c.session == sa.bindparam("holder")
_LEASE: sa.Select[Any] = sa.select(leases.c.session).where(_IS_HOLDER)
_LEASEHOLDER: sa.Select[Any] = (
    sa.select(sessions.c.account, sessions.c.precision, accounts.c.name, *(accounts.c[name] for name in ACCOUNT))
    .join(sessions, leases.c.session == sessions.c.id)
    .join(accounts, sessions.c.account == accounts.c.id)
    .where(_IS_HOLDER)
)


def start_session(connection: sa.Connection, append: Append, session: Session) -> int:
    """Record who is about to call, open the teacher's account and a lease, and return the session's number."""
    fields = asdict(session) | {"outputs": ",".join(session.outputs)}
    account = open_account(connection, session.teacher, session.teacher_name)
    number = (connection.execute(sa.select(sa.func.max(sessions.c.id))).scalar() or 0) + 1
    append(connection, "session", {"id": number, **fields})
    columns = {name: fields[name] for name in _COLUMNS}
    connection.execute(sa.insert(sessions).values(id=number, account=account, **columns))
    connection.execute(sa.insert(leases).values(session=number, host=session.host, beat=0))
    return number


def beat(connection: sa.Connection, session: int) -> bool:
    """Show that a session lives; False when its lease was taken away."""
    query = sa.update(leases).where(leases.c.session == session).values(beat=leases.c.beat + 1)
    return connection.execute(query).rowcount == 1


def take_lease(connection: sa.Connection, lease: Lease) -> bool:
    """End a session that stands still at this beat; False when it moved, or somebody else was faster."""
    query = sa.delete(leases).where(leases.c.session == lease.session, leases.c.beat == lease.beat)
    return connection.execute(query).rowcount == 1


def give_lease_back(connection: sa.Connection, session: int) -> None:
    """End a session: what it left unsettled is then anybody's to settle."""
    connection.execute(sa.delete(leases).where(leases.c.session == session))


def holds_lease(connection: sa.Connection, session: int) -> bool:
    """Whether a session's lease is still its own."""
    return connection.execute(_LEASE, {"holder": session}).first() is not None


def all_leases(connection: sa.Connection) -> dict[int, Lease]:
    """The lease of every session that has one."""
    query = sa.select(leases.c.session, sessions.c.store, sessions.c.location, leases.c.host, leases.c.beat)
    rows = connection.execute(query.join(sessions, leases.c.session == sessions.c.id)).all()
    return {row.session: Lease(*row) for row in rows}


def leaseholder(connection: sa.Connection, session: int) -> Any:
    """Account and precision of a session that has its lease; raises `StoreBusy` for one that has not."""
    who = connection.execute(_LEASEHOLDER, {"holder": session}).first()
    if who is None:
        raise lease_lost()
    return who


def lease_lost() -> StoreBusy:
    """The error of a builder that was silent for so long that others took over its calls."""
    return StoreBusy(
        "this build was silent for so long that its lease ended and its calls in hand were given up; run the same "
        "command again to go on"
    )


def store_of_session(connection: sa.Connection, session: int) -> str | None:
    """Id of the store that a session's calls were for; None if there was no such session."""
    return connection.execute(sa.select(sessions.c.store).where(sessions.c.id == session)).scalar()


def locations_of_store(connection: sa.Connection, store: str) -> list[str]:
    """Folders that a store's sessions were in."""
    return list(connection.execute(_LOCATIONS.where(sessions.c.store == store)).scalars())


def locations_of_teacher(connection: sa.Connection, teacher: str) -> list[str]:
    """Folders of all stores that keep a teacher's answers."""
    query = _LOCATIONS.join(accounts, sessions.c.account == accounts.c.id).where(is_of(teacher))
    return list(connection.execute(query).scalars())


_LOCATIONS: sa.Select[Any] = sa.select(sessions.c.location).distinct()
