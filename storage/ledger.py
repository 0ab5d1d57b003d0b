"""The call ledger: one row per image shown to the teacher, and a hash chain over all that was ever recorded.

A call is reserved, which debits the budget, before the teacher runs; it is committed when its outputs are on the
disk, or marked lost when a crash came in between. So spent = committed + reserved + lost can overcount the
teacher's forwards by the batch in hand, and never undercounts them. Nothing is ever deleted. The tables are in
`storage/ledger_tables.py`; `storage/ledger_check.py` recomputes the chain.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from storage.database import make_engine, parse_url, sqlite_path
from storage.errors import BudgetRefused, InvalidInput, StoreUnreadable
from storage.ledger_chain import GENESIS, entry_hash, id_ranges, reserved_rows_digest, settled_rows_digest
from storage.ledger_tables import accounts, calls, entries, metadata, sessions

SCHEMA_VERSION = 1
_LOOKUP_SIZE = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """Who calls, and how: constant during one run of a builder.

    Args:
        teacher: fingerprint, 64 hex digits.
        teacher_name: architecture, for people.
        store: id of the store that keeps the outputs.
        location: absolute folder of that store, so that other builds can copy from it.
        purpose: what the calls are for.
        device, precision: where and in which number format the teacher runs.
        outputs: names of what is kept of each call.
    """

    teacher: str
    teacher_name: str
    store: str
    location: str
    purpose: str
    device: str
    precision: str
    outputs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class CallRequest:
    """One call about to be made: which input, and where its outputs will go."""

    input_digest: bytes
    sample: int
    row: int
    view: int


@dataclass(frozen=True, slots=True)
class RecordedCall:
    """What the ledger knows of a call."""

    id: int
    store: str
    location: str
    input_digest: bytes
    row: int
    view: int
    status: str
    output_digest: bytes | None


@dataclass(frozen=True, slots=True)
class Summary:
    """Totals of one teacher, or of all: every count is in teacher calls."""

    committed: int
    reserved: int
    lost: int
    spent: int
    budget: int | None
    remaining: int | None
    head: str


class Ledger:
    """A ledger at a database URL; every change is one transaction and one chained entry.

    Args:
        url: an SQLAlchemy URL, or the path of an SQLite file.
        create: make the tables if they are not there; otherwise a missing ledger is an error.

    Raises:
        StoreUnreadable: there is no ledger at `url`, or it cannot be read.
    """

    def __init__(self, url: str | Path, *, create: bool = False) -> None:
        self.url = parse_url(url)
        self.shown_url = self.url.render_as_string(hide_password=True)
        path = sqlite_path(self.url)
        if path is not None and not create and not path.is_file():
            raise StoreUnreadable(f"there is no ledger at {path}; build a store first with: ckd-cache build")
        self._engine = make_engine(self.url, create=create)
        with self._readable():
            if create:
                self._create_tables()
            self._check_version()

    def close(self) -> None:
        """Release the database; an SQLite ledger is then a single file again."""
        self._engine.dispose()

    # Reading

    def head(self) -> str:
        """Hash of the newest entry: it stands for everything recorded so far."""
        with self.reading() as connection:
            return _head(connection)[1]

    def require_entry(self, hash_: str, store: Path) -> None:
        """Raise `StoreUnreadable` unless an entry has this hash: a ledger that lacks it is not the store's own."""
        with self.reading() as connection:
            if connection.execute(sa.select(entries.c.seq).where(entries.c.hash == hash_)).first() is None:
                raise StoreUnreadable(
                    f"the ledger at {self.shown_url} lacks entry {hash_[:12]} that {store} was built with: it was "
                    "replaced or rolled back; bring back the right one"
                )

    def summary(self, teacher: str | None = None) -> Summary:
        """Totals over one teacher, or over all; the budget of several teachers is None."""
        query = sa.select(accounts)
        if teacher is not None:
            query = query.where(accounts.c.teacher == teacher)
        with self.reading() as connection:
            rows = connection.execute(query).all()
            head = _head(connection)[1]
        committed, reserved, lost = (sum(getattr(row, name) for row in rows) for name in _COUNTS)
        spent = committed + reserved + lost
        budget = rows[0].budget if len(rows) == 1 else None
        remaining = None if budget is None else budget - spent
        return Summary(committed, reserved, lost, spent, budget, remaining, head)

    def teachers(self) -> dict[str, str]:
        """Fingerprint -> name of every teacher in the ledger."""
        with self.reading() as connection:
            return dict(connection.execute(sa.select(accounts.c.teacher, accounts.c.name)).all())

    def known_calls(self, teacher: str, digests: Sequence[bytes]) -> dict[bytes, RecordedCall]:
        """Calls to `teacher` on these inputs that are paid for and not lost."""
        found = {}
        with self.reading() as connection:
            for first in range(0, len(digests), _LOOKUP_SIZE):
                query = _recorded().where(
                    calls.c.teacher == teacher,
                    calls.c.status != "lost",
                    calls.c.input_digest.in_(digests[first : first + _LOOKUP_SIZE]),
                )
                found.update({row.input_digest: RecordedCall(*row) for row in connection.execute(query)})
        return found

    def calls_of_store(self, store: str, status: str) -> list[RecordedCall]:
        """Calls with this status whose outputs belong to a store, in order of their ids."""
        query = _recorded().where(sessions.c.store == store, calls.c.status == status).order_by(calls.c.id)
        with self.reading() as connection:
            return [RecordedCall(*row) for row in connection.execute(query)]

    def list_calls(
        self, *, status: str | None = None, limit: int | None = None, offset: int = 0
    ) -> Iterator[dict[str, Any]]:
        """Calls in order, one flat dict each, for printing and export."""
        query = _listing().order_by(calls.c.id).offset(offset)
        if status is not None:
            query = query.where(calls.c.status == status)
        if limit is not None:
            query = query.limit(limit)
        with self.reading() as connection:
            for row in connection.execution_options(stream_results=True).execute(query).mappings():
                yield {name: value.hex() if isinstance(value, bytes) else value for name, value in row.items()}

    # Recording

    def start_session(self, session: Session) -> str:
        """Record who is about to call, open the teacher's account, and return the session's id."""
        session_id = uuid.uuid4().hex
        fields = {**asdict(session), "outputs": ",".join(session.outputs)}
        with self._recording() as connection:
            _open_account(connection, session.teacher, session.teacher_name)
            _append(connection, "session", {"id": session_id, **fields})
            connection.execute(sa.insert(sessions).values(id=session_id, **fields))
        return session_id

    def set_budget(self, teacher: str, name: str, budget: int, wanted: int = 0) -> None:
        """Set the most calls that may ever be spent on a teacher; an unchanged budget records nothing.

        Args:
            wanted: calls about to be made, which the budget must leave room for.

        Raises:
            BudgetRefused: more than that is already spent or wanted; nothing is changed.
        """
        with self._recording() as connection:
            _open_account(connection, teacher, name)
            account = _account(connection, teacher)
            spent = account.committed + account.reserved + account.lost
            if budget < spent:
                raise BudgetRefused(
                    f"a budget of {budget} calls is below the {spent} already spent on {name}; give {spent} or more"
                )
            check_budget(name, spent=spent, budget=budget, wanted=wanted)
            if account.budget == budget:
                return
            _append(connection, "budget", {"teacher": teacher, "from": account.budget, "to": budget})
            connection.execute(sa.update(accounts).where(_is(teacher)).values(budget=budget))

    def require_budget(self, teacher: str, wanted: int) -> None:
        """Raise `BudgetRefused` now if `wanted` more calls could not all be reserved."""
        with self.reading() as connection:
            account = connection.execute(sa.select(accounts).where(_is(teacher))).first()
        if account is not None:
            _check_account(account, wanted)

    def reserve(self, session_id: str, requests: Sequence[CallRequest]) -> list[int]:
        """Charge calls before they are made, all or none.

        Returns:
            The ids of the calls, in the order of `requests`.

        Raises:
            BudgetRefused: the budget does not allow them all; nothing is charged.
            InvalidInput: an input was already paid for; nothing is charged.
        """
        with self._recording() as connection:
            teacher = connection.execute(sa.select(sessions.c.teacher).where(sessions.c.id == session_id)).scalar_one()
            _check_account(_account(connection, teacher), len(requests))
            first = (connection.execute(sa.select(sa.func.max(calls.c.id))).scalar() or 0) + 1
            ids = list(range(first, first + len(requests)))
            payload = {
                "session": session_id,
                "first": first,
                "count": len(ids),
                "rows": reserved_rows_digest(
                    (id_, request.sample, request.row, request.view, request.input_digest)
                    for id_, request in zip(ids, requests, strict=True)
                ),
            }
            seq = _append(connection, "reserve", payload)
            rows = [
                {
                    "id": id_,
                    "session": session_id,
                    "teacher": teacher,
                    "status": "reserved",
                    "reserved_in": seq,
                }
                | {name: getattr(request, name) for name in ("input_digest", "sample", "row", "view")}
                for id_, request in zip(ids, requests, strict=True)
            ]
            try:
                connection.execute(sa.insert(calls), rows)
            except sa.exc.IntegrityError as error:
                raise InvalidInput(
                    "a call in this batch is already paid for by another build that shares the ledger; "
                    "run the same command again to use its outputs"
                ) from error
            _move(connection, teacher, {"reserved": len(ids)})
        return ids

    def commit(self, ids: Sequence[int], output_digests: Sequence[bytes]) -> None:
        """Record that the outputs of reserved calls are on the disk."""
        self._settle("committed", list(zip(ids, output_digests, strict=True)))

    def lose(self, ids: Sequence[int]) -> None:
        """Record that reserved calls left no whole outputs: they stay spent."""
        self._settle("lost", [(id_, None) for id_ in ids])

    def _settle(self, status: str, settled: list[tuple[int, bytes | None]]) -> None:
        if not settled:
            return
        settled.sort()
        ids = [id_ for id_, _ in settled]
        with self._recording() as connection:
            teacher = connection.execute(sa.select(calls.c.teacher).where(calls.c.id == ids[0])).scalar_one()
            payload = {"calls": id_ranges(ids), "rows": settled_rows_digest(settled)}
            seq = _append(connection, _ENTRY_KIND[status], payload)
            connection.execute(
                sa.update(calls)
                .where(calls.c.id == sa.bindparam("call"), calls.c.status == "reserved")
                .values(status=status, settled_in=seq, output_digest=sa.bindparam("digest")),
                [{"call": id_, "digest": digest} for id_, digest in settled],
            )
            changed = sa.select(sa.func.count()).where(calls.c.id.between(ids[0], ids[-1]), calls.c.settled_in == seq)
            assert connection.execute(changed).scalar_one() == len(ids), "only reserved calls can be settled"
            _move(connection, teacher, {"reserved": -len(ids), status: len(ids)})

    # The database

    @contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """A connection that sees one consistent state."""
        with self._readable(), self._engine.connect() as connection:
            yield connection

    @contextmanager
    def _recording(self) -> Iterator[sa.Connection]:
        """One transaction at a time, from any process: the chain has one newest entry."""
        engine = self._engine.execution_options(writes=True)
        with self._readable(), engine.begin() as connection:
            if connection.dialect.name == "postgresql":
                connection.execute(sa.text("LOCK TABLE entries IN EXCLUSIVE MODE"))
            yield connection

    @contextmanager
    def _readable(self) -> Iterator[None]:
        try:
            yield
        except (sa.exc.DatabaseError, sa.exc.InterfaceError) as error:
            raise StoreUnreadable(
                f"the ledger at {self.shown_url} cannot be used ({error.orig}); nothing was charged by this step"
            ) from error

    def _create_tables(self) -> None:
        metadata.create_all(self._engine)
        with self._recording() as connection:
            if _head(connection)[0] == 0:
                _append(connection, "genesis", {"schema": SCHEMA_VERSION})

    def _check_version(self) -> None:
        with self.reading() as connection:
            first = connection.execute(sa.select(entries.c.payload).where(entries.c.seq == 1)).scalar()
        if first is None or json.loads(first).get("schema") != SCHEMA_VERSION:
            raise StoreUnreadable(
                f"the ledger at {self.shown_url} is not of version {SCHEMA_VERSION}; use the release that made it"
            )


