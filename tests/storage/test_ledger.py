"""The ledger: charged before called, never twice, never past the budget, and chained."""

from __future__ import annotations

import os
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise

import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.errors import BudgetRefused, InvalidInput, StoreUnreadable
from storage.ledger import CallRequest, Ledger, Session
from storage.ledger_chain import id_ranges
from storage.ledger_check import ledger_problems

TEACHER = "ab" * 32
SESSION = Session(
    teacher=TEACHER,
    teacher_name="wrn_40_2",
    store="5" * 32,
    location="/nowhere",
    purpose="train",
    device="cpu",
    precision="fp32",
    outputs=("logits",),
)


def requests(first: int, count: int) -> list[CallRequest]:
    return [CallRequest(index.to_bytes(16, "big"), index, index, 0) for index in range(first, first + count)]


@pytest.fixture
def ledger(tmp_path):
    opened = Ledger(tmp_path / "ledger.sqlite", create=True)
    yield opened
    opened.close()


def totals(ledger: Ledger) -> tuple[int, int, int, int]:
    summary = ledger.summary(TEACHER)
    return summary.committed, summary.reserved, summary.lost, summary.spent


def test_a_call_is_spent_from_the_moment_it_is_reserved(ledger):
    session = ledger.start_session(SESSION)
    ids = ledger.reserve(session, requests(0, 5))
    assert totals(ledger) == (0, 5, 0, 5)
    ledger.commit(ids[:3], [b"\1" * 16] * 3)
    assert totals(ledger) == (3, 2, 0, 5)
    ledger.lose(ids[3:])
    assert totals(ledger) == (3, 0, 2, 5)
    assert ledger_problems(ledger) == []


def test_an_input_is_paid_once_and_a_lost_one_can_be_paid_again(ledger):
    session = ledger.start_session(SESSION)
    ids = ledger.reserve(session, requests(0, 4))
    with pytest.raises(InvalidInput, match="already paid for"):
        ledger.reserve(session, requests(3, 4))
    assert totals(ledger) == (0, 4, 0, 4), "a refused batch charges nothing"
    ledger.lose(ids[3:])
    ledger.reserve(session, requests(3, 4))
    assert totals(ledger) == (0, 7, 1, 8)
    known = ledger.known_calls(TEACHER, [request.input_digest for request in requests(0, 10)])
    assert sorted(call.row for call in known.values()) == list(range(7))


def test_the_budget_is_checked_before_anything_is_charged(ledger):
    session = ledger.start_session(SESSION)
    ledger.set_budget(TEACHER, "wrn_40_2", 6)
    ledger.reserve(session, requests(0, 4))
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
    ledger.lose(ledger.reserve(session, requests(0, 4)))
    with pytest.raises(BudgetRefused):
        ledger.reserve(session, requests(0, 1))


def test_a_settled_call_cannot_be_settled_again(ledger):
    ids = ledger.reserve(ledger.start_session(SESSION), requests(0, 2))
    ledger.commit(ids, [b"\1" * 16] * 2)
    with pytest.raises(AssertionError, match="only reserved calls"):
        ledger.lose(ids)
    assert totals(ledger) == (2, 0, 0, 2)


def test_many_threads_share_a_budget_without_overshooting(ledger):
    session = ledger.start_session(SESSION)
    ledger.set_budget(TEACHER, "wrn_40_2", 50)

    def work(worker: int) -> int:
        made = 0
        for batch in range(5):
            try:
                ids = ledger.reserve(session, requests(1000 * worker + 10 * batch, 3))
            except BudgetRefused:
                continue
            ledger.commit(ids, [b"\1" * 16] * 3)
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
        ids = ledger.reserve(session, requests(10 * place, place % 3 + 1))
        counts[what] += len(ids)
        if what == "commit":
            ledger.commit(ids, [b"\2" * 16] * len(ids))
        elif what == "lose":
            ledger.lose(ids)
    assert totals(ledger) == (counts["commit"], counts["leave"], counts["lose"], sum(counts.values()))
    assert ledger_problems(ledger) == []
    ledger.close()


