"""`ckd-cache ledger`: what was spent and on what, and from a student to its calls and back."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shutil
import signal
import sqlite3
import sys
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from ground.errors import InvalidInput, StoreUnreadable
from storage.bill import Bill, Billed, FailureKind
from storage.ledger import Ledger
from storage.ledger_records import CallRequest, Session
from storage.run_record import RUN_FILE
from storage.store import Store
from storage.store_folder import LEDGER_FILE
from teacher_cache.build import build
from teacher_cache.cli import main
from teacher_cache.commands.ledger.export import export
from teacher_cache.commands.ledger.options import open_ledger
from teacher_cache.config import BuildConfig, ExtensionConfig
from teacher_cache.convert import convert
from teacher_cache.extend import extend, prepare_extension
from teacher_cache.prepare import prepare_build
from tests.conftest import run_command

ROWS, TRAINED = 24, 20
LOCATION = 'a folder, "quoted"\r\nand\nélsewhere'
FIRST, SECOND, THIRD = "ab" * 32, "ac" * 32, "fe" * 32


@pytest.fixture(autouse=True)
def no_shared_ledger(monkeypatch):
    monkeypatch.delenv("CKD_LEDGER", raising=False)


def run(*arguments: object):
    """A command in this process; its output is as wide as it needs."""
    return CliRunner(env={"COLUMNS": "250"}).invoke(main, ["ledger", *(str(argument) for argument in arguments)])


def read(*arguments: object):
    result = run(*arguments, "--json")
    assert result.exit_code in (0, 1), result.stderr
    return json.loads(result.stdout)


def refused(*arguments: object) -> str:
    """The one sentence of a command that fails."""
    result = run(*arguments)
    assert result.exit_code == 2, (result.stdout, result.stderr, result.exception)
    assert len(result.stderr.strip().splitlines()) == 1
    return result.stderr


def make_calls(ledger: Ledger, teacher: str, name: str, inputs: range, **changes: str) -> None:
    """A builder's run: all but the last two calls are committed, those are lost and left reserved."""
    settings = {"store": "0" * 32, "location": LOCATION, "purpose": "build", "device": "cpu", "precision": "fp32"}
    session = Session(teacher=teacher, teacher_name=name, outputs=("logits",), host="here", **settings | changes)
    number = ledger.start_session(session)
    requests = [CallRequest(place.to_bytes(16, "big"), place * 3, place, 0) for place in inputs]
    ids = sorted(ledger.reserve(number, requests).ids.values())
    ledger.commit({id_: bytes(16) for id_ in ids[:-2]}, seconds=1.5)
    ledger.lose(ids[-2:-1])
    ledger.end_session(number)


def fill(url: str | Path) -> None:
    """Make a ledger of two teachers: calls 1-10 of one, 11-15 of the other, 16-18 of the first for another store."""
    with closing(Ledger(url, create=True)) as ledger:
        make_calls(ledger, FIRST, "wrn_40_2", range(10))
        make_calls(ledger, SECOND, "resnet8", range(5), store="1" * 32)
        make_calls(ledger, FIRST, "wrn_40_2", range(10, 13), store="2" * 32, purpose="extend")
        ledger.set_budget(FIRST, "wrn_40_2", 20)


@pytest.fixture
def shared(tmp_path) -> Path:
    fill(tmp_path / "shared.sqlite")
    return tmp_path / "shared.sqlite"


# What was spent


def test_a_summary_counts_calls_seconds_and_money(shared):
    found = read("summary", "--ledger", shared, "--price-per-call", "0.1")
    counts = ("committed", "reserved", "lost", "spent", "budget", "remaining", "teacher_seconds", "cost")
    assert [found[name] for name in counts] == [12, 3, 3, 18, None, None, 4.5, 1.8]
    assert [found["teachers"][FIRST][name] for name in counts] == [9, 2, 2, 13, 20, 7, 3.0, 1.3]
    assert found["teachers"][SECOND]["name"] == "resnet8"
    assert found["price_per_call"] == 0.1
    text = run("summary", "--ledger", shared, "--price-per-call", "0.1").stdout
    assert all(word in text for word in ("seconds", "cost", "1.3", "wrn_40_2 abababababab", "all", found["head"]))
    without = read("summary", "--ledger", shared)
    assert "cost" not in without
    assert "cost" not in run("summary", "--ledger", shared).stdout


