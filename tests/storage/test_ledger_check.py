"""A ledger is checked in the same memory whatever its size; what is found in it is in test_ledger.py."""

from __future__ import annotations

import tracemalloc
from contextlib import closing

import pytest

from storage.database import Database
from storage.ledger import Ledger
from storage.ledger_chain import Seal
from storage.ledger_check import ledger_problems
from storage.ledger_journal import append_entry
from tests.ledgers import make_session
from tests.storage.test_ledger import commit, reserve, tamper

LONG = "x" * 10_000
ENTRIES = 1000


def test_a_long_journal_is_checked_in_little_memory(tmp_path):
    path = tmp_path / "ledger.sqlite"
    Ledger(path, create=True).close()
    with closing(Database(path, create=False, patience_seconds=0.0)) as database:
        runs = [{"run": number, "text": LONG} for number in range(ENTRIES)]
        database.write(lambda connection: [append_entry(connection, Seal(None), "run", run) for run in runs])
    with closing(Ledger(path)) as ledger:
        tracemalloc.start()
        assert ledger_problems(ledger) == []
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < 0.6 * ENTRIES * len(LONG)


OUT_OF_ORDER = {
    "a call in a later entry": (
        "UPDATE calls SET reserved_in = 5 WHERE id = 2",
        ["calls 1-1 differ from what ledger entry 3 reserved", "calls 2-2 differ from what ledger entry 5 reserved"],
    ),
    "a call in an earlier entry": (
        "UPDATE calls SET reserved_in = 3 WHERE id = 5",
        ["calls 5-5 differ from what ledger entry 3 reserved", "calls 4-4 differ from what ledger entry 5 reserved"],
    ),
    "calls of an entry in none": (
        "UPDATE calls SET settled_in = 1 WHERE id < 4",
        [
            "calls 1-3 differ from what ledger entry 1 settled",
            "the calls that ledger entry 4 settled are missing or no longer settled",
        ],
    ),
}


@pytest.mark.parametrize("case", OUT_OF_ORDER)
def test_calls_that_name_another_entry_are_told_by_both(tmp_path, case):
    path = tmp_path / "ledger.sqlite"
    statement, sentences = OUT_OF_ORDER[case]
    with closing(Ledger(path, create=True)) as ledger:
        session = ledger.start_session(make_session())
        commit(ledger, reserve(ledger, session, 0, 3))
        reserve(ledger, session, 3, 3)
    tamper(f"sqlite:///{path}", statement)
    with closing(Ledger(path)) as ledger:
        problems = "\n".join(ledger_problems(ledger))
    assert [sentence for sentence in sentences if sentence not in problems] == [], problems