_COUNTS = ("committed", "reserved", "lost")
_ENTRY_KIND = {"committed": "commit", "lost": "lose"}


def check_budget(name: str, *, spent: int, budget: int | None, wanted: int) -> None:
    """Raise `BudgetRefused` when `wanted` more calls of a teacher would pass its budget."""
    if budget is not None and spent + wanted > budget:
        raise BudgetRefused(
            f"asked for {wanted} calls of {name}, {spent} are already paid and {budget - spent} of the budget of "
            f"{budget} remain; lower --n or raise --budget to {spent + wanted}"
        )


def _check_account(account: Any, wanted: int) -> None:
    spent = account.committed + account.reserved + account.lost
    check_budget(account.name, spent=spent, budget=account.budget, wanted=wanted)


def _recorded() -> sa.Select[Any]:
    columns = (calls.c.input_digest, calls.c.row, calls.c.view, calls.c.status, calls.c.output_digest)
    where = (sessions.c.store, sessions.c.location)
    return sa.select(calls.c.id, *where, *columns).join(sessions, calls.c.session == sessions.c.id)


def _listing() -> sa.Select[Any]:
    reserved, settled = entries.alias("reserved"), entries.alias("settled")
    return (
        sa.select(
            calls.c.id,
            calls.c.status,
            sessions.c.teacher_name.label("teacher"),
            calls.c.teacher.label("fingerprint"),
            sessions.c.purpose,
            calls.c.sample,
            calls.c.row,
            calls.c.view,
            calls.c.session.label("run"),
            sessions.c.store,
            sessions.c.device,
            sessions.c.precision,
            sessions.c.outputs,
            reserved.c.at.label("reserved_at"),
            settled.c.at.label("settled_at"),
            calls.c.input_digest,
            calls.c.output_digest,
            reserved.c.hash.label("entry_hash"),
        )
        .join(sessions, calls.c.session == sessions.c.id)
        .join(reserved, calls.c.reserved_in == reserved.c.seq)
        .outerjoin(settled, calls.c.settled_in == settled.c.seq)
    )


