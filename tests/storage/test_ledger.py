"""The ledger: charged before called, never twice, never past the budget, and chained; one suite for every database."""

from __future__ import annotations

import os
import re
import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from datetime import datetime
from itertools import pairwise

import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy.dialects.sqlite.base import SQLiteDialect

import storage.database as database_module
import storage.ledger_journal as journal_module
import storage.ledger_report as ledger_report
from ground.errors import BudgetRefused, InvalidInput, StoreBusy, StoreUnreadable
from storage.database import parse_url, sqlite_path
from storage.ledger import Ledger
from storage.ledger_chain import Seal, id_ranges
from storage.ledger_check import ledger_problems
from storage.ledger_records import CallRequest
from storage.ledger_report import CallFilter, count_calls, list_calls
from tests.ledgers import TEACHER, make_session

SESSION = make_session()


def requests(first: int, count: int) -> list[CallRequest]:
    return [CallRequest(index.to_bytes(16, "big"), index, index, 0) for index in range(first, first + count)]


@pytest.fixture(params=["sqlite", "postgresql"])
def ledger_url(request, tmp_path) -> str:
    if request.param == "postgresql":
        return request.getfixturevalue("postgres").new_database()
    return f"sqlite:///{tmp_path / 'ledger.sqlite'}"


@pytest.fixture
def ledger(ledger_url):
    opened = Ledger(ledger_url, create=True)
    yield opened
    opened.close()


def reserve(ledger: Ledger, session: int, first: int, count: int, required=frozenset()) -> list[int]:
    return list(ledger.reserve(session, requests(first, count), required).ids.values())


def commit(ledger: Ledger, ids: list[int], digest: bytes = b"\1" * 16) -> None:
    ledger.commit(dict.fromkeys(ids, digest))


def totals(ledger: Ledger) -> tuple[int, int, int, int]:
    summary = ledger.summary(TEACHER)
    return summary.committed, summary.reserved, summary.lost, summary.spent


def test_a_call_is_spent_from_the_moment_it_is_reserved(ledger):
    session = ledger.start_session(SESSION)
    ids = reserve(ledger, session, 0, 5)
    assert totals(ledger) == (0, 5, 0, 5)
    commit(ledger, ids[:3])
    assert totals(ledger) == (3, 2, 0, 5)
    ledger.lose(ids[3:])
    assert totals(ledger) == (3, 0, 2, 5)
    assert ledger_problems(ledger) == []


def test_an_input_is_paid_once_and_a_lost_one_can_be_paid_again(ledger):
    session = ledger.start_session(SESSION)
    other = ledger.start_session(SESSION)
    ids = reserve(ledger, session, 0, 4)
    found = ledger.reserve(other, requests(3, 4))
    assert len(found.ids) == 3
    assert [call.id for calls in found.known.values() for call in calls] == ids[3:]
    assert totals(ledger) == (0, 7, 0, 7), "what another has reserved is not charged again"
    assert ledger.lose(ids[3:]) == 1
    assert len(reserve(ledger, other, 3, 1)) == 1
    assert totals(ledger) == (0, 7, 1, 8)
    known = ledger.known_calls(TEACHER, "fp32", [request.input_digest for request in requests(0, 10)])
    assert sorted(call.row for calls in known.values() for call in calls) == list(range(7))


def test_a_request_whose_answer_was_lost_on_its_way_back_can_be_made_again(ledger):
    session = ledger.start_session(SESSION)
    ids = reserve(ledger, session, 0, 4)
    assert reserve(ledger, session, 0, 4) == ids
    commit(ledger, ids)
    commit(ledger, ids)
    assert totals(ledger) == (4, 0, 0, 4)
    assert ledger_problems(ledger) == []


def test_an_extension_pays_again_only_for_outputs_that_were_not_kept(ledger):
    first = ledger.start_session(SESSION)
    commit(ledger, reserve(ledger, first, 0, 3))
    extension = replace(SESSION, purpose="extend", outputs=("layer1",), store="6" * 32)
    session = ledger.start_session(extension)
    assert reserve(ledger, session, 0, 3) == [], "whatever was kept answers for who requires nothing"
    commit(ledger, reserve(ledger, session, 0, 3, {"layer1"}), b"\2" * 16)
    assert totals(ledger) == (6, 0, 0, 6)
    again = ledger.reserve(ledger.start_session(extension), requests(0, 3), {"layer1"})
    assert again.ids == {}
    assert {call.digest_of("layer1") for calls in again.known.values() for call in calls} == {b"\2" * 16}
    assert ledger.reserve(ledger.start_session(SESSION), requests(0, 3)).ids == {}
    assert ledger_problems(ledger) == []