@pytest.fixture
def billed(shared) -> Path:
    """The same ledger with a third teacher, which is billed: calls 19-23."""
    with closing(Ledger(shared)) as ledger:
        session = Session(
            teacher=THIRD, teacher_name="gpt", store="3" * 32, location="/nowhere", purpose="build", device="cpu",
            precision="fp32", outputs=("logits",), host="here",
        )  # fmt: skip
        number = ledger.start_session(session)
        ledger.set_budget(THIRD, "gpt", 40, cost_micros=20_000_000)
        requests = [CallRequest(place.to_bytes(16, "big"), place, place, 0) for place in range(5)]
        ids = sorted(ledger.reserve(number, requests, upper_micros=50_000).ids.values())
        answered = Bill(
            billed=Billed.YES, cost_micros=12_345, tokens_in=100, tokens_out=3, model="gpt-1", request_id="r1"
        )
        ledger.commit(dict.fromkeys(ids[:1], bytes(16)), 1.0, {ids[0]: answered})
        unknown = Bill(billed=Billed.UNKNOWN, failure=FailureKind.UNKNOWN)
        ledger.fail({ids[1]: Bill(billed=Billed.NO, failure=FailureKind.RATE_LIMITED), ids[2]: unknown})
    return shared


def test_a_summary_counts_attempts_failures_tokens_and_what_they_cost(billed):
    found = read("summary", "--ledger", billed, "--by", "day", "--by", "model")
    said = {
        "spent": 4,
        "attempts": 5,
        "returned": 1,
        "failures": {"rate_limited": 1, "unknown": 1},
        "billed": {"yes": 1, "no": 1, "unknown": 1},
        "tokens_in": 100,
        "tokens_out": 3,
        "cost_micros": 62_345,
        "reserved_micros": 100_000,
        "budget_micros": 20_000_000,
        "remaining_micros": 19_837_655,
    }
    assert {name: found["teachers"][THIRD][name] for name in said} == said
    assert (found["attempts"], found["cost_micros"], found["budget_micros"]) == (23, 62_345, None)
    assert found["teachers"][FIRST]["failures"] == {}
    models = {row["model"]: row for row in found["by_model"]}
    assert sorted(models) == ["gpt", "gpt-1", "resnet8", "wrn_40_2"]
    assert [models["gpt-1"][name] for name in ("attempts", "committed", "cost_micros")] == [1, 1, 12_345]
    (day,) = found["by_day"]
    assert (day["attempts"], day["calls"], day["returned"], day["cost_micros"]) == (23, 22, 1, 62_345)
    text = run("summary", "--ledger", billed, "--by", "model").stdout
    assert all(word in text for word in ("0.062345", "19.837655", "20.00", "1 rate_limited, 1 unknown", "gpt-1"))


def test_bills_are_listed_where_there_are_any(billed, tmp_path):
    rows = read("list", "--ledger", billed, "--teacher", "gpt")
    assert [row["billed"] for row in rows] == ["yes", "no", "unknown", None, None]
    assert [row["cost_micros"] for row in rows] == [12_345, 0, 50_000, None, None]
    assert [call["id"] for call in read("list", "--ledger", billed, "--status", "returned")] == [20]
    text = run("list", "--ledger", billed, "--teacher", "gpt").stdout
    assert all(word in text for word in ("0.012345", "rate_limited", "r1", "gpt-1"))
    assert "billed" not in run("list", "--ledger", billed, "--teacher", "resnet8").stdout
    run("export", "--ledger", billed, "--out", tmp_path / "calls.csv")
    exported = list(csv.DictReader((tmp_path / "calls.csv").read_text().splitlines()))
    assert [row["cost_micros"] for row in exported[-5:]] == ["12345", "0", "50000", "", ""]
    assert {row["model"] for row in exported} == {"", "gpt-1"}


def test_a_budget_in_money_is_set_shown_and_refused(billed):
    found = read("budget", "--ledger", billed, "--teacher", "gpt", "--set-cost", "1.25")
    assert [found[name] for name in ("budget", "budget_micros", "paid_micros")] == [40, 1_250_000, 162_345]
    assert [change.get("to_micros") for change in found["history"]] == [20_000_000, 1_250_000]
    text = run("budget", "--ledger", billed, "--teacher", "gpt").stdout
    assert "4 calls spent, 36 of 40 calls remain; 0.162345 paid, 1.087655 of 1.25 remains" in text
    below = run("budget", "--ledger", billed, "--teacher", "gpt", "--set-cost", "0.1")
    assert below.exit_code == 3
    assert "a budget of 0.10 is below the 0.162345 already paid for gpt" in below.stderr
    assert "--set-cost must be a decimal number" in refused("budget", "--ledger", billed, "--set-cost", "-1")


@pytest.mark.parametrize("price", ["-1", "nan", "inf"])
def test_a_price_is_a_number_from_0_on(shared, price):
    assert "--price-per-call must be 0 to" in refused("summary", "--ledger", shared, "--price-per-call", price)


