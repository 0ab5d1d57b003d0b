"""The call ledger: one row per image shown to the teacher, and a hash chain over all that was ever recorded.

A call is reserved, which debits the budget, before the teacher runs; it is committed when its outputs are on the
disk, or marked lost when a crash came in between. So spent = committed + reserved + lost can overcount the
teacher's forwards by the batch in hand, and never undercounts them. An attempt that nobody bills is returned: charged,
and then given back. Money goes the same way, in micros: reserved at an upper bound, settled at what the bill says.
Nothing is ever deleted. The protocol is in docs/ledger.md; the tables are in `storage/ledger_tables.py`, older ones in
`storage/ledger_migrations.py`, what is recorded in `storage/ledger_records.py` and `storage/ledger_bills.py`, how calls
are settled in `storage/ledger_settling.py`; `storage/ledger_report.py` reads it for people, and
`storage/ledger_check.py` recomputes the chain.

A reservation belongs to a *session*, one run of a builder, and is good for as long as the session's lease is: a
heartbeat that others watch. Who sees it stand still takes the lease away and settles what the session left.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Mapping, Sequence, Set
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

import sqlalchemy as sa

from ground.errors import BudgetRefused, InvalidInput, OlderFormat, StoreBusy, StoreUnreadable, suggested
from storage.bill import Bill, Billed
from storage.database import Database, parse_url, sqlite_path
from storage.ledger_bills import require_sound
from storage.ledger_chain import GENESIS, KEY_VARIABLE, Seal, id_ranges, reserved_rows_digest
from storage.ledger_migrations import OLDEST_SCHEMA, SCHEMA_VERSION, Tables, bring_forward, tables_of
from storage.ledger_records import (
    CallRequest,
    Lease,
    RecordedCall,
    Reservation,
    Session,
    Summary,
    find_calls,
    in_precision,
    lookups,
    read_calls,
    select_calls,
)
from storage.ledger_schema import Schema, look_at_schema
from storage.ledger_settling import Outcome, SettledBeforeError, move_totals, settle, settle_unknown
from storage.ledger_tables import UNANSWERED, accounts, calls, entries, leases, metadata, sessions
from storage.price import shown_micros

log = logging.getLogger(__name__)

_HASH = re.compile(r"[0-9a-f]{64}")
_COUNTS = ("committed", "reserved", "lost")
_ACCOUNT = (*_COUNTS, "budget", "spent_micros", "reserved_micros", "budget_micros")
_SESSION_COLUMNS = ("store", "location", "purpose", "device", "precision", "outputs")

_Result = TypeVar("_Result")


class Ledger:
    """A ledger at a database URL; every change is one transaction and one chained entry.

    With a key in `CKD_LEDGER_KEY`, a new ledger is sealed with it. Recording and checking need the right key, or none;
    reading needs no key.

    Args:
        url: an SQLAlchemy URL, or the path of an SQLite file.
        create: make the tables if they are not there; otherwise a missing ledger is an error.
        patience_seconds: how long to wait for a server that went away.
        store: folder of the store whose own ledger it is, for the remedy that a message names.

    Raises:
        StoreUnreadable: there is no ledger at `url`, it cannot be read, or something else is there: nothing is then
            made in it.
    """

    def __init__(
        self, url: str | Path, *, create: bool = False, patience_seconds: float = 0.0, store: Path | None = None
    ) -> None:
        self._database = Database(url, create=create, patience_seconds=patience_seconds)
        self.shown_url = self._database.shown_url
        self.seal = Seal.from_environment()
        self._store = store
        try:
            self._look(self._open(create))
            self._key_problem = self._check_genesis()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Release the database; an SQLite ledger is then a single file again."""
        self._database.close()

    def require_key(self) -> None:
        """Raise `InvalidInput` when the ledger is not sealed with the key that is set, or with one that is not."""
        if self._key_problem is not None:
            raise InvalidInput(self._key_problem)

    @property
    def is_older(self) -> bool:
        """Whether it is of an older schema, which is read and not recorded in."""
        return self.version != SCHEMA_VERSION

    @property
    def tables(self) -> Tables:
        """Its tables with all columns of the current schema, whatever its own is."""
        return tables_of(self.version)

    def require_recordable(self) -> None:
        """Raise `StoreUnreadable` unless its schema is what this release makes, or `OlderFormat`, and `require_key`."""
        self._require_undamaged()
        if self.is_older:
            whose = {"store": self._store} if self._store else {"ledger": self.shown_url}
            raise OlderFormat(
                f"the ledger at {self.shown_url} is of schema {self.version}, which this release reads and does not "
                f"record in; bring it up to schema {SCHEMA_VERSION} with: {suggested('ckd-cache upgrade', **whose)}"
            )
        self.require_key()

    def _require_undamaged(self) -> None:
        if self._differences:
            raise StoreUnreadable(
                f"nothing is recorded in the ledger at {self.shown_url}, which is not as any release makes it: "
                f"{self._differences[0]}; undo that, or bring it back from a copy"
            )

    def upgrade(self) -> int:
        """Bring it up to the current schema, in one transaction with the entry that says so; nothing for one that is.

        Returns:
            The schema that it was of.

        Raises:
            StoreUnreadable: its tables are not what releases of its schema made.
            InvalidInput: it is sealed with a key that is not set.
        """

        def work(connection: sa.Connection) -> None:
            # Somebody else may have been faster.
            version = look_at_schema(connection).version
            if version == before:
                bring_forward(connection, before)
                self._append(connection, "schema", {"from": before, "to": SCHEMA_VERSION})

        before = self.version
        self._require_undamaged()
        self.require_key()
        if self.is_older:
            self._database.write(work, lock=entries)
            self._look(_look_at(self._database))
        return before

    def schema_problems(self) -> list[str]:
        """How its tables differ from what this release makes; reading goes on, recording does not."""
        return [
            f"the ledger is not as any release makes it: {difference}; undo that, or bring it back from a copy"
            for difference in self._differences
        ]

    def copy_to(self, path: Path) -> None:
        """Copy a ledger that is an SQLite file into a new one."""
        self._database.copy_to(path)

    # Reading

    def reading(self) -> AbstractContextManager[sa.Connection]:
        """A connection that sees one consistent state."""
        return self._database.reading()

    def head(self) -> str:
        """Hash of the newest entry: it stands for everything recorded so far."""
        return self._database.read(lambda connection: _head(connection)[1])

    def genesis(self) -> str:
        """Hash of entry 1, 64 hex digits: what the ledger is known by, wherever it is.

        Raises:
            StoreUnreadable: it is none, so no release wrote it.
        """
        query = sa.select(entries.c.hash).where(entries.c.seq == 1)
        return self.checked_hash(self._database.read(lambda connection: connection.execute(query).scalar()))

    def checked_hash(self, hash_: str | None) -> str:
        """A hash from the ledger, which may come from anybody; raises `StoreUnreadable` for what is none."""
        if hash_ is None or not _HASH.fullmatch(hash_):
            raise StoreUnreadable(
                f"the ledger at {self.shown_url} has an entry without a hash that any release wrote; bring it back "
                "from a copy"
            )
        return hash_

    def entry_number(self, hash_: str) -> int | None:
        """Number of the entry with this hash, or None."""
        query = sa.select(entries.c.seq).where(entries.c.hash == hash_)
        return self._database.read(lambda connection: connection.execute(query).scalar())

    def require_entry(self, hash_: str, store: object) -> None:
        """Raise `StoreUnreadable` unless an entry has this hash: a ledger that lacks it is not the store's own."""
        if self.entry_number(hash_) is None:
            raise StoreUnreadable(
                f"the ledger at {self.shown_url} lacks entry {hash_[:12]} that {store} was built with: it was "
                "replaced or rolled back; bring back the right one"
            )

    def summary(self, teacher: str | None = None) -> Summary:
        """Totals over one teacher, or over all; the budgets of several teachers are None."""
        table = self.tables.accounts
        query = sa.select(table)
        if teacher is not None:
            query = query.where(table.c.teacher == teacher)
        rows, head = self._database.read(
            lambda connection: (connection.execute(query).all(), _head(connection)[1]),
        )
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

    def teachers(self) -> dict[str, str]:
        """Fingerprint -> name of every teacher in the ledger."""
        query = sa.select(accounts.c.teacher, accounts.c.name).order_by(accounts.c.id)
        return dict(self._database.read(lambda connection: connection.execute(query).all()))

    def known_calls(self, teacher: str, precision: str, digests: Sequence[bytes]) -> dict[bytes, list[RecordedCall]]:
        """Calls to `teacher`, run in this precision, on these inputs that are paid for and not lost; inputs without any
        are left out.
        """

        def look(connection: sa.Connection) -> dict[bytes, list[RecordedCall]]:
            account = connection.execute(sa.select(accounts.c.id).where(_is(teacher))).scalar()
            return {} if account is None else in_precision(find_calls(connection, account, digests), precision)

        return self._database.read(look)

    def calls_of_store(self, store: str, status: str) -> list[RecordedCall]:
        """Calls with this status whose outputs belong to a store, in order of their ids."""
        query = select_calls().where(sessions.c.store == store, calls.c.status == status).order_by(calls.c.id)
        return self._database.read(lambda connection: read_calls(connection.execute(query)))

    def locations(self, store: str) -> list[str]:
        """Folders that a store's sessions were in."""
        query = sa.select(sessions.c.location).where(sessions.c.store == store).distinct()
        return self._database.read(lambda connection: list(connection.execute(query).scalars()))

    def locations_of_teacher(self, teacher: str) -> list[str]:
        """Folders of all stores that keep a teacher's answers."""
        query = sa.select(sessions.c.location).join(accounts, sessions.c.account == accounts.c.id)
        query = query.where(_is(teacher)).distinct()
        return self._database.read(lambda connection: list(connection.execute(query).scalars()))

    def unsettled_calls(self, session: int) -> list[RecordedCall]:
        """Calls that a session reserved, and nobody settled."""
        query = select_calls().where(calls.c.session == session, calls.c.status == "reserved").order_by(calls.c.id)
        return self._database.read(lambda connection: read_calls(connection.execute(query)))

    def store_of_session(self, session: int) -> str | None:
        """Id of the store that a session's calls were for; None if there was no such session."""
        query = sa.select(sessions.c.store).where(sessions.c.id == session)
        return self._database.read(lambda connection: connection.execute(query).scalar())

    def leases(self) -> dict[int, Lease]:
        """The lease of every session that has one."""
        query = sa.select(leases.c.session, sessions.c.store, sessions.c.location, leases.c.host, leases.c.beat)
        query = query.join(sessions, leases.c.session == sessions.c.id)
        rows = self._database.read(lambda connection: connection.execute(query).all())
        return {row.session: Lease(*row) for row in rows}

    def store_record(self, store: str) -> dict[str, Any] | None:
        """What was last recorded of a store by `record_store`."""
        return self._database.read(lambda connection: _store_record(connection, store))

    def session_hosts(self, stores: Set[str]) -> dict[int, str]:
        """Session -> its host (`storage.ledger_records.Session`), of every session of stores with these ids."""
        query = sa.select(entries.c.payload).where(entries.c.kind == "session")
        found: dict[int, str] = {}
        for payload in self._database.read(lambda connection: connection.execute(query).scalars().all()):
            with suppress(ValueError, RecursionError, KeyError, TypeError):  # a damaged entry is found by its hash
                content = json.loads(payload)
                if content["store"] in stores:
                    found[int(content["id"])] = str(content["host"])
        return found

    # Sessions and their leases

    def start_session(self, session: Session) -> int:
        """Record who is about to call, open the teacher's account and a lease, and return the session's number."""
        fields = asdict(session) | {"outputs": ",".join(session.outputs)}

        def work(connection: sa.Connection) -> int:
            account = _open_account(connection, session.teacher, session.teacher_name)
            number = (connection.execute(sa.select(sa.func.max(sessions.c.id))).scalar() or 0) + 1
            self._append(connection, "session", {"id": number, **fields})
            columns = {name: fields[name] for name in _SESSION_COLUMNS}
            connection.execute(sa.insert(sessions).values(id=number, account=account, **columns))
            connection.execute(sa.insert(leases).values(session=number, host=session.host, beat=0))
            return number

        self._warn_of_clock()
        return self._record(work)

    def beat(self, session: int) -> bool:
        """Show that a session lives; False when its lease was taken away."""
        query = sa.update(leases).where(leases.c.session == session).values(beat=leases.c.beat + 1)
        # The next beat comes soon enough to be a second attempt.
        return self._write(lambda connection: connection.execute(query).rowcount, patient=False) == 1

    def holds_lease(self, session: int) -> bool:
        """Whether a session's lease is still its own."""
        query = sa.select(leases.c.session).where(leases.c.session == session)
        return self._database.read(lambda connection: connection.execute(query).first()) is not None

    def take_lease(self, lease: Lease) -> bool:
        """End a session that stands still at this beat; False when it moved, or somebody else was faster."""
        query = sa.delete(leases).where(leases.c.session == lease.session, leases.c.beat == lease.beat)
        return self._write(lambda connection: connection.execute(query).rowcount) == 1

    def end_session(self, session: int) -> None:
        """Give the lease back: what the session left unsettled is then anybody's to settle."""
        query = sa.delete(leases).where(leases.c.session == session)
        self._write(lambda connection: connection.execute(query).rowcount)

    # Recording

    def record_store(self, store: str, content: Mapping[str, Any]) -> None:
        """Chain what a store is (its manifest's digest among it), unless that is what was recorded last."""

        def work(connection: sa.Connection) -> None:
            if _store_record(connection, store) != {"store": store, **content}:
                self._append(connection, "store", {"store": store, **content})

        self._record(work)

    def set_budget(self, teacher: str, name: str, budget: int | None, *, cost_micros: int | None = None) -> None:
        """Set the most calls, and the most money, that may ever be spent on a teacher.

        What is None stays as it is; what does not change records nothing.

        Raises:
            BudgetRefused: more than that is already spent; nothing is changed.
        """

        def work(connection: sa.Connection) -> None:
            _open_account(connection, teacher, name)
            account = connection.execute(sa.select(accounts).where(_is(teacher))).one()
            _require_above_spent(account, budget, cost_micros)
            limit = account.budget if budget is None else budget
            most = account.budget_micros if cost_micros is None else cost_micros
            if (account.budget, account.budget_micros) == (limit, most):
                return
            payload = {"teacher": teacher, "name": account.name, "from": account.budget, "to": limit}
            if account.budget_micros != most:
                payload |= {"from_micros": account.budget_micros, "to_micros": most}
            self._append(connection, "budget", payload)
            connection.execute(sa.update(accounts).where(_is(teacher)).values(budget=limit, budget_micros=most))

        self._record(work)

    def reserve(
        self,
        session: int,
        requests: Sequence[CallRequest],
        required: Set[str] = frozenset(),
        upper_micros: int = 0,
    ) -> Reservation:
        """Charge calls before they are made: all that nobody has paid for yet, or none.

        Args:
            requests: of distinct inputs.
            required: outputs that a call which was made before must have kept to answer for an input.
            upper_micros: what each of them costs at most; 0 for what costs nothing.

        Raises:
            BudgetRefused: a budget does not allow them; nothing is charged.
            StoreBusy: the session's lease was taken away.
        """
        if upper_micros < 0:
            raise ValueError(f"a call cannot cost {upper_micros} micros")
        try:
            # Mostly nobody has asked for these inputs: then the index says so, and nothing has to be looked up.
            return self._record(lambda connection: self._reserve_new(connection, session, requests, upper_micros))
        except (sa.exc.IntegrityError, BudgetRefused):
            return self._record(
                lambda connection: self._reserve_unknown(connection, session, requests, required, upper_micros)
            )

    def _reserve_new(
        self, connection: sa.Connection, session: int, requests: Sequence[CallRequest], upper_micros: int
    ) -> Reservation:
        who = _leaseholder(connection, session)
        return Reservation(self._charge(connection, session, who, requests, {}, upper_micros) if requests else {}, {})

    def _reserve_unknown(
        self,
        connection: sa.Connection,
        session: int,
        requests: Sequence[CallRequest],
        required: Set[str],
        upper_micros: int,
    ) -> Reservation:
        who = _leaseholder(connection, session)
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
        if new:
            repeats = {digest: max(call.repeat for call in found) + 1 for digest, found in paid.items()}
            ids |= self._charge(connection, session, who, new, repeats, upper_micros)
        return Reservation(ids, answered)

    def _charge(
        self,
        connection: sa.Connection,
        session: int,
        who: Any,
        requests: Sequence[CallRequest],
        repeats: Mapping[bytes, int],
        upper_micros: int,
    ) -> dict[bytes, int]:
        _check_account(who, len(requests), upper_micros)
        # What costs nothing takes no room for saying so.
        upper = {"upper_micros": upper_micros} if upper_micros else {}
        first = (connection.execute(sa.select(sa.func.max(calls.c.id))).scalar() or 0) + 1
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
        seq = self._append(connection, "reserve", payload)
        connection.execute(sa.insert(calls), [row | {"reserved_in": seq} for row in rows])
        move_totals(connection, who.account, {"reserved": len(rows), "reserved_micros": len(rows) * upper_micros})
        return {request.input_digest: first + place for place, request in enumerate(requests)}

    def commit(
        self, answers: Mapping[int, bytes], seconds: float = 0.0, bills: Mapping[int, Bill] | None = None
    ) -> None:
        """Record that the outputs of reserved calls of one session are on the disk.

        Args:
            answers: call -> output digests, 16 bytes for each output the session keeps.
            seconds: time the teacher took for them.
            bills: call -> its bill; what was reserved at an upper bound and has none is settled at that, as unknown.

        Raises:
            StoreBusy: somebody gave them up meanwhile, and marked them lost.
            ValueError: a bill contradicts itself, or is of another call.
        """
        bills = {} if bills is None else bills
        if not bills.keys() <= answers.keys():
            raise ValueError(f"bills of calls that are not committed: {sorted(bills.keys() - answers.keys())}")
        if self._settle([Outcome("commit", answers, {"seconds": round(seconds, 6)})], bills) == len(answers):
            return
        # Settled before: by us, if the answer was lost on its way back.
        lost = sa.select(calls.c.id).where(calls.c.status.in_(UNANSWERED))
        for part in lookups(list(answers)):
            query = lost.where(calls.c.id.in_(part))
            if self._database.read(lambda connection, query=query: connection.execute(query).first()) is not None:  # type: ignore[misc]
                raise lease_lost()

    def lose(self, ids: Sequence[int]) -> int:
        """Record that reserved calls of one session left no whole outputs: they stay spent, at their upper bounds.

        Returns:
            How many were settled now; those that were settled before are left as they are.
        """
        return self._settle([Outcome("lose", dict.fromkeys(ids))], {})

    def fail(self, bills: Mapping[int, Bill]) -> int:
        """Record that attempts, reserved calls of one session, gave no answer; each input may be asked again.

        What is not billed is returned, as if it had not been charged; anything else is lost, and stays spent.

        Returns:
            How many were settled now; those that were settled before are left as they are.

        Raises:
            ValueError: a bill contradicts itself, or does not say how its attempt failed.
        """
        if unsaid := [id_ for id_, bill in bills.items() if bill.failure is None]:
            raise ValueError(f"the bills of calls {unsaid} do not say how they failed")
        returned = {id_: None for id_, bill in bills.items() if bill.billed is Billed.NO}
        lost = {id_: None for id_ in bills if id_ not in returned}
        return self._settle([Outcome("return", returned), Outcome("lose", lost)], bills)

    def _settle(self, outcomes: Sequence[Outcome], bills: Mapping[int, Bill]) -> int:
        require_sound(bills)

        def work(connection: sa.Connection, outcomes: Sequence[Outcome]) -> int:
            return sum(settle(connection, self._append, outcome, bills) for outcome in outcomes if outcome.answers)

        if not any(outcome.answers for outcome in outcomes):
            return 0
        try:
            return self._record(lambda connection: work(connection, outcomes))
        except SettledBeforeError:
            return self._record(
                lambda connection: work(connection, [outcome.still_reserved(connection) for outcome in outcomes])
            )

    def settle_unknown(self, decided: Mapping[int, Bill], source: str) -> int:
        """Record what a provider's bill says of calls of which it was unknown whether they are billed.

        One that is not billed is returned, unless it was answered.

        Args:
            decided: call -> its bill; one that is decided already, or was never unknown, is left as it is.
            source: digest of what was looked at, for whoever asks why.

        Returns:
            How many were decided.

        Raises:
            ValueError: a bill contradicts itself, or decides nothing.
        """
        require_sound(decided)
        if any(bill.billed is Billed.UNKNOWN for bill in decided.values()):
            raise ValueError("a bill that is unknown decides nothing")

        def work(connection: sa.Connection) -> int:
            return settle_unknown(connection, self._append, decided, source)

        return self._record(work) if decided else 0

    def revoke(self, ids: Sequence[int]) -> int:
        """Mark committed calls of one teacher lost, since their outputs are damaged and nowhere else."""

        def work(connection: sa.Connection) -> int:
            query = sa.select(calls.c.id, calls.c.account).where(calls.c.status == "committed").order_by(calls.c.id)
            found = [
                row for part in lookups(sorted(ids)) for row in connection.execute(query.where(calls.c.id.in_(part)))
            ]
            if not found:
                return 0
            seq = self._append(connection, "revoke", {"calls": id_ranges([row.id for row in found])})
            connection.execute(
                sa.update(calls).where(calls.c.id == sa.bindparam("call")).values(status="lost", revoked_in=seq),
                [{"call": row.id} for row in found],
            )
            move_totals(connection, found[0].account, {"committed": -len(found), "lost": len(found)})
            return len(found)

        return self._record(work) if ids else 0

    def record_rollback(self, content: Mapping[str, Any]) -> None:
        """Chain that the user goes on with a ledger which its witness contradicts."""
        self._record(lambda connection: self._append(connection, "rollback", content))

    # The journal

    def _record(self, work: Callable[[sa.Connection], _Result]) -> _Result:
        """One transaction at a time, from any process: the chain has one newest entry."""
        return self._write(work, lock=entries)

    def _write(
        self, work: Callable[[sa.Connection], _Result], *, lock: sa.Table | None = None, patient: bool = True
    ) -> _Result:
        if self._differences or self.is_older:
            self.require_recordable()
        return self._database.write(work, lock=lock, patient=patient)

    def _append(self, connection: sa.Connection, kind: str, content: Mapping[str, Any]) -> int:
        seq, previous = _head(connection)
        if seq:
            self.require_key()
        seq += 1
        at = datetime.now(UTC).isoformat(timespec="milliseconds")
        payload = json.dumps(content, sort_keys=True, separators=(",", ":"))
        hash_ = self.seal.hash(seq, kind, at, payload, previous)
        connection.execute(
            sa.insert(entries).values(seq=seq, kind=kind, at=at, payload=payload, previous=previous, hash=hash_)
        )
        return seq

    def _open(self, create: bool) -> Schema:
        schema = _look_at(self._database)
        if schema.is_empty and create:
            self._database.create_tables(self._begin)
            schema = _look_at(self._database)
        if schema.is_empty:
            raise StoreUnreadable(
                f"there is no ledger at {self.shown_url}; build a store first with: "
                "ckd-cache build --teacher NAME --dataset DATASET --n N"
            )
        return schema

    def _look(self, schema: Schema) -> None:
        self._differences = schema.differences()
        self.version = schema.version if type(schema.version) is int else 0

    def _begin(self, connection: sa.Connection) -> None:
        if look_at_schema(connection).is_empty:
            metadata.create_all(connection)
            self._append(connection, "genesis", {"schema": SCHEMA_VERSION, "seal": self.seal.name, "id": uuid4().hex})

    def _check_genesis(self) -> str | None:
        """What is wrong with the key that is set, or with none being set, for this ledger."""
        columns = (entries.c.seq, entries.c.kind, entries.c.at, entries.c.payload, entries.c.previous)
        query = sa.select(*columns, entries.c.hash).where(entries.c.seq == 1)
        first = self._database.read(lambda connection: connection.execute(query).first())
        try:
            sealed_as = json.loads(first.payload if first else "{}").get("seal")
        except (ValueError, TypeError, AttributeError, RecursionError):
            sealed_as = None
        is_known = OLDEST_SCHEMA <= self.version <= SCHEMA_VERSION
        if first is None or not is_known or not isinstance(sealed_as, str):
            raise StoreUnreadable(
                f"the ledger at {self.shown_url} is not of schema {OLDEST_SCHEMA} to {SCHEMA_VERSION}; use the release "
                "that made it"
            )
        if sealed_as != self.seal.name:
            if self.seal.name == "sha256":
                return f"the ledger at {self.shown_url} is sealed with a key; set it in {KEY_VARIABLE}"
            return (
                f"{KEY_VARIABLE} is set, and the ledger at {self.shown_url} is sealed without a key: it was begun "
                f"without one, or forged; unset {KEY_VARIABLE} to go on with it"
            )
        if self.seal.name != "sha256" and first.hash != self.seal.hash(*first[:5]):
            return f"the ledger at {self.shown_url} is sealed with another key than the one in {KEY_VARIABLE}"
        return None

    def _warn_of_clock(self) -> None:
        query = sa.select(entries.c.at).order_by(entries.c.seq.desc()).limit(1)
        newest = self._database.read(lambda connection: connection.execute(query).scalar())
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        if newest is not None and now < newest:
            log.warning(
                "this machine's clock says %s, the ledger's newest entry %s: times will be out of order, nothing else",
                now,
                newest,
            )

    def head_of_calls(self) -> str:
        """Hash of the newest entry that is not of a finished run: what a student can draw on is the same for all that
        come after it.
        """
        query = sa.select(entries.c.hash).where(entries.c.kind != "run").order_by(entries.c.seq.desc()).limit(1)
        return self._database.read(lambda connection: connection.execute(query).scalar()) or GENESIS

    def record_run(self, content: Mapping[str, Any]) -> None:
        """Chain the digests of a finished run (`storage.run_proof`), unless an entry says the same already."""
        payload = json.dumps(content, sort_keys=True, separators=(",", ":"))
        same = sa.select(entries.c.seq).where(entries.c.kind == "run", entries.c.payload == payload)

        def work(connection: sa.Connection) -> None:
            if connection.execute(same).first() is None:
                self._append(connection, "run", content)

        self._record(work)