def test_the_budget_is_checked_before_anything_is_charged(ledger):
    session = ledger.start_session(SESSION)
    ledger.set_budget(TEACHER, "wrn_40_2", 6)
    reserve(ledger, session, 0, 4)
    with pytest.raises(BudgetRefused, match="asked for 3 calls .*, 4 are already paid and 2 of the budget of 6"):
        ledger.reserve(session, requests(4, 3))
    ledger.reserve(session, requests(4, 2))
    assert (ledger.summary(TEACHER).budget, ledger.summary(TEACHER).remaining) == (6, 0)
    with pytest.raises(BudgetRefused, match="below the 6 already spent"):
        ledger.set_budget(TEACHER, "wrn_40_2", 5)
    assert BudgetRefused.exit_code == 3


def test_lost_calls_stay_spent_against_the_budget(ledger):
    session = ledger.start_session(SESSION)
    ledger.set_budget(TEACHER, "wrn_40_2", 4)
    ledger.lose(reserve(ledger, session, 0, 4))
    with pytest.raises(BudgetRefused):
        ledger.reserve(session, requests(0, 1))


def test_a_settled_call_cannot_be_settled_again(ledger):
    ids = reserve(ledger, ledger.start_session(SESSION), 0, 2)
    commit(ledger, ids[:1])
    assert ledger.lose(ids) == 1
    assert totals(ledger) == (1, 0, 1, 2)
    with pytest.raises(StoreBusy, match="its lease ended"):
        commit(ledger, ids)
    assert ledger_problems(ledger) == []


def test_a_damaged_answer_is_revoked_and_can_be_paid_for_again(ledger):
    session = ledger.start_session(SESSION)
    ids = reserve(ledger, session, 0, 3)
    commit(ledger, ids)
    assert ledger.revoke(ids[1:2]) == 1
    assert ledger.revoke(ids[1:2]) == 0
    assert totals(ledger) == (2, 0, 1, 3)
    assert len(reserve(ledger, session, 0, 3)) == 1
    assert ledger_problems(ledger) == []


def test_a_session_whose_lease_was_taken_reserves_nothing_more(ledger):
    session = ledger.start_session(SESSION)
    (lease,) = ledger.leases().values()
    assert ledger.beat(session)
    assert not ledger.take_lease(lease), "it has moved since"
    (lease,) = ledger.leases().values()
    assert ledger.holds_lease(session)
    assert ledger.take_lease(lease)
    assert not ledger.holds_lease(session)
    assert not ledger.beat(session)
    with pytest.raises(StoreBusy, match="its lease ended"):
        ledger.reserve(session, requests(0, 1))
    assert totals(ledger) == (0, 0, 0, 0)


def test_what_a_store_is_is_recorded_once(ledger):
    for content in ({"manifest": "a"}, {"manifest": "a"}, {"manifest": "b"}):
        ledger.record_store("5" * 32, content)
    assert ledger.store_record("5" * 32) == {"store": "5" * 32, "manifest": "b"}
    assert ledger.store_record("6" * 32) is None
    with ledger.reading() as connection:
        assert connection.execute(sa.text("SELECT count(*) FROM entries WHERE kind = 'store'")).scalar() == 2


def test_many_threads_share_a_budget_without_overshooting(ledger):
    session = ledger.start_session(SESSION)
    ledger.set_budget(TEACHER, "wrn_40_2", 50)

    def work(worker: int) -> int:
        made = 0
        for batch in range(5):
            try:
                ids = reserve(ledger, session, 1000 * worker + 10 * batch, 3)
            except BudgetRefused:
                continue
            commit(ledger, ids)
            made += 3
        return made

    with ThreadPoolExecutor(8) as pool:
        made = sum(pool.map(work, range(8)))
    assert made == 48, "the most batches of 3 that fit into 50"
    assert totals(ledger) == (48, 0, 0, 48)
    assert ledger_problems(ledger) == []