FILTERS = {
    "a name in any spelling": (("--teacher", "wrn40_2"), [*range(1, 11), 16, 17, 18]),
    "a fingerprint's digits": (("--teacher", "ac"), range(11, 16)),
    "a store": (("--store-id", "22"), range(16, 19)),
    "no pattern": (("--store-id", "%"), []),
    "a status": (("--status", "lost"), [9, 14, 17]),
    "a builder's run": (("--run", 2), range(11, 16)),
    "long ago": (("--until", "2020-01-01"), []),
    "since then": (("--since", "2020-01-01T00:00:00"), range(1, 19)),
    "another zone": (("--since", "2020-01-01T00:00+14:00", "--until", "2999-01-01T00:00:00Z"), range(1, 19)),
    "two at once": (("--teacher", "wrn_40_2", "--status", "reserved"), [10, 18]),
    "a page": (("--limit", 3, "--offset", 9), [10, 11, 12]),
    "calls after one": (("--limit", 3, "--after", 9), [10, 11, 12]),
    "calls of a status after one": (("--status", "lost", "--after", 9), [14, 17]),
}


@pytest.mark.parametrize("case", FILTERS)
def test_calls_are_listed_by(shared, case):
    arguments, expected = FILTERS[case]
    assert [call["id"] for call in read("list", "--ledger", shared, *arguments)] == list(expected)


def test_both_kinds_of_database_list_and_export_alike(shared, ledger_url, tmp_path):
    if not ledger_url.startswith("sqlite"):
        fill(ledger_url)
    for arguments, expected in FILTERS.values():
        assert [call["id"] for call in read("list", "--ledger", ledger_url, *arguments)] == list(expected)
    assert run("export", "--ledger", ledger_url, "--format", "jsonl", "--out", tmp_path / "calls").exit_code == 0
    assert exported(tmp_path / "calls", "jsonl") == read("list", "--ledger", ledger_url)
    assert read("summary", "--ledger", ledger_url)["teacher_seconds"] == 4.5
    assert read("budget", "--ledger", ledger_url, "--teacher", "wrn_40_2", "--set", 25)["remaining"] == 12
    assert read("verify", "--ledger", ledger_url)["problems"] == []


def test_until_is_not_included_and_since_is(shared):
    first = read("list", "--ledger", shared)[0]["reserved_at"]
    same = [call["id"] for call in read("list", "--ledger", shared) if call["reserved_at"] == first]
    assert [call["id"] for call in read("list", "--ledger", shared, "--since", first)] == list(range(1, 19))
    assert not {call["id"] for call in read("list", "--ledger", shared, "--until", first)} & set(same)


def test_a_list_says_which_page_it_is(shared):
    assert "calls 1-5 of 18; more with --offset 5\n" in run("list", "--ledger", shared, "--limit", 5).stdout
    assert run("list", "--ledger", shared, "--offset", 15).stdout.endswith("calls 16-18 of 18\n")
    assert run("list", "--ledger", shared, "--offset", 18).stdout == "no calls after the first 18\n"
    assert run("list", "--ledger", shared, "--run", 9).stdout == "no calls\n"
    assert run("list", "--ledger", shared, "--after", 2, "--limit", 5).stdout.endswith("\nmore with --after 7\n")
    assert run("list", "--ledger", shared, "--after", 15).stdout.endswith("\nno more calls\n")


BAD_FILTERS = {
    "no time": (("--since", "yesterday"), "--since takes a time like 2026-01-31T12:00"),
    "a time before time": (("--until", "0001-01-01T00:00+10:00"), "--until takes a time like"),
    "no such teacher": (("--teacher", "resnet9"), "no teacher of the ledger is called 'resnet9'"),
    "two teachers": (("--teacher", "a"), "stands for 2 teachers (wrn_40_2 abababababab, resnet8 acacacacacac)"),
    "an empty name": (("--teacher", ""), "no teacher of the ledger is called ''"),
}


@pytest.mark.parametrize("case", BAD_FILTERS)
def test_a_filter_that_means_nothing_is_a_sentence(shared, case):
    arguments, message = BAD_FILTERS[case]
    for command in ("list", "export"):
        assert message in refused(command, "--ledger", shared, *arguments)


def test_names_in_a_strangers_ledger_are_shown_as_they_are(tmp_path):
    with closing(Ledger(tmp_path / "l.sqlite", create=True)) as ledger:
        make_calls(ledger, FIRST, "[red]\x1b[2Jnet", range(3))
    for command in ("list", "summary", "budget"):
        shown = run(command, "--ledger", tmp_path / "l.sqlite").stdout
        assert "[red]\\x1b[2Jnet" in shown