def ledger_exists(url: str | Path) -> bool:
    """Whether there is a ledger at a URL.

    Raises:
        StoreUnreadable: a server does not answer, or what is there is something else's.
    """
    file = sqlite_path(parse_url(url))
    if file is not None and not file.is_file():
        return False
    database = Database(url, create=False, patience_seconds=0.0)
    try:
        return not _look_at(database).is_empty
    finally:
        database.close()


def _look_at(database: Database) -> Schema:
    """What is in a database; raises `StoreUnreadable` unless that is nothing, or tables that can be read as ours."""
    schema = database.read(look_at_schema)
    if type(schema.version) is int and schema.version > SCHEMA_VERSION:
        raise StoreUnreadable(
            f"the ledger at {database.shown_url} is of schema {schema.version}, written by a newer release than this "
            f"one, which reads {OLDEST_SCHEMA} to {SCHEMA_VERSION}; upgrade this one, with: pip install --upgrade "
            "teacher-cache"
        )
    if not schema.is_empty and (obstacles := schema.obstacles()):
        raise StoreUnreadable(
            f"what is at {database.shown_url} is damaged, or another program's, and no ledger that any release made: "
            f"{obstacles[0]}; nothing was changed in it; name another place, or bring the ledger back from a copy"
        )
    return schema