@settings(max_examples=20, deadline=None)
@given(st.lists(st.sampled_from(["commit", "lose", "leave"]), max_size=12))
def test_totals_equal_a_plain_count_after_any_history(tmp_path_factory, history):
    ledger = Ledger(tmp_path_factory.mktemp("ledger") / "ledger.sqlite", create=True)
    session = ledger.start_session(SESSION)
    counts = {"commit": 0, "lose": 0, "leave": 0}
    for place, what in enumerate(history):
        ids = reserve(ledger, session, 10 * place, place % 3 + 1)
        counts[what] += len(ids)
        if what == "commit":
            commit(ledger, ids, b"\2" * 16)
        elif what == "lose":
            ledger.lose(ids)
    assert totals(ledger) == (counts["commit"], counts["leave"], counts["lose"], sum(counts.values()))
    assert ledger_problems(ledger) == []
    ledger.close()


TAMPERINGS = {
    "an output digest": "UPDATE calls SET output_digest = x'00' WHERE id = 2",
    "a row number": 'UPDATE calls SET "row" = 17 WHERE id = 2',
    "a status": "UPDATE calls SET status = 'lost' WHERE id = 2",
    "a deleted call": "DELETE FROM calls WHERE id = 2",
    "a settled call unsettled": "UPDATE calls SET status = 'reserved', settled_in = NULL WHERE id = 2",
    "a total": "UPDATE accounts SET committed = committed - 1",
    "a budget": "UPDATE accounts SET budget = 1000000",
    "an entry's time": "UPDATE entries SET at = '1999-01-01' WHERE seq = 3",
    "an entry's content": "UPDATE entries SET payload = replace(payload, '4', '5') WHERE seq = 4",
    "a deleted entry": "DELETE FROM entries WHERE seq = 3",
    "who called": "UPDATE sessions SET device = 'abacus'",
    "a teacher's name": "UPDATE accounts SET name = 'vgg8'",
    "a teacher": "UPDATE accounts SET teacher = 'f'",
    "a repeat": "UPDATE calls SET repeat = 1 WHERE id = 2",
    "an answer before it came": "UPDATE calls SET output_digest = x'01' WHERE id = 5",
    "a call that was never reserved": (
        "INSERT INTO calls SELECT id + 10, session, account, x'77', repeat, sample, \"row\", view, status,"
        " output_digest, reserved_in, settled_in, revoked_in, upper_micros FROM calls WHERE id = 2"
    ),
    "a deleted account": "DELETE FROM accounts",
}


def tamper(url: str, statement: str) -> int:
    """Change a ledger behind its back, as who may do anything to its database; returns the rows it changed."""
    path = sqlite_path(parse_url(url))
    if path is not None:
        with closing(sqlite3.connect(path)) as database, database:
            return database.execute(statement).rowcount
    engine = sa.create_engine(parse_url(url))
    with engine.begin() as connection:
        connection.exec_driver_sql("SET session_replication_role = replica")  # no foreign keys
        changed = connection.exec_driver_sql(re.sub(r"x'(\w+)'", r"'\\x\1'", statement)).rowcount
    engine.dispose()
    return changed


@pytest.mark.parametrize("tampering", TAMPERINGS)
def test_tampering_is_found(ledger_url, tampering):
    require_found(ledger_url, TAMPERINGS[tampering])


def require_found(url: str, statement: str) -> None:
    ledger = Ledger(url, create=True)
    session = ledger.start_session(SESSION)
    ledger.set_budget(TEACHER, "wrn_40_2", 100)
    commit(ledger, reserve(ledger, session, 0, 4))
    reserve(ledger, session, 4, 1)
    assert ledger_problems(ledger) == []
    ledger.close()
    assert tamper(url, statement) != 0
    with closing(Ledger(url)) as ledger:
        assert ledger_problems(ledger) != []


def test_the_head_changes_with_every_entry(ledger):
    heads = [ledger.head()]
    session = ledger.start_session(SESSION)
    heads.append(ledger.head())
    ids = reserve(ledger, session, 0, 1)
    heads.append(ledger.head())
    commit(ledger, ids)
    heads.append(ledger.head())
    assert len(set(heads)) == 4


