"""A ledger is recorded in only where its tables are what a release makes, and nothing is made in what is another's."""

from __future__ import annotations

import re
import sqlite3
from contextlib import closing

import pytest
import sqlalchemy as sa

from ground.errors import StoreUnreadable
from storage.database import parse_url, sqlite_path
from storage.ledger import Ledger, ledger_exists
from storage.ledger_check import ledger_problems
from storage.ledger_records import CallRequest
from tests.ledgers import TEACHER, make_session

SESSION = make_session()
_UNIQUE = "DROP INDEX one_call_per_input; CREATE UNIQUE INDEX one_call_per_input ON calls"
_NO_KEY = "ALTER TABLE leases DROP CONSTRAINT leases_session_fkey"
_FUNCTION = "CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'; "

# Name -> what was done, and what the sentence names.
ON_BOTH = {
    "a plain index by the name of the unique one": (
        f"{_UNIQUE} (account, input_digest, repeat) WHERE status != 'lost'".replace("UNIQUE ", ""),
        "its index one_call_per_input is INDEX",
    ),
    "no index": ("DROP INDEX one_call_per_input", "it has no index one_call_per_input"),
    "an index without its condition": (f"{_UNIQUE} (account, input_digest, repeat)", "its index one_call_per_input is"),
    "an index on more": (
        f"{_UNIQUE} (account, input_digest, repeat, id) WHERE status != 'lost'",
        "its index one_call_per_input is",
    ),
    "an index with another condition": (
        f"{_UNIQUE} (account, input_digest, repeat) WHERE status != 'LOST'",
        "its index one_call_per_input is",
    ),
    "an index with a condition that looks alike": (
        f"{_UNIQUE} (account, input_digest, repeat) WHERE status != '\"lost\"'",
        "its index one_call_per_input is",
    ),
    "one unique index more": ("CREATE UNIQUE INDEX u ON calls (sample)", "it has index u"),
    "a slow ledger": ("DROP INDEX calls_by_session", "it has no index calls_by_session"),
    "one column more": ("ALTER TABLE calls ADD COLUMN price integer DEFAULT 7", "it has column calls.price"),
}
IN_A_FILE = {
    "a trigger": (
        "CREATE TRIGGER t AFTER INSERT ON calls BEGIN DELETE FROM leases; END",
        "it has trigger t (TRIGGER t AFTER INSERT",
    ),
    "a trigger by a name of SQLite's own": (
        (
            "PRAGMA writable_schema = 1; CREATE TRIGGER t AFTER INSERT ON calls BEGIN DELETE FROM leases; END; "
            "UPDATE sqlite_master SET name = 'sqlite_t', sql = replace(sql, 'TRIGGER t', 'TRIGGER sqlite_t') "
            "WHERE name = 't'"
        ),
        "it has trigger sqlite_t",
    ),
    "a view": ("CREATE VIEW v AS SELECT 1", "it has view v"),
    "another table": ("CREATE TABLE notes (a)", "it has table notes"),
}
ON_A_SERVER = {
    "a trigger": (
        _FUNCTION + "CREATE TRIGGER t BEFORE INSERT ON calls FOR EACH ROW EXECUTE FUNCTION f()",
        "it has trigger t on calls",
    ),
    "a rule": ("CREATE RULE r AS ON INSERT TO calls DO INSTEAD NOTHING", "it has rule r on calls"),
    "row security": ("ALTER TABLE calls ENABLE ROW LEVEL SECURITY", "it has row security on calls"),
    "a policy": ("CREATE POLICY p ON calls USING (id < 3)", "it has policy p on calls"),
    "foreign keys unchecked": ("ALTER TABLE calls DISABLE TRIGGER ALL", "it has a disabled check of foreign keys"),
    "a foreign key less": (
        "ALTER TABLE calls DROP CONSTRAINT calls_session_fkey",
        "it has no constraint FOREIGN KEY (session) REFERENCES sessions(id) on calls",
    ),
    "a foreign key that cascades": (
        f"{_NO_KEY}; ALTER TABLE leases ADD FOREIGN KEY (session) REFERENCES sessions(id) ON DELETE CASCADE",
        "ON DELETE CASCADE",
    ),
    "two accounts of a teacher": (
        "ALTER TABLE accounts DROP CONSTRAINT accounts_teacher_key",
        "it has no constraint UNIQUE (teacher) on accounts",
    ),
    "no primary key": ("ALTER TABLE entries DROP CONSTRAINT entries_pkey CASCADE", "it has no constraint"),
    "a check": ("ALTER TABLE calls ADD CHECK (id < 1000)", "it has constraint CHECK"),
    "a table that a crash empties": ("ALTER TABLE leases SET UNLOGGED", "it has unlogged table leases"),
    "an heir": ("CREATE TABLE heir () INHERITS (calls)", "it has inheritance of calls"),
    "an index that was given up": (
        "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'one_call_per_input'::regclass",
        "which is not valid",
    ),
}
# What queries of ours would fail on, or take for values of another type.
UNREADABLE = {
    "a column less": ("ALTER TABLE accounts DROP COLUMN budget", "it has no column accounts.budget"),
    "a table less": ("DROP TABLE leases", "it has no table leases"),
    "a column by another name": ("ALTER TABLE calls RENAME COLUMN sample TO image", "it has no column calls.sample"),
    "a view in place of a table": (
        "ALTER TABLE leases RENAME TO l; CREATE VIEW leases AS SELECT * FROM l",
        "it has no table leases",
    ),
}
UNREADABLE_ON_A_SERVER = {
    "another type": (
        "ALTER TABLE calls ALTER view TYPE bigint",
        "its column calls.view is bigint NOT NULL, not integer",
    ),
    "values that may be missing": (
        "ALTER TABLE calls ALTER status DROP NOT NULL",
        "its column calls.status is text, not",
    ),
    "a default": ("ALTER TABLE calls ALTER status SET DEFAULT 'lost'", "its column calls.status is text NOT NULL DEF"),
    "letters that are equal": ('ALTER TABLE calls ALTER status TYPE text COLLATE "C"', "COLLATE C"),
}