def test_entries_that_no_release_writes_are_a_sentence(shared):
    with closing(sqlite3.connect(shared)) as database, database:
        database.execute("UPDATE entries SET payload = '{\"seconds\": \"x\"}' WHERE kind IN ('commit', 'budget')")
    for command in (("summary",), ("budget", "--teacher", "wrn_40_2")):
        assert "see what is wrong with: ckd-cache ledger verify" in refused(*command, "--ledger", shared)
    assert run("verify", "--ledger", shared).exit_code == 1


# Which ledger


def test_the_environment_does_not_win_over_a_stores_own_ledger(original, shared, monkeypatch):
    monkeypatch.setenv("CKD_LEDGER", str(shared))
    assert read("summary", "--store", original)["committed"] == ROWS
    assert read("summary")["committed"] == 12
    assert "recorded in its own ledger" in refused("summary", "--store", original, "--ledger", shared)


def test_a_store_with_a_shared_ledger_needs_to_be_told_which(weights, tmp_path, shared, monkeypatch):
    url, store = f"sqlite:///{tmp_path / 'all.sqlite'}", tmp_path / "store"
    build_store(store, weights, n=8, ledger=url)
    assert "name it too, with its password if it has one, with: --ledger " in refused("summary", "--store", store)
    assert read("summary", "--store", store, "--ledger", url)["committed"] == 8
    monkeypatch.setenv("CKD_LEDGER", url)
    assert read("summary", "--store", store)["committed"] == 8
    assert f"not {Store.open(store).manifest.ledger_genesis[:12]}; give the right --ledger" in refused(
        "summary", "--store", store, "--ledger", shared
    )
    moved = shutil.copy(tmp_path / "all.sqlite", tmp_path / "moved.sqlite")
    assert read("summary", "--store", store, "--ledger", moved)["committed"] == 8


def test_a_store_is_not_built_in_the_own_ledger_of_another(original, weights, tmp_path):
    before = read("summary", "--store", original)
    with pytest.raises(InvalidInput, match=f"is the own ledger of the store at {original}, and no other store's calls"):
        build_store(tmp_path / "new", weights, n=8, ledger=str(original / "ledger.sqlite"))
    assert not (tmp_path / "new").exists()
    assert read("summary", "--store", original) == before


def test_a_store_is_not_built_in_a_ledger_whose_tables_were_changed(weights, tmp_path, shared):
    with closing(sqlite3.connect(shared)) as database, database:
        database.execute("DROP INDEX one_call_per_input")
    with pytest.raises(StoreUnreadable, match="nothing is recorded in the ledger at .* it has no index one_call_per"):
        build_store(tmp_path / "new", weights, n=8, ledger=str(shared))
    assert not (tmp_path / "new").exists()
    assert read("summary", "--ledger", shared)["committed"] == 12
    assert "it has no index one_call_per_input" in run("verify", "--ledger", shared).stdout


def test_without_a_store_or_a_url_there_is_no_ledger():
    assert "give --store DIR or --ledger URL" in refused("summary")


def test_a_link_in_the_place_of_a_ledger_is_not_followed(store, shared):
    (store / LEDGER_FILE).unlink()
    (store / LEDGER_FILE).symlink_to(shared)
    assert "is a link to another place" in refused("summary", "--store", store)


# Export


def exported(path: Path, kind: str) -> list[dict]:
    if kind == "jsonl":
        return [json.loads(line) for line in path.read_text().splitlines()]
    if kind == "csv":
        with path.open(newline="") as file:
            return list(csv.DictReader(file))
    from pyarrow import parquet

    return parquet.read_table(path).to_pylist()


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_an_export_is_what_the_list_says(shared, tmp_path, kind):
    out = tmp_path / f"calls.{kind}"
    raw = ["--raw"] if kind == "csv" else []
    result = run("export", "--ledger", shared, "--teacher", "wrn_40_2", "--format", kind, *raw, "--out", out)
    assert (result.exit_code, result.stdout) == (0, ""), result.stderr
    expected = read("list", "--ledger", shared, "--teacher", "wrn_40_2")
    assert expected[0]["location"] == LOCATION
    if kind == "csv":
        expected = [{name: "" if value is None else str(value) for name, value in call.items()} for call in expected]
    assert exported(out, kind) == expected
    assert [path.name for path in tmp_path.iterdir() if "partial" in path.name] == []