def test_calls_are_listed_with_who_and_when(ledger):
    session = ledger.start_session(SESSION)
    ids = reserve(ledger, session, 0, 3)
    commit(ledger, ids[:1], b"\7" * 16)
    rows = list(list_calls(ledger))
    assert [row["status"] for row in rows] == ["committed", "reserved", "reserved"]
    assert rows[0]["output_digest"] == "07" * 16
    assert rows[0]["settled_at"] >= rows[0]["reserved_at"]
    assert rows[1]["settled_at"] is None
    assert [row["id"] for row in list_calls(ledger, CallFilter(status="reserved"), limit=1, offset=1)] == [ids[2]]
    assert [row["id"] for row in list_calls(ledger, after=ids[0], limit=1)] == [ids[1]]
    assert [row["id"] for row in list_calls(ledger, after=ids[0], offset=1)] == [ids[2]]
    middle = rows[0]["reserved_at"]
    for where, count in {
        CallFilter(): 3,
        CallFilter(teacher=TEACHER): 3,
        CallFilter(teacher="f"): 0,
        CallFilter(status="committed"): 1,
        CallFilter(run=session): 3,
        CallFilter(run=session + 1): 0,
        CallFilter(teacher=TEACHER, store="55"): 3,
        CallFilter(store="5%"): 0,
        CallFilter(since=middle): 3,
        CallFilter(until=middle): 0,
    }.items():
        assert len(list(list_calls(ledger, where))) == count_calls(ledger, where) == count, where


def test_calls_are_listed_as_they_were_when_the_list_began(ledger, monkeypatch):
    """Whatever is recorded while somebody reads slowly; also where a filter asks for what was changed since."""
    monkeypatch.setattr(ledger_report, "PAGE_ROWS", 2)
    session = ledger.start_session(SESSION)
    ids = reserve(ledger, session, 0, 9)
    commit(ledger, ids[:5], b"\7" * 16)
    before = list(list_calls(ledger))
    assert [row["status"] for row in before] == ["committed"] * 5 + ["reserved"] * 4
    slow, filtered = list_calls(ledger), list_calls(ledger, CallFilter(status="reserved"), limit=3, offset=1)
    read = [next(slow)], [next(filtered)]
    commit(ledger, ids[5:7])
    ledger.lose(ids[7:])
    ledger.revoke(ids[3:5])
    reserve(ledger, session, 20, 3)
    assert read[0] + list(slow) == before
    assert read[1] + list(filtered) == before[6:9]
    now = [row["status"] for row in list_calls(ledger)]
    assert now == ["committed"] * 3 + ["lost"] * 2 + ["committed"] * 2 + ["lost"] * 2 + ["reserved"] * 3
    assert [row["id"] for row in list_calls(ledger, limit=4, offset=3)] == ids[3:7]
    assert list(list_calls(ledger, limit=0)) == []


def test_a_server_that_ends_idle_transactions_does_not_cut_a_slow_export(postgres, monkeypatch):
    # More than Python takes to collect garbage in a process that has loaded torch.
    monkeypatch.setattr(database_module, "IDLE_SECONDS", 0.7)
    monkeypatch.setattr(ledger_report, "PAGE_ROWS", 4)
    with closing(Ledger(postgres.new_database(), create=True)) as ledger:
        reserve(ledger, ledger.start_session(SESSION), 0, 10)
        read = []
        for row in list_calls(ledger):
            read.append(row["id"])
            if len(read) in (1, 5):
                time.sleep(1.1)
        assert read == list(range(1, 11))


def test_two_teachers_have_separate_accounts(ledger):
    other = replace(SESSION, teacher="cd" * 32, teacher_name="vgg8")
    reserve(ledger, ledger.start_session(SESSION), 0, 2)
    reserve(ledger, ledger.start_session(other), 0, 3)
    assert ledger.summary().spent == 5
    assert ledger.summary(TEACHER).spent == 2
    assert ledger.teachers() == {TEACHER: "wrn_40_2", "cd" * 32: "vgg8"}


def test_a_ledger_is_read_where_nothing_can_be_written(tmp_path, monkeypatch):
    ledger = Ledger(tmp_path / "ledger.sqlite", create=True)
    reserve(ledger, ledger.start_session(SESSION), 0, 3)
    ledger.close()
    before = sorted(path.name for path in tmp_path.iterdir())
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    reader = Ledger(tmp_path / "ledger.sqlite")
    assert reader.summary().reserved == 3
    with pytest.raises(StoreUnreadable, match="readonly|read-only"):
        reader.start_session(SESSION)
    reader.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == before


