"""Ledgers of schema 2 are read as they are, and brought up to schema 3 whole or not at all, with nothing deleted."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy as sa

import storage.ledger_migrations as migrations
from ground.errors import InvalidInput, OlderFormat, StoreUnreadable
from storage.bill import Bill, Billed, FailureKind
from storage.database import parse_url, sqlite_path
from storage.ledger import Ledger
from storage.ledger_chain import GENESIS, Seal
from storage.ledger_check import ledger_problems
from storage.ledger_migrations import SCHEMA_VERSION, bring_forward, tables_of
from storage.ledger_report import CallFilter, budget_history, count_calls, list_calls, teacher_seconds
from storage.ledger_schema import look_at_schema
from storage.ledger_spending import spending_by, spending_of_teachers
from storage.witness import Witness
from tests.ledgers import TEACHER
from tests.storage.old_formats import SCHEMA_2, unpack
from tests.storage.test_ledger import SESSION, requests, tamper

OTHER = "cd" * 32


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """What an earlier release made; treat it as read-only."""
    return unpack(SCHEMA_2, tmp_path_factory.mktemp("old"))


@pytest.fixture
def old_url(made, ledger_url) -> str:
    """That ledger, in a database of each kind: on a server with the same tables and rows."""
    path, source = sqlite_path(parse_url(ledger_url)), made / "shared.sqlite"
    if path is not None:
        path.write_bytes(source.read_bytes())
        return ledger_url
    tables = tables_of(2).metadata
    file, server = sa.create_engine(f"sqlite:///{source}"), sa.create_engine(parse_url(ledger_url))
    with file.connect() as old, server.begin() as new:
        tables.create_all(new)
        for table in tables.sorted_tables:
            rows = [dict(row) for row in old.execute(sa.select(table)).mappings()]
            if rows:
                new.execute(sa.insert(table), rows)
    file.dispose()
    server.dispose()
    return ledger_url


def rows_of(ledger: Ledger) -> dict[str, list]:
    """All that schema 2 knew, as it is now."""
    tables = tables_of(2).metadata.sorted_tables
    with ledger.reading() as connection:
        return {
            table.name: [tuple(row) for row in connection.execute(sa.select(table).order_by(*table.primary_key))]
            for table in tables
        }


def test_a_database_that_is_brought_forward_is_as_one_that_is_made_anew(old_url):
    with closing(Ledger(old_url)) as ledger:
        assert ledger.schema_problems() == []
        ledger.upgrade()
        with ledger.reading() as connection:
            schema = look_at_schema(connection)
        assert (schema.differences(), schema.version) == ([], SCHEMA_VERSION)


def test_an_older_ledger_is_read_and_verified_as_it_is(old_url):
    with closing(Ledger(old_url)) as ledger:
        before = rows_of(ledger)
        assert (ledger.version, ledger.is_older) == (2, True)
        assert ledger_problems(ledger) == []
        summary = ledger.summary(TEACHER)
        assert (summary.committed, summary.reserved, summary.lost, summary.spent) == (7, 0, 3, 10)
        assert (summary.budget, summary.returned, summary.cost_micros, summary.budget_micros) == (20, 0, 0, None)
        assert ledger.summary(OTHER).reserved == 3
        listed = list(list_calls(ledger))
        assert [row["status"] for row in listed] == ["lost"] + ["committed"] * 3 + ["lost"] * 2 + ["committed"] * 4 + [
            "reserved"
        ] * 3
        assert {row[name] for row in listed for name in ("billed", "cost_micros", "model", "failure")} == {None}
        assert count_calls(ledger, CallFilter(status="lost")) == 3
        assert [change["to"] for change in budget_history(ledger, TEACHER)] == [30, 20]
        assert teacher_seconds(ledger) == {TEACHER: 1.0}
        assert spending_of_teachers(ledger) == {}
        assert {name: spent.attempts for name, spent in spending_by(ledger, "model").items()} == {
            "vgg8": 3,
            "wrn_40_2": 10,
        }
        known = ledger.known_calls(TEACHER, "fp32", [request.input_digest for request in requests(0, 6)])
        assert sorted(len(calls) for calls in known.values()) == [1, 1, 1, 2, 2]
        assert rows_of(ledger) == before


def test_nothing_is_recorded_in_an_older_ledger(old_url):
    with closing(Ledger(old_url, create=True)) as ledger:
        head = ledger.head()
        attempts = (
            ledger.require_recordable,
            lambda: ledger.start_session(SESSION),
            lambda: ledger.set_budget(TEACHER, "wrn_40_2", 99),
            lambda: ledger.beat(2),
            lambda: ledger.commit({11: bytes(16)}),
            lambda: ledger.settle_unknown({1: Bill(billed=Billed.NO)}, "f" * 64),
        )
        for attempt in attempts:
            with pytest.raises(
                OlderFormat, match=r"is of schema 2, .*; bring it up to schema 3 with: ckd-cache upgrade --ledger "
            ):
                attempt()
        assert ledger.head() == head


def test_an_upgrade_keeps_every_row_and_adds_one_entry(old_url):
    with closing(Ledger(old_url)) as ledger:
        before, listed = rows_of(ledger), list(list_calls(ledger))
        summaries = [ledger.summary(), ledger.summary(TEACHER)]
        assert ledger.upgrade() == 2
        assert not ledger.is_older
        after = rows_of(ledger)
        (entry,) = after["entries"][len(before["entries"]) :]
        assert entry[1:4:2] == ("schema", '{"from":2,"to":3}')
        after["entries"].remove(entry)
        assert after == before
        assert list(list_calls(ledger)) == listed
        heads = {summary.head for summary in summaries}
        now = [ledger.summary(), ledger.summary(TEACHER)]
        assert [summary.spent for summary in now] == [summary.spent for summary in summaries]
        assert heads.isdisjoint({ledger.head()})
        assert ledger_problems(ledger) == []
        assert ledger.upgrade() == SCHEMA_VERSION
        assert rows_of(ledger)["entries"][-1] == entry, "once"
    with closing(Ledger(old_url)) as ledger:
        assert ledger.version == SCHEMA_VERSION
        assert ledger.entry_number(next(iter(heads))) == len(before["entries"])


def test_a_ledger_that_was_upgraded_goes_on_with_attempts_and_money(old_url):
    with closing(Ledger(old_url)) as ledger:
        ledger.upgrade()
        session = ledger.start_session(SESSION)
        assert ledger.reserve(session, requests(1, 2)).ids == {}, "what was paid for before is paid for"
        ledger.set_budget(TEACHER, "wrn_40_2", None, cost_micros=1000)
        ids = sorted(ledger.reserve(session, requests(30, 3), upper_micros=100).ids.values())
        assert ids == [14, 15, 16]
        ledger.commit({ids[0]: b"\1" * 16}, 0.1, {ids[0]: Bill(billed=Billed.YES, cost_micros=60)})
        ledger.lose(ids[1:])
        summary = ledger.summary(TEACHER)
        assert (summary.spent, summary.cost_micros, summary.remaining_micros) == (13, 260, 740)
        assert (summary.budget, summary.remaining) == (20, 7)
        assert ledger_problems(ledger) == []


def test_a_builder_that_was_at_work_meanwhile_goes_on(old_url):
    """One of an earlier release, whose statements say nothing of the new columns."""
    with closing(Ledger(old_url)) as ledger:
        ledger.upgrade()
        calls = tables_of(2).metadata.tables["calls"]
        row = next(row for row in rows_of(ledger)["calls"] if row[0] == 13)
        fields = dict(zip((column.name for column in calls.columns), row, strict=True))
    engine = sa.create_engine(parse_url(old_url))
    with engine.begin() as connection:
        connection.execute(sa.insert(calls).values(fields | {"id": 14, "input_digest": b"\7" * 16}))
        assert connection.execute(sa.text("SELECT upper_micros FROM calls WHERE id = 14")).scalar() == 0
    engine.dispose()


@pytest.mark.parametrize("statement", [0, 3, 5, 7, 8])
def test_an_upgrade_that_fails_in_the_middle_leaves_the_older_ledger(old_url, monkeypatch, statement):
    with closing(Ledger(old_url)) as ledger:
        before = rows_of(ledger)
        with monkeypatch.context() as broken:
            steps = (*migrations.STEPS[2][:statement], "SELECT no_such_column FROM calls")
            broken.setitem(migrations.STEPS, 2, steps)
            with pytest.raises(StoreUnreadable):
                ledger.upgrade()
    with closing(Ledger(old_url)) as ledger:
        assert (ledger.version, ledger.schema_problems(), rows_of(ledger)) == (2, [], before)
        assert ledger_problems(ledger) == []
        ledger.upgrade()
        assert ledger_problems(ledger) == []


_KILLED = """
import os, signal, sys
import storage.ledger as module
from storage.ledger import Ledger
ledger = Ledger(sys.argv[1])
name = sys.argv[2]
original = getattr(ledger, name) if name == "_append" else getattr(module, name)
def die(*arguments):
    original(*arguments)
    os.kill(os.getpid(), signal.SIGKILL)