def run_sql(url: str, script: str) -> None:
    """What whoever may do anything to a database does to it."""
    path = sqlite_path(parse_url(url))
    if path is not None:
        with closing(sqlite3.connect(path)) as database:
            database.executescript(script)
        return
    engine = sa.create_engine(parse_url(url))
    with engine.begin() as connection:
        for statement in re.split("; ?(?=[A-Z])", script) if "plpgsql" not in script else [script]:
            connection.exec_driver_sql(statement)
    engine.dispose()


def tables_of(url: str) -> set[str]:
    engine = sa.create_engine(parse_url(url))
    with engine.connect() as connection:
        inspector = sa.inspect(connection)
        names = {*inspector.get_table_names(), *inspector.get_view_names()}
    engine.dispose()
    return names


@pytest.fixture
def made(ledger_url) -> str:
    """A ledger with three calls."""
    make_three_calls(ledger_url)
    return ledger_url


def require_read_and_not_recorded(url: str, script: str, named: str) -> None:
    run_sql(url, script)
    with closing(Ledger(url, create=True)) as ledger:
        head = ledger.head()
        assert ledger.summary().committed == 3
        problems = [problem for problem in ledger_problems(ledger) if "not as any release makes it" in problem]
        assert any(named in problem for problem in problems), problems
        attempts = (
            ledger.require_recordable,
            lambda: ledger.start_session(SESSION),
            lambda: ledger.set_budget(TEACHER, "wrn_40_2", 9),
            lambda: ledger.end_session(1),
            lambda: ledger.beat(1),
        )
        for attempt in attempts:
            with pytest.raises(StoreUnreadable, match="nothing is recorded in the ledger at .*; undo that, or bring"):
                attempt()
        assert ledger.head() == head


@pytest.mark.parametrize("case", ON_BOTH)
def test_a_ledger_of_another_schema_is_read_and_not_recorded_in(made, case):
    require_read_and_not_recorded(made, *ON_BOTH[case])


def test_an_index_that_is_made_again_as_it_was_is_the_same(made):
    run_sql(made, f"{_UNIQUE} (account, input_digest, repeat) WHERE status != 'lost' AND status != 'returned'")
    with closing(Ledger(made)) as ledger:
        ledger.require_recordable()
        assert ledger_problems(ledger) == []


@pytest.mark.parametrize("case", IN_A_FILE)
def test_a_file_that_holds_more_is_read_and_not_recorded_in(tmp_path, case):
    url = f"sqlite:///{tmp_path / 'ledger.sqlite'}"
    make_three_calls(url)
    require_read_and_not_recorded(url, *IN_A_FILE[case])


@pytest.mark.parametrize("case", ON_A_SERVER)
def test_a_servers_tables_that_are_not_as_they_were_are_read_and_not_recorded_in(postgres, case):
    url = postgres.new_database()
    make_three_calls(url)
    require_read_and_not_recorded(url, *ON_A_SERVER[case])


def make_three_calls(url: str) -> None:
    with closing(Ledger(url, create=True)) as ledger:
        session = ledger.start_session(SESSION)
        reservation = ledger.reserve(session, [CallRequest(bytes([place]) * 16, place, place, 0) for place in range(3)])
        ledger.commit(dict.fromkeys(reservation.ids.values(), bytes(16)))
        assert ledger_problems(ledger) == []


def require_refused(url: str, script: str, named: str) -> None:
    run_sql(url, script)
    before = tables_of(url)
    for create in (False, True):
        with pytest.raises(StoreUnreadable, match="no ledger that any release made: ") as refused:
            Ledger(url, create=create)
        assert named in str(refused.value)
    assert tables_of(url) == before


@pytest.mark.parametrize("case", UNREADABLE)
def test_tables_that_cannot_be_read_as_a_ledgers_are_refused(made, case):
    require_refused(made, *UNREADABLE[case])