@pytest.mark.parametrize("url", ["", "sqlite://", "sqlite:///", "sqlite:///:memory:"])
def test_a_ledger_that_would_not_last_is_refused(url):
    with pytest.raises(InvalidInput, match="names no ledger|would be lost"):
        Ledger(url, create=True)


IGNORED_BEFORE = {
    "sqlite:///l?x": "takes no host, user or options",
    "sqlite:///l?": "takes no host, user or options",
    "sqlite:///l?mode=ro": "takes no host, user or options",
    "sqlite:///x?mode=memory&uri=true": "takes no host, user or options",
    "sqlite:///file:l": "takes no host, user or options",
    "sqlite:///file:l?mode=ro&uri=true": "takes no host, user or options",
    "sqlite://host/l": "takes no host, user or options",
    "sqlite://l": "takes no host, user or options",
    "sqlite://user:secret@host/l": "takes no host, user or options",
    "l?x": "has a [?] in its name",
    "folder/l?mode=ro": "has a [?] in its name",
    "file:l": "give sqlite:///FILE or postgresql",
    "file:///l?mode=ro": "give sqlite:///FILE or postgresql",
    "sqlite:l": "give sqlite:///FILE or postgresql",
    "sqlite+pysqlite:///l": "give sqlite:///FILE or postgresql",
    "postgresql://h/d?sslmode": "each with a value",
    "postgresql://h/d?sslmode=": "each with a value",
    "postgresql://h/d?": None,
    "postgresql://h/d?sslmode=require&sslmode=disable": "each with a value",
    "postgresql://u:p?w@h/d?sslmode": "each with a value",
    "postgresql://u:p?w@h/d?sslmode=require": None,
    "postgresql://u@h/d?host=a&host=b": None,
}


@pytest.mark.parametrize("url", IGNORED_BEFORE)
def test_what_a_url_says_is_obeyed_or_refused(tmp_path, monkeypatch, url):
    monkeypatch.chdir(tmp_path)
    if IGNORED_BEFORE[url] is None:
        assert parse_url(url).drivername == "postgresql+psycopg"
        return
    with pytest.raises(InvalidInput, match=IGNORED_BEFORE[url]) as refused:
        Ledger(url, create=True)
    assert "secret" not in str(refused.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["l#x", "l x", "l;x", "l&mode=memory"])
@pytest.mark.parametrize("scheme", ["", "sqlite:///"])
def test_any_other_name_is_the_files_own(tmp_path, monkeypatch, scheme, name):
    monkeypatch.chdir(tmp_path)
    Ledger(scheme + name, create=True).close()
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize(
    "url", ["mysql+nothing://x/y", "://", "postgresql://127.0.0.1:1/x", "postgresql://h/d?password=x"]
)
def test_an_unusable_url_is_a_sentence(url):
    with pytest.raises((InvalidInput, StoreUnreadable)):
        Ledger(url)


def test_a_ledger_sealed_with_a_key_is_recorded_in_and_verified_with_it_alone(ledger_url, monkeypatch):
    monkeypatch.setenv("CKD_LEDGER_KEY", "a key")
    ledger = Ledger(ledger_url, create=True)
    session = ledger.start_session(SESSION)
    commit(ledger, reserve(ledger, session, 0, 3))
    assert ledger_problems(ledger) == []
    ledger.close()
    for key, message in (("another key", "another key"), ("", "a key; set it in CKD_LEDGER_KEY")):
        monkeypatch.setenv("CKD_LEDGER_KEY", key)
        ledger = Ledger(ledger_url)
        assert ledger.summary().spent == 3, "reading needs no key"
        attempts = (
            lambda ledger=ledger: ledger_problems(ledger),
            lambda ledger=ledger: ledger.start_session(SESSION),
            lambda ledger=ledger: ledger.record_store("5" * 32, {}),
            lambda ledger=ledger: ledger.set_budget(TEACHER, "wrn_40_2", 9),
        )
        for attempt in attempts:
            with pytest.raises(InvalidInput, match=f"is sealed with {message}"):
                attempt()
        assert ledger.summary().spent == 3
        ledger.close()