def _leaseholder(connection: sa.Connection, session: int) -> Any:
    """Session and account of a session that has its lease; raises `StoreBusy` for one that has not."""
    columns = (sessions.c.account, sessions.c.precision, accounts.c.name)
    query = (
        sa.select(*columns, *(accounts.c[name] for name in _ACCOUNT))
        .join(sessions, leases.c.session == sessions.c.id)
        .join(accounts, sessions.c.account == accounts.c.id)
        .where(leases.c.session == session)
    )
    who = connection.execute(query).first()
    if who is None:
        raise lease_lost()
    return who


def lease_lost() -> StoreBusy:
    """The error of a builder that was silent for so long that others took over its calls."""
    return StoreBusy(
        "this build was silent for so long that its lease ended and its calls in hand were given up; run the same "
        "command again to go on"
    )


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


def _check_account(account: Any, wanted: int, upper_micros: int) -> None:
    spent = account.committed + account.reserved + account.lost
    check_budget(account.name, spent=spent, budget=account.budget, wanted=wanted)
    paid, most = account.spent_micros + account.reserved_micros, account.budget_micros
    check_cost_budget(account.name, paid_micros=paid, budget_micros=most, wanted=wanted, upper_micros=upper_micros)


def _require_above_spent(account: Any, budget: int | None, budget_micros: int | None) -> None:
    spent = account.committed + account.reserved + account.lost
    if budget is not None and budget < spent:
        raise BudgetRefused(
            f"a budget of {budget} calls is below the {spent} already spent on {account.name}; give {spent} or more"
        )
    paid = account.spent_micros + account.reserved_micros
    if budget_micros is not None and budget_micros < paid:
        raise BudgetRefused(
            f"a budget of {shown_micros(budget_micros)} is below the {shown_micros(paid)} already paid for "
            f"{account.name}; give {shown_micros(paid)} or more"
        )