@pytest.mark.parametrize("case", UNREADABLE_ON_A_SERVER)
def test_a_servers_columns_of_another_kind_are_refused(postgres, case):
    url = postgres.new_database()
    make_three_calls(url)
    require_refused(url, *UNREADABLE_ON_A_SERVER[case])


@pytest.mark.parametrize(
    ("old", "new"), [("STRICT", ""), ("sample INTEGER", "sample TEXT"), ("status TEXT NOT NULL", "status TEXT")]
)
def test_a_files_tables_of_another_kind_are_refused(tmp_path, old, new):
    path = tmp_path / "ledger.sqlite"
    make_three_calls(f"sqlite:///{path}")
    with closing(sqlite3.connect(path)) as database, database:
        (sql,) = database.execute("SELECT sql FROM sqlite_master WHERE name = 'calls'").fetchone()
        assert old in sql
        database.execute("DROP TABLE calls")
        database.execute(sql.replace(old, new))
    with pytest.raises(StoreUnreadable, match="no ledger that any release made: its (table|column) calls"):
        Ledger(path)


def test_columns_in_another_order_are_the_same_columns(tmp_path):
    path = tmp_path / "ledger.sqlite"
    Ledger(path, create=True).close()
    with closing(sqlite3.connect(path)) as database, database:
        (sql,) = database.execute("SELECT sql FROM sqlite_master WHERE name = 'leases'").fetchone()
        database.execute("DROP TABLE leases")
        first, second = "host TEXT NOT NULL", "beat INTEGER NOT NULL"
        database.execute(sql.replace(first, "x").replace(second, first).replace("x,", f"{second},"))
    make_three_calls(f"sqlite:///{path}")


OTHERS = {
    "the same names": "CREATE TABLE calls (number text, duration integer)",
    "most of the same names": (
        "CREATE TABLE entries (seq bigint); CREATE TABLE accounts (id bigint); CREATE TABLE sessions (id text)"
    ),
    "a view": "CREATE VIEW accounts AS SELECT 1 AS id",
}


@pytest.mark.parametrize("case", OTHERS)
def test_nothing_is_made_in_another_applications_database(ledger_url, case):
    path = sqlite_path(parse_url(ledger_url))
    run_sql(ledger_url, OTHERS[case])
    tables, content = tables_of(ledger_url), None if path is None else path.read_bytes()
    for attempt in (lambda: Ledger(ledger_url, create=True), lambda: ledger_exists(ledger_url)):
        with pytest.raises(StoreUnreadable, match="damaged, or another program's.*nothing was changed in it; name ano"):
            attempt()
    assert tables_of(ledger_url) == tables
    if path is not None:
        assert path.read_bytes() == content, "not even its mode"
        assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_nothing_is_made_in_another_programs_file(tmp_path):
    path = tmp_path / "places.sqlite"
    run_sql(f"sqlite:///{path}", "CREATE TABLE bookmarks (url); INSERT INTO bookmarks VALUES ('x')")
    content = path.read_bytes()
    with pytest.raises(StoreUnreadable, match="another program's, and no ledger .*nothing was changed in it"):
        Ledger(path, create=True)
    assert path.read_bytes() == content


def test_a_servers_database_may_hold_other_tables_beside_the_ledger(postgres):
    url = postgres.new_database()
    run_sql(url, "CREATE TABLE bookmarks (url text)")
    assert not ledger_exists(url)
    make_three_calls(url)
    assert ledger_exists(url)


def test_an_index_of_our_name_elsewhere_leaves_nothing_half_made(postgres):
    url = postgres.new_database()
    run_sql(url, "CREATE TABLE bookmarks (url text); CREATE INDEX calls_by_session ON bookmarks (url)")
    with pytest.raises(StoreUnreadable, match='relation "calls_by_session" already exists'):
        Ledger(url, create=True)
    assert tables_of(url) == {"bookmarks"}


def test_inputs_that_were_paid_twice_are_counted_whatever_the_index_says(made):
    """What two builders left who both paid, each by a session that the chain vouches for."""
    run_sql(made, "DROP INDEX one_call_per_input")
    run_sql(
        made,
        "INSERT INTO calls SELECT id + 3, session, account, input_digest, repeat, sample, row, view, status,"
        " output_digest, reserved_in, settled_in, revoked_in, upper_micros FROM calls WHERE id < 3",
    )
    with closing(Ledger(made)) as ledger:
        assert any(
            "2 input(s) were paid for more than once, by 4 calls that are not lost, the first of them call 1" in problem
            for problem in ledger_problems(ledger)
        )


def test_lost_calls_and_repeats_are_no_duplicates(made):
    with closing(Ledger(made)) as ledger:
        ledger.revoke([1])
        session = ledger.start_session(SESSION)
        again = [CallRequest(bytes([place]) * 16, place, place, 0) for place in range(2)]
        assert list(ledger.reserve(session, again, frozenset({"layer1"})).ids.values()) == [4, 5]
        assert ledger_problems(ledger) == []
