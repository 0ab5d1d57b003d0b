"""The call ledger: one row per image shown to the teacher, and a hash chain over all that was ever recorded.

A call is reserved, which debits the budget, before the teacher runs; it is committed when its outputs are on the
disk, or marked lost when a crash came in between. So spent = committed + reserved + lost can overcount the
teacher's forwards by the batch in hand, and never undercounts them. An attempt that nobody bills is returned: charged,
and then given back. Money goes the same way, in micros: reserved at an upper bound, settled at what the bill says.
Nothing is ever deleted. The protocol is in docs/ledger.md.

A reservation belongs to a *session*, one run of a builder, and is good for as long as the session's lease is: a
heartbeat that others watch. Who sees it stand still takes the lease away and settles what the session left.

Here is the ledger as the rest of the product knows it, each change of it one transaction; what is done inside is
elsewhere in `storage/`, a module for each: `ledger_opening` (what is in a database), `ledger_journal` (entries),
`ledger_accounts` (totals and budgets), `ledger_sessions` (leases), `ledger_reserving`, `ledger_settling`,
`ledger_bills`, and `ledger_calls` (how calls are found). `ledger_tables` and `ledger_migrations` have the tables,
`ledger_records` what is taken and given. `ledger_report` and `ledger_spending` read it for people, and `ledger_check`
recomputes the chain.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence, Set
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

import sqlalchemy as sa

from ground.errors import BudgetRefused, InvalidInput, OlderFormat, StoreUnreadable, suggested
from storage import ledger_accounts, ledger_calls, ledger_journal, ledger_sessions, ledger_settling
from storage.bill import Bill, Billed
from storage.database import Database
from storage.ledger_accounts import check_budget
from storage.ledger_bills import require_sound
from storage.ledger_chain import Seal
from storage.ledger_migrations import SCHEMA_VERSION, Tables, bring_forward, tables_of
from storage.ledger_opening import key_problem, ledger_exists, look_at
from storage.ledger_records import CallRequest, Lease, RecordedCall, Reservation, Session, Summary
from storage.ledger_reserving import reserve_new, reserve_unknown
from storage.ledger_schema import Schema, look_at_schema
from storage.ledger_sessions import lease_lost
from storage.ledger_settling import Outcome, SettledBeforeError
from storage.ledger_tables import entries, metadata

__all__ = ["Ledger", "check_budget", "lease_lost", "ledger_exists"]

log = logging.getLogger(__name__)

_HASH = re.compile(r"[0-9a-f]{64}")

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
        self._genesis: str | None = None
        try:
            self._look(self._open(create))
            self._key_problem = key_problem(self._database, self.version, self.seal)
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
            self._look(look_at(self._database))
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
        return self._database.read(ledger_journal.newest)[1]

    def genesis(self) -> str:
        """Hash of entry 1, 64 hex digits: what the ledger is known by, wherever it is; read once, for it never changes.

        Raises:
            StoreUnreadable: it is none, so no release wrote it.
        """
        if self._genesis is None:
            self._genesis = self.checked_hash(self._database.read(ledger_journal.first_hash))
        return self._genesis

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
        return self._database.read(lambda connection: ledger_journal.entry_number(connection, hash_))

    def require_entry(self, hash_: str, store: object) -> None:
        """Raise `StoreUnreadable` unless an entry has this hash: a ledger that lacks it is not the store's own."""
        if self.entry_number(hash_) is None:
            raise StoreUnreadable(
                f"the ledger at {self.shown_url} lacks entry {hash_[:12]} that {store} was built with: it was "
                "replaced or rolled back; bring back the right one"
            )

    def head_of_calls(self) -> str:
        """Hash of the newest entry that is not of a finished run: what a student can draw on is the same for all that
        come after it.
        """
        return self._database.read(ledger_journal.newest_of_calls)

    def store_record(self, store: str) -> dict[str, Any] | None:
        """What was last recorded of a store by `record_store`."""
        return self._database.read(lambda connection: ledger_journal.store_record(connection, store))

    def summary(self, teacher: str | None = None) -> Summary:
        """Totals over one teacher, or over all; the budgets of several teachers are None."""
        return self._database.read(lambda connection: ledger_accounts.summary_of(connection, self.tables, teacher))

    def teachers(self) -> dict[str, str]:
        """Fingerprint -> name of every teacher in the ledger."""
        return self._database.read(ledger_accounts.names_of_teachers)

    def known_calls(self, teacher: str, precision: str, digests: Sequence[bytes]) -> dict[bytes, list[RecordedCall]]:
        """Calls to `teacher`, run in this precision, on these inputs that are paid for and not lost; inputs without any
        are left out.
        """

        def look(connection: sa.Connection) -> dict[bytes, list[RecordedCall]]:
            account = ledger_accounts.account_of(connection, teacher)
            found = {} if account is None else ledger_calls.find_calls(connection, account, digests)
            return ledger_calls.in_precision(found, precision)

        return self._database.read(look)

    def calls_of_store(self, store: str, status: str) -> list[RecordedCall]:
        """Calls with this status whose outputs belong to a store, in order of their ids."""
        return self._database.read(lambda connection: ledger_calls.calls_of_store(connection, store, status))

    def calls_outside(self, store: str, rows: int) -> list[RecordedCall]:
        """Committed calls of a store that has so many rows, for rows that it does not have."""
        return self._database.read(lambda connection: ledger_calls.calls_outside(connection, store, rows))

    def unsettled_calls(self, session: int) -> list[RecordedCall]:
        """Calls that a session reserved, and nobody settled."""
        return self._database.read(lambda connection: ledger_calls.calls_of_sessions(connection, [session], "reserved"))

    def locations(self, store: str) -> list[str]:
        """Folders that a store's sessions were in."""
        return self._database.read(lambda connection: ledger_sessions.locations_of_store(connection, store))

    def locations_of_teacher(self, teacher: str) -> list[str]:
        """Folders of all stores that keep a teacher's answers."""
        return self._database.read(lambda connection: ledger_sessions.locations_of_teacher(connection, teacher))

    def store_of_session(self, session: int) -> str | None:
        """Id of the store that a session's calls were for; None if there was no such session."""
        return self._database.read(lambda connection: ledger_sessions.store_of_session(connection, session))

    def leases(self) -> dict[int, Lease]:
        """The lease of every session that has one."""
        return self._database.read(ledger_sessions.all_leases)

    def session_hosts(self, stores: Set[str]) -> dict[int, str]:
        """Session -> its host (`storage.ledger_records.Session`), of every session of stores with these ids."""
        return self._database.read(lambda connection: ledger_journal.hosts_of_sessions(connection, stores))

    # Sessions and their leases

    def start_session(self, session: Session) -> int:
        """Record who is about to call, open the teacher's account and a lease, and return the session's number."""
        self._warn_of_clock()
        return self._record(lambda connection: ledger_sessions.start_session(connection, self._append, session))

    def beat(self, session: int) -> bool:
        """Show that a session lives; False when its lease was taken away."""
        # The next beat comes soon enough to be a second attempt.
        return self._write(lambda connection: ledger_sessions.beat(connection, session), patient=False)

    def holds_lease(self, session: int) -> bool:
        """Whether a session's lease is still its own."""
        return self._database.read(lambda connection: ledger_sessions.holds_lease(connection, session))

    def take_lease(self, lease: Lease) -> bool:
        """End a session that stands still at this beat; False when it moved, or somebody else was faster."""
        return self._write(lambda connection: ledger_sessions.take_lease(connection, lease))

    def end_session(self, session: int) -> None:
        """Give the lease back: what the session left unsettled is then anybody's to settle."""
        self._write(lambda connection: ledger_sessions.give_lease_back(connection, session))

    # Recording

    def record_store(self, store: str, content: Mapping[str, Any]) -> None:
        """Chain what a store is (its manifest's digest among it), unless that is what was recorded last."""
        self._record(lambda connection: ledger_journal.record_store(connection, self._append, store, content))

    def record_run(self, content: Mapping[str, Any]) -> None:
        """Chain the digests of a finished run (`storage.run_proof`), unless an entry says the same already."""
        self._record(lambda connection: ledger_journal.record_run(connection, self._append, content))

    def record_rollback(self, content: Mapping[str, Any]) -> None:
        """Chain that the user goes on with a ledger which its witness contradicts."""
        self._record(lambda connection: self._append(connection, "rollback", content))

    def set_budget(self, teacher: str, name: str, budget: int | None, *, cost_micros: int | None = None) -> None:
        """Set the most calls, and the most money, that may ever be spent on a teacher.

        What is None stays as it is; what does not change records nothing.

        Raises:
            BudgetRefused: more than that is already spent; nothing is changed.
        """

        def work(connection: sa.Connection) -> None:
            ledger_accounts.set_budget(connection, self._append, teacher, name, budget, cost_micros)

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
            return self._record(
                lambda connection: reserve_new(connection, self._append, session, requests, upper_micros)
            )
        except (sa.exc.IntegrityError, BudgetRefused):
            return self._record(
                lambda connection: reserve_unknown(connection, self._append, session, requests, required, upper_micros)
            )

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
        if self._database.read(lambda connection: ledger_settling.are_given_up(connection, list(answers))):
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
            asked = [outcome for outcome in outcomes if outcome.answers]
            return sum(ledger_settling.settle(connection, self._append, outcome, bills) for outcome in asked)

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
            return ledger_settling.settle_unknown(connection, self._append, decided, source)

        return self._record(work) if decided else 0

    def revoke(self, ids: Sequence[int]) -> int:
        """Mark committed calls of one teacher lost, since their outputs are damaged and nowhere else."""
        return self._record(lambda connection: ledger_settling.revoke(connection, self._append, ids)) if ids else 0

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
        if kind != "genesis":
            self.require_key()
        return ledger_journal.append_entry(connection, self.seal, kind, content)

    def _open(self, create: bool) -> Schema:
        schema = look_at(self._database)
        if schema.is_empty and create:
            self._database.create_tables(self._begin)
            schema = look_at(self._database)
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

    def _warn_of_clock(self) -> None:
        newest, now = self._database.read(ledger_journal.newest_time), ledger_journal.now()
        if newest is not None and now < newest:
            log.warning(
                "this machine's clock says %s, the ledger's newest entry %s: times will be out of order, nothing else",
                now,
                newest,
            )
