"""A ledger against a provider's bill: what agrees, what does not, and what the bill decides of unknown calls."""

from __future__ import annotations

import json
import re
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from storage.bill import Bill, Billed, FailureKind
from storage.ledger import Ledger
from storage.ledger_check import ledger_problems
from storage.ledger_records import CallRequest
from storage.ledger_report import list_calls
from teacher_cache.cli import main
from tests.ledgers import make_session
from tests.storage.old_formats import SCHEMA_2, unpack
from tests.storage.test_ledger import tamper

UPPER = 5000
SESSION = make_session(teacher_name="gpt", purpose="build")
UNKNOWN = Bill(billed=Billed.UNKNOWN, failure=FailureKind.UNKNOWN)


def paid(request_id: str | None, cost: int, **fields: object) -> Bill:
    return Bill(billed=Billed.YES, cost_micros=cost, request_id=request_id, **fields)


def fill(url: str | Path, bills: list[Bill]) -> None:
    """One call for each bill, in order: those without a failure are committed."""
    with closing(Ledger(url, create=True)) as ledger:
        session = ledger.start_session(SESSION)
        for place, bill in enumerate(bills):
            request = CallRequest(place.to_bytes(16, "big"), place, place, 0)
            (id_,) = ledger.reserve(session, [request], upper_micros=UPPER).ids.values()
            if bill.failure is None:
                ledger.commit({id_: bytes(16)}, 0.1, {id_: bill})
            else:
                ledger.fail({id_: bill})


@pytest.fixture(autouse=True)
def no_shared_ledger(monkeypatch):
    monkeypatch.delenv("CKD_LEDGER", raising=False)


@pytest.fixture
def url(tmp_path) -> str:
    return f"sqlite:///{tmp_path / 'shared.sqlite'}"


def write(tmp_path: Path, rows: dict[str, str], header: str = "request_id,cost") -> Path:
    path = tmp_path / "bill.csv"
    path.write_text("\n".join([header, *(f"{id_},{cost}" for id_, cost in rows.items())]) + "\n")
    return path


def run(*arguments: object):
    words = [str(argument) for argument in arguments]
    return CliRunner(env={"COLUMNS": "250"}).invoke(main, ["ledger", "reconcile", *words])


def read(*arguments: object, exit_code: int) -> dict:
    result = run(*arguments, "--json")
    assert result.exit_code == exit_code, (result.stdout, result.stderr, result.exception)
    return json.loads(result.stdout)


def statuses(url: str) -> list[tuple[str, str, int]]:
    with closing(Ledger(url)) as ledger:
        assert ledger_problems(ledger) == []
        return [(row["status"], row["billed"], row["cost_micros"]) for row in list_calls(ledger)]


def test_a_ledger_and_a_bill_that_say_the_same_agree(url, tmp_path):
    fill(url, [paid("r-1", 1200), paid("r-2", 1), Bill(billed=Billed.NO, failure=FailureKind.RATE_LIMITED)])
    bill = write(tmp_path, {"r-1": "0.0012", "r-2": "0.0000004"})
    found = read(bill, "--ledger", url, exit_code=0)
    assert (found["agrees"], found["matched"], found["settled"]) == (True, 2, 0)
    assert (found["ledger_micros"], found["bill_micros"]) == (1201, 1201)
    assert "they agree" in run(bill, "--ledger", url).stdout


def test_each_kind_of_disagreement_is_named(url, tmp_path):
    fill(url, [paid("r-1", 1200), paid("r-2", 300), paid("r-3", 50), paid(None, 7)])
    bill = write(tmp_path, {"r-1": "0.0012", "r-2": "0.0004", "r-9": "0.5"})
    found = read(bill, "--ledger", url, exit_code=1)
    assert found["matched"] == 1
    assert found["differs"] == [{"request_id": "r-2", "calls": [2], "ledger_micros": 300, "bill_micros": 400}]
    assert found["not_in_ledger"] == [{"request_id": "r-9", "calls": [], "ledger_micros": None, "bill_micros": 500_000}]
    assert found["not_in_bill"] == [{"request_id": "r-3", "calls": [3], "ledger_micros": 50, "bill_micros": None}]
    assert (found["agrees"], found["without_id"]) == (False, 1)
    text = run(bill, "--ledger", url)
    assert text.exit_code == 1
    for part in ("1 requests cost something else", "1 requests are in the bill", "r-9", "they do not agree", "0.0004"):
        assert part in text.stdout


