"""Calls are found by what is asked of them, and not by going through all that a ledger has."""

from __future__ import annotations

import sqlite3
from contextlib import closing

import pytest
import sqlalchemy as sa

from ground.errors import StoreUnreadable
from storage.ledger import Ledger
from storage.ledger_calls import streamed
from storage.ledger_tables import entries
from tests.ledgers import TEACHER, make_session
from tests.storage.test_ledger import commit, requests, reserve

OURS, THEIRS = "5" * 32, "6" * 32


@pytest.fixture
def ledger(tmp_path):
    """Calls 1-3 and 7-9 are of one store, and 4-6 of another; the last three of both are not committed."""
    with closing(Ledger(tmp_path / "ledger.sqlite", create=True)) as opened:
        sessions = [opened.start_session(make_session(store=store)) for store in (OURS, THEIRS, OURS)]
        for place, session in enumerate(sessions):
            ids = reserve(opened, session, 3 * place, 3)
            commit(opened, ids if place == 0 else [])
        yield opened


def test_calls_of_a_store_come_from_all_of_its_sessions_in_the_order_they_were_charged(ledger):
    assert [call.id for call in ledger.calls_of_store(OURS, "committed")] == [1, 2, 3]
    assert [call.id for call in ledger.calls_of_store(OURS, "reserved")] == [7, 8, 9]
    assert [call.id for call in ledger.calls_of_store(THEIRS, "reserved")] == [4, 5, 6]
    assert ledger.calls_of_store("7" * 32, "reserved") == []
    assert [call.id for call in ledger.unsettled_calls(2)] == [4, 5, 6]


def test_calls_for_rows_that_a_store_lacks_are_found_among_its_own(ledger):
    assert [call.row for call in ledger.calls_of_store(OURS, "committed")] == [0, 1, 2]
    assert [call.row for call in ledger.calls_outside(OURS, 1)] == [1, 2]
    assert ledger.calls_outside(OURS, 3) == [], "those that are only reserved are not committed"
    assert ledger.calls_outside(THEIRS, 0) == []


@pytest.mark.parametrize("changed", ["row = -1", "view = -1", "input_digest = x'00'", "output_digest = x'00'"])
def test_a_committed_call_that_no_release_recorded_is_refused_whatever_its_row(ledger, tmp_path, changed):
    with closing(sqlite3.connect(tmp_path / "ledger.sqlite")) as file, file:
        file.execute(f"UPDATE calls SET {changed} WHERE id = 1")
    with pytest.raises(StoreUnreadable, match="call 1 of the ledger is no call that any release recorded"):
        ledger.calls_outside(OURS, 100)
    assert ledger.calls_outside(THEIRS, 100) == []


@pytest.mark.parametrize(
    "ask",
    [
        lambda ledger: ledger.calls_of_store(OURS, "reserved"),
        lambda ledger: ledger.calls_of_store(OURS, "committed"),
        lambda ledger: ledger.calls_outside(OURS, 1),
        lambda ledger: ledger.unsettled_calls(1),
        lambda ledger: ledger.known_calls(TEACHER, "fp32", [request.input_digest for request in requests(0, 4)]),
        lambda ledger: commit(ledger, [7]),
        lambda ledger: reserve(ledger, 1, 20, 2),
    ],
)
def test_no_question_of_a_builder_goes_through_all_calls(ledger, ask):
    asked: list[tuple[str, object]] = []

    def note(connection, cursor, statement, parameters, context, executemany):
        asked.append((statement, parameters[0] if executemany else parameters))

    sa.event.listen(sa.Engine, "before_cursor_execute", note)
    try:
        ask(ledger)
    finally:
        sa.event.remove(sa.Engine, "before_cursor_execute", note)
    about_calls = [(statement, values) for statement, values in asked if "calls" in statement]
    assert about_calls
    with ledger.reading() as connection:
        for statement, values in about_calls:
            plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", values).all()
            assert not [step for *_, step in plan if step.startswith("SCAN calls")], statement


def test_rows_that_are_not_read_to_the_end_leave_nothing_open(postgres):
    with closing(Ledger(postgres.new_database(), create=True)) as ledger, ledger.reading() as connection:
        rows = streamed(connection, sa.select(entries).order_by(entries.c.seq))
        assert next(rows).kind == "genesis"
        rows.close()
        assert connection.exec_driver_sql("SELECT count(*) FROM pg_cursors").scalar() == 0