def test_parquet_keeps_numbers_as_numbers(shared, tmp_path):
    import pandas

    run("export", "--ledger", shared, "--format", "parquet", "--out", tmp_path / "calls.parquet")
    frame = pandas.read_parquet(tmp_path / "calls.parquet")
    assert frame["id"].tolist() == list(range(1, 19))
    assert frame["row"].dtype == np.int64
    assert frame["settled_at"].isna().sum() == 3


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_an_export_of_no_calls_has_its_columns(shared, tmp_path, kind):
    out = tmp_path / "none"
    assert run("export", "--ledger", shared, "--run", 9, "--format", kind, "--out", out).exit_code == 0
    assert exported(out, kind) == []
    if kind == "csv":
        assert out.read_text().startswith("id,status,teacher,")
    if kind == "parquet":
        from pyarrow import parquet

        assert "input_digest" in parquet.read_schema(out).names


class Row(dict):
    """A listed call that counts how many of its kind are alive."""

    alive = most = 0

    def __init__(self, values):
        super().__init__(values)
        Row.alive += 1
        Row.most = max(Row.most, Row.alive)

    def __del__(self):
        Row.alive -= 1


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_an_export_holds_few_calls_at_a_time(shared, tmp_path, monkeypatch, kind):
    module = sys.modules[export.callback.__module__]
    call = read("list", "--ledger", shared)[0]
    monkeypatch.setattr(module, "BATCH_ROWS", 100)
    monkeypatch.setattr(module, "list_calls", lambda *_: (Row(call) for _ in range(1000)))
    Row.alive = Row.most = 0
    out = tmp_path / "calls"
    assert run("export", "--ledger", shared, "--format", kind, "--out", out).exit_code == 0
    assert len(exported(out, kind)) == 1000
    assert Row.most <= 202, "two batches: one that is written, and the next one"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_an_interrupted_export_leaves_the_earlier_one(shared, tmp_path, monkeypatch, kind, number):
    module = sys.modules[export.callback.__module__]
    call, out = read("list", "--ledger", shared)[0], tmp_path / "calls"

    def interrupted(*_):
        for place in range(100):
            if place == 50:
                os.kill(os.getpid(), number)
            yield call

    monkeypatch.setattr(module, "list_calls", interrupted)
    before = sorted(tmp_path.iterdir())
    result = run("export", "--ledger", shared, "--format", kind, "--out", out)
    assert result.exit_code == 130
    assert "stopped before the export was whole" in result.stderr
    assert sorted(tmp_path.iterdir()) == before
    out.write_text("the earlier one")
    assert run("export", "--ledger", shared, "--format", kind, "--out", out).exit_code == 130
    assert out.read_text() == "the earlier one"


def test_formulas_of_others_are_no_formulas_in_an_export_unless_it_is_raw(shared, tmp_path):
    formula = '=HYPERLINK("http://example.org")\x1b[2J'
    with closing(sqlite3.connect(shared)) as database, database:
        database.execute("UPDATE sessions SET purpose = ?, device = '-1'", (formula,))

    def cells(*options: str) -> set[tuple[str, str]]:
        assert run("export", "--ledger", shared, "--out", tmp_path / "calls.csv", *options).exit_code == 0
        return {(call["purpose"], call["device"]) for call in exported(tmp_path / "calls.csv", "csv")}

    assert cells() == {('\'=HYPERLINK("http://example.org")\\x1b[2J', "-1")}
    assert cells("--raw") == {(formula, "-1")}


def test_an_export_goes_nowhere_it_would_do_harm(shared, tmp_path):
    before = shared.read_bytes()
    assert "is a database, perhaps a ledger" in refused("export", "--ledger", shared, "--out", shared)
    assert shared.read_bytes() == before
    assert "no regular file" in refused("export", "--ledger", shared, "--out", "/dev/null")
    assert "there is no folder" in refused("export", "--ledger", shared, "--out", tmp_path / "no" / "calls")
    assert "give --out FILE" in refused("export", "--ledger", shared, "--format", "parquet")