def test_what_the_ledger_says_is_not_billed_and_the_bill_holds_differs(url, tmp_path):
    fill(url, [Bill(billed=Billed.NO, failure=FailureKind.REJECTED, request_id="r-1")])
    found = read(write(tmp_path, {"r-1": "0.0012"}), "--ledger", url, exit_code=1)
    assert found["differs"] == [{"request_id": "r-1", "calls": [1], "ledger_micros": 0, "bill_micros": 1200}]


def test_lines_and_calls_of_one_request_are_summed(url, tmp_path):
    """Each of three images was rounded up to a micro, and the provider's sum only once."""
    fill(url, [paid("r-1", 34), paid("r-1", 34), paid("r-1", 34)])
    bill = tmp_path / "bill.csv"
    bill.write_text("request_id,cost\nr-1,0.00005\nr-1,0.0000501\n")
    assert read(bill, "--ledger", url, exit_code=0)["matched"] == 1
    bill.write_text("request_id,cost\nr-1,0.00005\nr-1,0.0000601\n")
    assert len(read(bill, "--ledger", url, exit_code=1)["differs"]) == 1


def test_a_bill_decides_what_was_unknown_and_changes_it_only_where_it_is_told_to(url, tmp_path):
    unknown = [replace(UNKNOWN, request_id=f"r-{place}") for place in range(3)]
    fill(url, [*unknown, UNKNOWN, paid("r-3", 10)])
    bill = write(tmp_path, {"r-0": "0.0007", "r-3": "0.00001"})
    before = statuses(url)
    found = read(bill, "--ledger", url, exit_code=0)
    assert found["unknown"] == {"billed": [1], "not_billed": [2, 3], "undecided": [], "without_id": 1}
    assert statuses(url) == before
    assert "not settled; settle them with --settle" in run(bill, "--ledger", url).stdout
    assert read(bill, "--ledger", url, "--settle", exit_code=0)["settled"] == 3
    assert statuses(url) == [
        ("lost", "yes", 700),
        ("returned", "no", 0),
        ("returned", "no", 0),
        ("lost", "unknown", UPPER),
        ("committed", "yes", 10),
    ]
    again = read(bill, "--ledger", url, "--settle", exit_code=0)
    assert (again["matched"], again["settled"]) == (2, 0)
    with closing(Ledger(url)) as ledger:
        summary = ledger.summary()
        assert (summary.spent, summary.returned, summary.cost_micros) == (3, 2, 700 + UPPER + 10)


def test_unknown_calls_that_a_bill_may_not_cover_stay_unknown(url, tmp_path):
    """The last call was made after the last that the bill has; and a bill that lacks a billed call covers not all."""
    fill(url, [replace(UNKNOWN, request_id="r-0"), paid("r-1", 10)])
    with closing(Ledger(url)) as ledger:
        last = max(row["reserved_at"] for row in list_calls(ledger))
    while True:  # the ledger's times are in milliseconds
        _later(url)
        with closing(Ledger(url)) as ledger:
            rows = list(list_calls(ledger))
        if rows[-1]["reserved_at"] > last:
            break
    bill = write(tmp_path, {"r-1": "0.00001"})
    found = read(bill, "--ledger", url, exit_code=0)["unknown"]
    assert 1 in found["not_billed"]
    assert rows[-1]["id"] not in found["not_billed"]
    assert found["undecided"]
    assert "which may not cover them" in run(bill, "--ledger", url).stdout
    covered = read(bill, "--ledger", url, "--until", "2999-01-01", exit_code=0)["unknown"]
    assert (covered["undecided"], covered["not_billed"][-1]) == ([], rows[-1]["id"])
    nothing = read(write(tmp_path, {"r-7": "0"}), "--ledger", url, "--until", "2999-01-01", exit_code=1)
    assert nothing["unknown"]["not_billed"] == []
    assert read(bill, "--ledger", url, "--until", "2020-01-01", exit_code=1)["unknown"]["undecided"] == []