def _head(connection: sa.Connection) -> tuple[int, str]:
    query = sa.select(entries.c.seq, entries.c.hash).order_by(entries.c.seq.desc()).limit(1)
    row = connection.execute(query).first()
    return (0, GENESIS) if row is None else (row.seq, row.hash)


def _store_record(connection: sa.Connection, store: str) -> dict[str, Any] | None:
    query = sa.select(entries.c.payload).where(entries.c.kind == "store").order_by(entries.c.seq.desc())
    for payload in connection.execute(query).scalars():
        with suppress(ValueError, RecursionError):  # an entry that was damaged is found by its hash
            content = json.loads(payload)
            if isinstance(content, dict) and content.get("store") == store:
                return content
    return None


def _is(teacher: str) -> sa.ColumnElement[bool]:
    condition: sa.ColumnElement[bool] = accounts.c.teacher == teacher
    return condition


def _open_account(connection: sa.Connection, teacher: str, name: str) -> int:
    found = connection.execute(sa.select(accounts.c.id).where(_is(teacher))).scalar()
    if found is not None:
        return int(found)
    number = (connection.execute(sa.select(sa.func.max(accounts.c.id))).scalar() or 0) + 1
    zero = dict.fromkeys(_COUNTS, 0)
    connection.execute(sa.insert(accounts).values(id=number, teacher=teacher, name=name, **zero))
    return number