def test_a_chain_forged_without_the_key_is_found(tmp_path, monkeypatch):
    """Every hash recomputed, as somebody who can write to the file would."""
    path = tmp_path / "ledger.sqlite"
    monkeypatch.setenv("CKD_LEDGER_KEY", "a key")
    ledger = Ledger(path, create=True)
    ledger.set_budget(TEACHER, "wrn_40_2", 10)
    ledger.close()
    database, seal, previous = sqlite3.connect(path), Seal(None), "0" * 64
    with database:
        database.execute("UPDATE entries SET payload = replace(payload, '10', '99') WHERE kind = 'budget'")
        database.execute("UPDATE accounts SET budget = 99")
        for seq, kind, at, payload in database.execute(
            "SELECT seq, kind, at, payload FROM entries ORDER BY seq"
        ).fetchall():
            hash_ = seal.hash(seq, kind, at, payload, previous)
            database.execute("UPDATE entries SET previous = ?, hash = ? WHERE seq = ?", (previous, hash_, seq))
            previous = hash_
    forged = Ledger(path)
    with pytest.raises(InvalidInput, match="sealed with another key"):
        ledger_problems(forged)
    forged.close()
    with database:
        database.execute("UPDATE entries SET payload = replace(payload, 'hmac-', '') WHERE seq = 1")
    database.close()
    forged = Ledger(path)
    with pytest.raises(InvalidInput, match="sealed without a key: it was begun without one, or forged"):
        ledger_problems(forged)
    forged.close()
    monkeypatch.delenv("CKD_LEDGER_KEY")
    assert ledger_problems(Ledger(path)) != [], "the genesis entry was changed after its hash was made"


def test_a_clock_that_jumps_back_changes_nothing_but_times(ledger, monkeypatch, caplog):
    session = ledger.start_session(SESSION)
    commit(ledger, reserve(ledger, session, 0, 2))

    class Past(datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime(1999, 1, 1, tzinfo=tz)

    monkeypatch.setattr(journal_module, "datetime", Past)
    session = ledger.start_session(SESSION)
    assert "this machine's clock says 1999-01-01" in caplog.text
    commit(ledger, reserve(ledger, session, 2, 2))
    assert totals(ledger) == (4, 0, 0, 4)
    assert ledger_problems(ledger) == []
    assert [row["id"] for row in list_calls(ledger)] == [1, 2, 3, 4], "in the order they were charged"


def test_a_ledger_that_is_deleted_or_replaced_under_a_build_stops_it(tmp_path):
    path = tmp_path / "ledger.sqlite"
    ledger = Ledger(path, create=True)
    session = ledger.start_session(SESSION)
    path.rename(tmp_path / "aside.sqlite")
    with pytest.raises(StoreUnreadable, match="was deleted; bring it back"):
        ledger.reserve(session, requests(0, 1))
    Ledger(path, create=True).close()
    with pytest.raises(StoreUnreadable, match="was replaced by another file"):
        ledger.reserve(session, requests(0, 1))
    ledger.close()


def test_a_missing_or_foreign_ledger_is_a_sentence(tmp_path):
    with pytest.raises(StoreUnreadable, match="there is no ledger at"):
        Ledger(tmp_path / "ledger.sqlite")
    (tmp_path / "text.sqlite").write_text("not a database, but long enough to be taken for one " * 20)
    with pytest.raises(StoreUnreadable, match="cannot be used"):
        Ledger(tmp_path / "text.sqlite")
    sqlite3.connect(tmp_path / "other.sqlite").execute("CREATE TABLE t (a)").connection.close()
    with pytest.raises(StoreUnreadable):
        Ledger(tmp_path / "other.sqlite")


@given(st.sets(st.integers(0, 60)))
def test_id_ranges_cover_exactly_the_ids(ids):
    runs = id_ranges(sorted(ids))
    assert {id_ for first, last in runs for id_ in range(first, last + 1)} == ids
    assert all(after[0] > before[1] + 1 for before, after in pairwise(runs))


def test_what_was_asked_of_one_file_is_not_compiled_again_for_another(tmp_path, monkeypatch):
    compiled = []

    class Counting(SQLiteDialect.statement_compiler):
        def __init__(self, dialect, statement, **options):
            compiled.append(statement)
            super().__init__(dialect, statement, **options)

    monkeypatch.setattr(SQLiteDialect, "statement_compiler", Counting)

    def totals_of(name: str) -> object:
        with closing(Ledger(tmp_path / name, create=True)) as ledger:
            del compiled[:]
            return ledger.summary().committed

    assert totals_of("one.sqlite") == 0
    assert totals_of("other.sqlite") == 0
    assert compiled == []