setattr(ledger if name == "_append" else module, name, die)
ledger.upgrade()
"""


@pytest.mark.parametrize("step", ["bring_forward", "_append", "look_at"])
def test_an_upgrade_that_is_killed_leaves_one_ledger_or_the_other(made, tmp_path, step):
    path = tmp_path / "shared.sqlite"
    path.write_bytes((made / "shared.sqlite").read_bytes())
    killed = subprocess.run([sys.executable, "-c", _KILLED, str(path), step])
    assert killed.returncode == -signal.SIGKILL
    with closing(Ledger(path)) as ledger:
        assert ledger.version == (3 if step == "look_at" else 2)
        assert ledger_problems(ledger) == []
        ledger.upgrade()
        assert ledger_problems(ledger) == []
        ledger.start_session(SESSION)


def test_an_input_that_was_returned_may_be_asked_again_only_after_the_upgrade(old_url):
    """The index is made anew: until then it would take a call that is returned for one that stands."""
    with closing(Ledger(old_url)) as ledger:
        ledger.upgrade()
        session = ledger.start_session(SESSION)
        for _ in range(2):
            (id_,) = ledger.reserve(session, requests(40, 1)).ids.values()
            ledger.fail({id_: Bill(billed=Billed.NO, failure=FailureKind.NOT_SENT)})
        assert ledger.summary(TEACHER).returned == 2
        assert ledger_problems(ledger) == []


def test_a_sealed_ledger_is_brought_up_with_its_key_alone(tmp_path, monkeypatch):
    path = tmp_path / "ledger.sqlite"
    monkeypatch.setenv("CKD_LEDGER_KEY", "a key")
    _begin_schema_2(path)
    monkeypatch.delenv("CKD_LEDGER_KEY")
    with closing(Ledger(path)) as ledger:
        with pytest.raises(InvalidInput, match="sealed with a key; set it"):
            ledger.upgrade()
        assert ledger.version == 2
    monkeypatch.setenv("CKD_LEDGER_KEY", "a key")
    with closing(Ledger(path)) as ledger:
        ledger.upgrade()
        assert ledger_problems(ledger) == []


def _begin_schema_2(path: Path) -> None:
    """A ledger as an earlier release began it, with the key that is set."""
    Ledger(path, create=True).close()
    seal, at, payload = Seal.from_environment(), "2026-01-01T00:00:00.000+00:00", '{"id":"0","schema":2,"seal":"%s"}'
    payload %= seal.name
    with closing(sqlite3.connect(path)) as database:
        names = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        for name in names:
            database.execute(f"DROP TABLE {name}")
    engine = sa.create_engine(f"sqlite:///{path}")
    with engine.begin() as connection:
        metadata = tables_of(2).metadata
        metadata.create_all(connection)
        values = (1, "genesis", at, payload, GENESIS, seal.hash(1, "genesis", at, payload, GENESIS))
        connection.execute(sa.insert(metadata.tables["entries"]).values(values))
    engine.dispose()


def test_a_witness_follows_an_upgrade_and_finds_its_undoing(made, tmp_path):
    path, aside = tmp_path / "shared.sqlite", tmp_path / "aside.sqlite"
    path.write_bytes((made / "shared.sqlite").read_bytes())
    aside.write_bytes(path.read_bytes())
    with closing(Ledger(path)) as ledger:
        Witness(ledger, own=False).advance()
        ledger.upgrade()
        Witness(ledger, own=False).require_newest()
        Witness(ledger, own=False).advance()
    with closing(Ledger(aside)) as ledger:
        found = Witness(ledger, own=False).disagreement()
        assert found is not None
        assert not found.is_fork


DAMAGES = {
    "a column that no release made": (
        "ALTER TABLE calls ADD COLUMN price integer DEFAULT 7",
        "it has column calls.price",
    ),
    "an index that is gone": ("DROP INDEX calls_by_session", "it has no index calls_by_session"),
    "what another schema has": (
        "ALTER TABLE calls ADD COLUMN upper_micros integer",
        "it has column calls.upper_micros",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_an_older_ledger_that_is_not_as_releases_made_it_is_not_brought_up(old_url, damage):
    statement, named = DAMAGES[damage]
    tamper(old_url, statement)
    with closing(Ledger(old_url)) as ledger:
        with pytest.raises(StoreUnreadable, match=f"which is not as any release makes it: {named}"):
            ledger.upgrade()
        assert ledger.version == 2


@pytest.mark.parametrize(
    ("statement", "sentence"),
    [
        ("UPDATE entries SET payload = replace(payload, '3', '4') WHERE kind = 'schema'", "newer release"),
        ("UPDATE entries SET payload = '[]' WHERE kind = 'schema'", "not of schema 2 to 3"),
        ("DROP TABLE bills", "it has no table bills"),
    ],
)
def test_a_chain_and_tables_that_differ_are_refused(old_url, statement, sentence):
    with closing(Ledger(old_url)) as ledger:
        ledger.upgrade()
    tamper(old_url, statement)
    with pytest.raises(StoreUnreadable, match=sentence):
        Ledger(old_url)


def test_an_upgrade_whose_entry_was_cut_off_is_found(old_url):
    with closing(Ledger(old_url)) as ledger:
        ledger.upgrade()
    tamper(old_url, "DELETE FROM entries WHERE kind = 'schema'")
    with closing(Ledger(old_url)) as ledger:
        assert any("not as any release makes it" in problem for problem in ledger_problems(ledger))
        with pytest.raises(StoreUnreadable, match="nothing is recorded"):
            ledger.start_session(SESSION)


def test_a_servers_table_by_the_name_of_a_new_one_stops_an_upgrade(postgres, made):
    url = postgres.new_database()
    engine = sa.create_engine(parse_url(url))
    with engine.begin() as connection:
        tables_of(2).metadata.create_all(connection)
        connection.exec_driver_sql("CREATE TABLE bills (number text)")
        source = sa.create_engine(f"sqlite:///{made / 'shared.sqlite'}")
        entries = tables_of(2).metadata.tables["entries"]
        with source.connect() as old:
            connection.execute(sa.insert(entries), [dict(row) for row in old.execute(sa.select(entries)).mappings()])
        source.dispose()
    engine.dispose()
    with closing(Ledger(url)) as ledger:
        with pytest.raises(StoreUnreadable, match='relation "bills" already exists'):
            ledger.upgrade()
        assert ledger.version == 2


def test_steps_lead_from_one_schema_to_the_tables_of_the_next():
    engine = sa.create_engine("sqlite://")
    with engine.begin() as connection:
        tables_of(2).metadata.create_all(connection)
        bring_forward(connection, 2)
        bring_forward(connection, SCHEMA_VERSION)
        assert sa.inspect(connection).get_table_names() == sorted(tables_of(SCHEMA_VERSION).metadata.tables)
    engine.dispose()