def _later(url: str) -> None:
    """One more call that is unknown, charged now."""
    with closing(Ledger(url)) as ledger:
        session = ledger.start_session(SESSION)
        number = ledger.summary().spent
        request = CallRequest((100 + number).to_bytes(16, "big"), number, number, 0)
        (id_,) = ledger.reserve(session, [request], upper_micros=UPPER).ids.values()
        ledger.fail({id_: replace(UNKNOWN, request_id=f"late-{number}")})


def test_an_unknown_request_of_several_images_shares_its_cost(url, tmp_path):
    fill(url, [paid("r-1", 30), *[replace(UNKNOWN, request_id="r-1")] * 3])
    read(write(tmp_path, {"r-1": "0.000131"}), "--ledger", url, "--settle", exit_code=0)
    assert [cost for _, _, cost in statuses(url)] == [30, 33, 33, 35]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("id,cost\nr,1\n", "no column of .* is called 'request_id'"),
        ("", "no column of"),
        ("request_id,cost\nr,1\nr,x\n", "line 3: cost must be a decimal number of 0 or more"),
        ("request_id,cost\nr,-1\n", "line 2: cost must be a decimal number"),
        ("request_id,cost\nr,NaN\n", "line 2: cost must be"),
        ("request_id,cost\nr\n", "line 2: it has not 2 cells"),
        ("request_id,cost\nr,1,2\n", "line 2: it has not 2 cells"),
        ("request_id,cost\nr,1e12\n", "is more than 1000000000"),
        ('request_id,cost\n"r,1\n', "give a CSV file"),
    ],
)
def test_what_is_no_bill_is_refused_by_its_line(url, tmp_path, content, sentence):
    fill(url, [paid("r-1", 1)])
    path = tmp_path / "bill.csv"
    path.write_text(content)
    result = run(path, "--ledger", url)
    assert result.exit_code == 2, result.exception
    assert re.search(sentence, result.stderr), result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_a_bill_that_is_not_there_or_no_text_is_refused(url, tmp_path):
    fill(url, [paid("r-1", 1)])
    (tmp_path / "bytes.csv").write_bytes(b"\xff\xfe\x00")
    for name in ("missing.csv", "bytes.csv"):
        result = run(tmp_path / name, "--ledger", url)
        assert result.exit_code == 2
        assert "cannot be read" in result.stderr


def test_columns_are_named_and_spreadsheets_marks_are_passed_over(url, tmp_path):
    fill(url, [paid("r-1", 1_500_000)])
    path = tmp_path / "bill.csv"
    path.write_bytes('\ufeffday, usd ,"id"\r\n2026-01-01,1.50, r-1 \r\n2026-01-01,0.25,\r\n'.encode())
    found = read(path, "--ledger", url, "--id-column", "id", "--cost-column", "usd", exit_code=0)
    assert (found["matched"], found["bill_micros"]) == (1, 1_750_000)


def test_a_ledger_of_an_older_schema_is_compared_and_not_settled(tmp_path):
    url = f"sqlite:///{unpack(SCHEMA_2, tmp_path) / 'shared.sqlite'}"
    bill = write(tmp_path, {})
    assert read(bill, "--ledger", url, exit_code=0)["ledger_micros"] == 0
    refused = run(bill, "--ledger", url, "--settle")
    assert refused.exit_code == 2
    assert "ckd-cache upgrade --ledger" in refused.stderr


@pytest.mark.parametrize("change", ["billed = 'perhaps'", "failure = 'tired'"])
def test_a_bill_in_a_ledger_that_no_release_wrote_is_a_sentence(url, tmp_path, change):
    fill(url, [replace(UNKNOWN, request_id="r-1")])
    assert tamper(url, f"UPDATE bills SET {change}") == 1
    refused = run(write(tmp_path, {"r-1": "0.1"}), "--ledger", url)
    assert refused.exit_code == 2
    assert "the bill of call 1 is none that any release wrote" in refused.stderr