def test_parquet_without_pyarrow_says_what_to_install(shared, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    message = refused("export", "--ledger", shared, "--format", "parquet", "--out", tmp_path / "calls")
    assert "pip install 'teacher-cache[parquet]'" in message


# Budgets


def test_a_budget_is_shown_set_and_remembered(shared):
    asked = ("budget", "--ledger", shared, "--teacher", "wrn40_2")
    found = read(*asked, "--set", 30)
    assert found["teacher"] == {"name": "wrn_40_2", "fingerprint": FIRST}
    assert (found["budget"], found["spent"], found["remaining"]) == (30, 13, 17)
    assert [(change["from"], change["to"]) for change in found["history"]] == [(None, 20), (20, 30)]
    head = read("verify", "--ledger", shared)["head"]
    assert read(*asked, "--set", 30) == found
    assert read("verify", "--ledger", shared) == {"head": head, "problems": []}
    assert "13 calls spent, 17 of 30 calls remain" in run(*asked).stdout


def test_a_budget_below_what_is_spent_is_exit_3(shared):
    result = run("budget", "--ledger", shared, "--teacher", "wrn_40_2", "--set", 12)
    assert result.exit_code == 3
    assert "below the 13 already spent on wrn_40_2" in result.stderr
    assert read("budget", "--ledger", shared, "--teacher", "wrn_40_2")["budget"] == 20


def test_a_budget_needs_a_teacher_only_where_there_are_several(shared, original):
    assert "the ledger has 2 teachers" in refused("budget", "--ledger", shared)
    found = read("budget", "--store", original)
    assert (found["budget"], found["remaining"], found["history"]) == (None, None, [])
    assert f"{ROWS} calls spent, no budget" in run("budget", "--store", original).stdout


def test_a_ledger_without_teachers_is_a_sentence(tmp_path):
    Ledger(tmp_path / "new.sqlite", create=True).close()
    assert "knows no teacher yet" in refused("budget", "--ledger", tmp_path / "new.sqlite")
    assert read("summary", "--ledger", tmp_path / "new.sqlite")["spent"] == 0


# From a student to its calls


def build_store(folder: Path, weights: Path, n: int = ROWS, **settings) -> Path:
    build(
        *prepare_build(
            BuildConfig(
                teacher="resnet8", weights=weights, dataset="digits", n=n, store=folder, device="cpu", **settings
            )
        )
    )
    return folder


@pytest.fixture(scope="module")
def original(tmp_path_factory, weights) -> Path:
    return build_store(tmp_path_factory.mktemp("traced") / "store", weights)


@pytest.fixture(scope="module")
def trained(original) -> Path:
    """A run of the installed command on the first rows."""
    out = original.parent / "runs" / "kd"
    settings = ("--student", "resnet8", "--method", "kd", "--max-evals", 1, "--device", "cpu", "--precision", "fp32")
    result = run_command("ckd-train", "--store", original, "--n", TRAINED, *settings, "--out", out)
    assert result.returncode == 0, result.stderr
    return out


@pytest.fixture
def store(original, tmp_path) -> Path:
    """A copy of the store, to be changed."""
    shutil.copytree(original, tmp_path / "store")
    return tmp_path / "store"


@pytest.fixture
def change(trained, tmp_path):
    """A copy of the run whose `run.json` says something else."""

    def changed(**values: object) -> Path:
        document = json.loads((trained / RUN_FILE).read_text())
        folder = tmp_path / f"run-{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        (folder / RUN_FILE).write_text(json.dumps(document | values))
        return folder

    return changed


def content_of(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_a_student_is_traced_to_its_calls(original, trained):
    before = content_of(original.parent)
    result = run_command("ckd-cache", "ledger", "trace", trained, "--price-per-call", 0.01, "--limit", 5, "--json")
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert (found["run"], found["store"], found["method"], found["n"]) == (str(trained), str(original), "kd", TRAINED)
    assert (found["calls_total"], found["teacher_calls"], found["vouched"], found["problems"]) == (20, 20, True, [])
    assert (found["builder_runs"], found["cost"]) == ([1], 0.2)
    assert found["teacher"]["name"] == "resnet8"
    assert 0 < found["teacher_seconds"] < read("summary", "--store", original)["teacher_seconds"] + 0.001
    assert [(call["id"], call["row"], call["status"]) for call in found["calls"]] == [
        (place + 1, place, "committed") for place in range(5)
    ]
    assert [call["id"] for call in read("trace", trained, "--offset", 18)["calls"]] == [19, 20]
    assert content_of(original.parent) == before


def test_a_trace_gives_its_totals_first(trained):
    lines = run("trace", trained, "--limit", 2, "--price-per-call", 0.5).stdout.splitlines()
    assert "drew on 20 calls of resnet8" in lines[0]
    assert "1 builder run(s)" in lines[0]
    assert "cost 10" in lines[0]
    assert lines[1] == "the ledger vouches for all 20 rows"
    assert lines[-1] == "calls 1-2 of 20; more with --offset 2"


@pytest.mark.slow
def test_calls_for_outputs_that_a_run_did_not_read_are_none_of_its_calls(store, weights, tmp_path):
    extension = ("--features", "layer1", "--weights", weights, "--device", "cpu", "--yes")
    assert run_command("ckd-cache", "extend", "--store", store, *extension).returncode == 0
    settings = ("--student", "resnet8", "--n", TRAINED, "--max-evals", 1, "--device", "cpu")
    calls = {}
    for method in ("kd", "at:layers=layer1"):
        out = tmp_path / method
        trained = run_command("ckd-train", "--store", store, "--method", method, *settings, "--out", out)
        assert trained.returncode == 0, trained.stderr
        found = read("trace", out, "--limit", 1000)
        assert found["vouched"]
        calls[method] = {call["id"] for call in found["calls"]}
    assert len(calls["kd"]) == TRAINED
    assert len(calls["at:layers=layer1"]) == 2 * TRAINED
    backwards = {
        id_: [Path(run["run"]).name for run in read("trace", "--store", store, tmp_path, "--call", id_)["runs"]]
        for id_ in (min(calls["kd"]), max(calls["at:layers=layer1"]))
    }
    assert sorted(map(sorted, backwards.values())) == [["at:layers=layer1"], ["at:layers=layer1", "kd"]]


def test_a_run_without_a_teacher_drew_on_no_calls(change):
    folder = change(teacher_calls=0, method="vanilla", store="/nowhere")
    assert "without a teacher: it drew on no calls" in run("trace", folder).stdout
    found = read("trace", folder, "--price-per-call", 2)
    assert (found["calls_total"], found["vouched"], found["calls"], found["cost"]) == (0, True, [], 0.0)


def test_a_store_that_was_moved_is_named(change, store):
    folder = change(store="/nowhere/store")
    assert "there is none; if it was moved, give --store DIR" in refused("trace", folder)
    assert read("trace", folder, "--store", store)["vouched"]
    other = change(store_id="0" * 32)
    assert "give the one it was trained from as --store" in refused("trace", other, "--store", store)


def test_the_environment_is_not_asked_for_the_ledger_of_a_traced_store(trained, shared, monkeypatch):
    monkeypatch.setenv("CKD_LEDGER", str(shared))
    assert read("trace", trained)["vouched"]


DOUBTS = {
    "rows": ({"n": 30, "teacher_calls": 30}, "the run was trained on 30 rows, the store has 24"),
    "calls": ({"teacher_calls": 19}, "says that it drew on 19 calls, and 20 rows of 1 views are 20"),
    "ledger": ({"ledger_head": "0" * 64}, "it was replaced or rolled back"),
    "teacher": ({"teacher_fingerprint": "0" * 64}, "the run names teacher 000000000000"),
}


@pytest.mark.parametrize("case", DOUBTS)
def test_a_run_that_does_not_fit_its_ledger_is_exit_1(change, case):
    values, message = DOUBTS[case]
    result = run("trace", change(**values))
    assert result.exit_code == 1, result.stderr
    assert message in result.stdout
    assert "the ledger does not vouch for all" in result.stdout
    assert "calls 1-20 of" in result.stdout or case == "rows"


def test_rows_that_are_not_what_the_ledger_recorded_are_listed(trained, store):
    opened = Store.open(store)
    digests = opened.arrays.read("train/digest", 0, ROWS)
    digests[7, 0, 0, 0] ^= 1
    opened.arrays.write("train/digest", 0, digests)
    opened.retract([3, TRAINED + 1])
    found = read("trace", trained, "--store", store)
    assert not found["vouched"]
    assert found["problems"] == [
        "row 3 view 0: it is not whole in the store, though call 4 is committed",
        "row 7 view 0: its logits is not what call 8 returned",
    ]


def test_a_row_without_a_call_is_listed(trained, store):
    with closing(sqlite3.connect(store / LEDGER_FILE)) as database, database:
        database.execute("UPDATE calls SET input_digest = zeroblob(16) WHERE id = 6")
    found = read("trace", trained, "--store", store)
    assert found["problems"] == ["row 5 view 0: the ledger knows no committed call on it"]
    assert found["calls_total"] == 19


def test_a_call_that_was_given_up_after_the_run_is_named(trained, store, change):
    with closing(open_ledger(store, None)) as ledger:
        ledger.revoke([5, TRAINED + 2])
        after = ledger.head()
    problems = read("trace", trained, "--store", store)["problems"]
    assert "row 4 view 0: call 5 answered it, and was given up for damaged after the run" in problems
    assert not any("given up" in problem for problem in read("trace", change(ledger_head=after))["problems"])
    asked = ("trace", "--call", 5, "--store", store, trained.parent)
    assert [found["run"] for found in read(*asked)["runs"]] == [str(trained)]


def test_a_run_is_traced_after_its_store_was_converted_and_extended(trained, store, tmp_path, weights):
    convert(store, "hdf5", tmp_path / "converted")
    assert read("trace", trained, "--store", tmp_path / "converted")["vouched"]
    extend(*prepare_extension(ExtensionConfig(store=store, features="pooled", weights=weights, device="cpu")))
    found = read("trace", trained, "--store", store)
    assert found["vouched"], found["problems"]
    assert found["calls_total"] == TRAINED, "the calls of the extension came later"
    asked = ("trace", "--store", store, trained, "--call")
    assert [len(read(*asked, call)["runs"]) for call in (1, ROWS + 1)] == [1, 0]


def test_a_trace_says_whether_the_results_are_what_they_were(trained, original, tmp_path):
    found = read("trace", trained)
    assert (found["proven"], found["not_proven"]) == ("ledger", [])
    assert "its results are what they were when it ended: the ledger says so" in run("trace", trained).stdout
    copied = shutil.copytree(trained, tmp_path / "copied")
    document = json.loads((copied / RUN_FILE).read_text())
    (copied / RUN_FILE).write_text(json.dumps(document | {"test_accuracy": 1.0}))
    result = run("trace", copied)
    assert result.exit_code == 1
    assert "run.json (results) is not what entry" in result.stdout
    assert "the ledger vouches for all 20 rows" in result.stdout


def test_a_run_without_a_proof_is_traced_and_said_to_have_none(change):
    result = run("trace", change(seconds=0.5))
    assert result.exit_code == 0, result.stdout
    assert "its results are not proven" in result.stdout


BAD_RUNS = {
    "no object": b"[]",
    "no JSON": b"{",
    "no text": b"\xff\xfe",
    "deep": b"[" * 100_000,
    "a relative store": {"store": "stores/x"},
    "a store with a zero byte": {"store": "/a\0b"},
    "no store": {"store": None},
    "a number as text": {"n": "20"},
    "a truth as a number": {"n": True},
    "a negative number": {"teacher_calls": -1},
    "too large a number": {"n": 10**30},
    "no id": {"store_id": "../.."},
    "no head": {"ledger_head": None},
    "a list as a name": {"method": ["kd"]},
}


@pytest.mark.parametrize("case", BAD_RUNS)
def test_a_run_that_cannot_be_read_is_a_sentence(change, case):
    content = BAD_RUNS[case]
    folder = change(**content if isinstance(content, dict) else {})
    if isinstance(content, bytes):
        (folder / RUN_FILE).write_bytes(content)
    assert "is not the result of a run this release can read" in refused("trace", folder)


def test_what_is_no_run_or_no_store_is_a_sentence(tmp_path, change, trained):
    assert "holds no finished run" in refused("trace", tmp_path)
    os.mkfifo(tmp_path / "manifest.json")
    assert "there is none; if it was moved" in refused("trace", change(store=str(tmp_path)))
    assert "one run is traced at a time" in refused("trace", trained, trained)


# From a call to its students


def test_a_call_is_traced_to_the_students_that_drew_on_it(original, trained, change, tmp_path):
    asked = ("trace", "--store", original, trained.parent, tmp_path, "--call")
    vanilla, other = change(teacher_calls=0), change(ledger_head="0" * 64)
    smaller = change(n=5, teacher_calls=5)
    found = read(*asked, 5)
    assert {run["run"] for run in found["runs"]} == {str(trained), str(smaller)}
    assert (found["call"]["row"], found["unclear"]) == (4, [])
    assert [run["run"] for run in read(*asked, 6)["runs"]] == [str(trained)]
    assert read(*asked, TRAINED + 1)["runs"] == []
    assert not {str(vanilla), str(other)} & {run["run"] for run in found["runs"]}
    assert "call 5 (committed): 2 run(s) drew on it" in run(*asked, 5).stdout
    assert "the ledger has no call 99" in refused(*asked, 99)


def test_a_run_on_the_same_inputs_elsewhere_drew_on_the_call(weights, tmp_path, change):
    url = f"sqlite:///{tmp_path / 'shared.sqlite'}"
    first, second = (build_store(tmp_path / name, weights, n=8, ledger=url) for name in ("first", "second"))
    manifest = Store.open(second).manifest
    values = {"store_id": manifest.store_id, "ledger_head": manifest.ledger_head, "n": 6, "teacher_calls": 6}
    copied = change(store=str(second), **values)
    assert read("summary", "--ledger", url)["spent"] == 8, "the second store copied every answer"
    assert read("trace", copied, "--ledger", url)["vouched"]
    asked = ("trace", "--ledger", url, copied, "--call")
    assert [len(read(*asked, call)["runs"]) for call in (1, 6, 7)] == [1, 1, 0]
    assert Store.open(first).manifest.store_id == read(*asked, 1)["call"]["store"]


def test_a_run_of_which_it_is_unclear_is_named(original, trained, change, tmp_path):
    lost = change(store="/nowhere", store_id="0" * 32)
    (change() / RUN_FILE).write_text("{")
    result = run("trace", "--call", 1, "--store", original, trained, tmp_path)
    assert result.exit_code == 1
    assert "1 run(s) drew on it" in result.stdout
    assert f"{lost} is left out: " in result.stderr
    assert "can read" in result.stderr
    assert len(read("trace", "--call", 1, "--store", original, tmp_path)["unclear"]) == 2