def _head(connection: sa.Connection) -> tuple[int, str]:
    query = sa.select(entries.c.seq, entries.c.hash).order_by(entries.c.seq.desc()).limit(1)
    row = connection.execute(query).first()
    return (0, GENESIS) if row is None else (row.seq, row.hash)


def _append(connection: sa.Connection, kind: str, content: Mapping[str, Any]) -> int:
    seq, previous = _head(connection)
    seq += 1
    at = datetime.now(UTC).isoformat(timespec="milliseconds")
    payload = json.dumps(content, sort_keys=True, separators=(",", ":"))
    connection.execute(
        sa.insert(entries).values(
            seq=seq,
            kind=kind,
            at=at,
            payload=payload,
            previous=previous,
            hash=entry_hash(seq, kind, at, payload, previous),
        )
    )
    return seq


def _is(teacher: str) -> sa.ColumnElement[bool]:
    return accounts.c.teacher == teacher


def _account(connection: sa.Connection, teacher: str) -> Any:
    return connection.execute(sa.select(accounts).where(_is(teacher))).one()


def _open_account(connection: sa.Connection, teacher: str, name: str) -> None:
    if connection.execute(sa.select(accounts.c.teacher).where(_is(teacher))).first() is None:
        connection.execute(sa.insert(accounts).values(teacher=teacher, name=name, reserved=0, committed=0, lost=0))


def _move(connection: sa.Connection, teacher: str, changes: Mapping[str, int]) -> None:
    values = {name: accounts.c[name] + change for name, change in changes.items()}
    connection.execute(sa.update(accounts).where(_is(teacher)).values(values))