TAMPERINGS = {
    "an output digest": "UPDATE calls SET output_digest = x'00' WHERE id = 2",
    "a row number": "UPDATE calls SET row = 17 WHERE id = 2",
    "a status": "UPDATE calls SET status = 'lost' WHERE id = 2",
    "a deleted call": "DELETE FROM calls WHERE id = 2",
    "a settled call unsettled": "UPDATE calls SET status = 'reserved', settled_in = NULL WHERE id = 2",
    "a total": "UPDATE accounts SET committed = committed - 1",
    "a budget": "UPDATE accounts SET budget = 1000000",
    "an entry's time": "UPDATE entries SET at = '1999-01-01' WHERE seq = 3",
    "an entry's content": "UPDATE entries SET payload = replace(payload, '4', '5') WHERE seq = 4",
    "a deleted entry": "DELETE FROM entries WHERE seq = 3",
    "who called": "UPDATE sessions SET device = 'abacus'",
    "a deleted account": "DELETE FROM accounts",
}


@pytest.mark.parametrize("tampering", TAMPERINGS)
def test_tampering_is_found(tmp_path, tampering):
    path = tmp_path / "ledger.sqlite"
    ledger = Ledger(path, create=True)
    session = ledger.start_session(SESSION)
    ledger.set_budget(TEACHER, "wrn_40_2", 100)
    ledger.commit(ledger.reserve(session, requests(0, 4)), [b"\1" * 16] * 4)
    assert ledger_problems(ledger) == []
    ledger.close()
    database = sqlite3.connect(path)
    with database:
        assert database.execute(TAMPERINGS[tampering]).rowcount > 0
    database.close()
    ledger = Ledger(path)
    assert ledger_problems(ledger) != []
    ledger.close()


def test_the_head_changes_with_every_entry(ledger):
    heads = [ledger.head()]
    session = ledger.start_session(SESSION)
    heads.append(ledger.head())
    ids = ledger.reserve(session, requests(0, 1))
    heads.append(ledger.head())
    ledger.commit(ids, [b"\1" * 16])
    heads.append(ledger.head())
    assert len(set(heads)) == 4


def test_calls_are_listed_with_who_and_when(ledger):
    ids = ledger.reserve(ledger.start_session(SESSION), requests(0, 3))
    ledger.commit(ids[:1], [b"\7" * 16])
    rows = list(ledger.list_calls())
    assert [row["status"] for row in rows] == ["committed", "reserved", "reserved"]
    assert rows[0]["output_digest"] == "07" * 16
    assert rows[0]["settled_at"] >= rows[0]["reserved_at"]
    assert rows[1]["settled_at"] is None
    assert [row["id"] for row in ledger.list_calls(status="reserved", limit=1, offset=1)] == [ids[2]]


def test_two_teachers_have_separate_accounts(ledger):
    other = replace(SESSION, teacher="cd" * 32, teacher_name="vgg8")
    ledger.reserve(ledger.start_session(SESSION), requests(0, 2))
    ledger.reserve(ledger.start_session(other), requests(0, 3))
    assert ledger.summary().spent == 5
    assert ledger.summary(TEACHER).spent == 2
    assert ledger.teachers() == {TEACHER: "wrn_40_2", "cd" * 32: "vgg8"}


def test_a_ledger_is_read_where_nothing_can_be_written(ledger, tmp_path, monkeypatch):
    ledger.reserve(ledger.start_session(SESSION), requests(0, 3))
    ledger.close()
    before = sorted(path.name for path in tmp_path.iterdir())
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    reader = Ledger(tmp_path / "ledger.sqlite")
    assert reader.summary().reserved == 3
    with pytest.raises(StoreUnreadable, match="readonly|read-only"):
        reader.start_session(SESSION)
    reader.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == before


@pytest.mark.parametrize("url", ["", "sqlite://", "sqlite:///:memory:", "sqlite:///x?mode=memory&uri=true"])
def test_a_ledger_that_would_not_last_is_refused(url):
    with pytest.raises(InvalidInput, match="names no ledger|would be lost"):
        Ledger(url, create=True)


@pytest.mark.parametrize("url", ["mysql+nothing://x/y", "://", "postgresql://"])
def test_an_unusable_url_is_a_sentence(url):
    with pytest.raises((InvalidInput, StoreUnreadable)):
        Ledger(url)


def test_a_password_is_not_shown(tmp_path):
    assert "secret" not in str(sa.make_url("postgresql://me:secret@host/db"))


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
