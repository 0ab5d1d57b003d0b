"""What a report reads of ledgers is what they record, and a ledger that cannot be read is a sentence."""

from __future__ import annotations

import shutil
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from msgspec import structs

from analysis import ledgers
from analysis.grid_plan import GridPlan, GridStore
from analysis.ledgers import read_ledgers, timeline
from analysis.results import collect
from benchmarks.stand_ins.fabricated_grid import STORE, TEACHER, change_run, make_grid, planned_runs
from storage.ledger import Ledger
from storage.ledger_records import CallRequest, Session
from storage.manifest import Manifest
from storage.store_folder import LEDGER_FILE


@pytest.fixture
def grid(tmp_path) -> Path:
    return make_grid(tmp_path / "grid", sizes=(96,), seeds=1, budget=200)


def read(folder: Path):
    return read_ledgers(folder, GridPlan.load(folder), collect(folder))


def call_more(folder: Path, count: int, purpose: str) -> None:
    """Calls on inputs of their own: all but the last two are committed, those are lost and left reserved."""
    with closing(Ledger(folder / STORE / LEDGER_FILE)) as ledger:
        session = ledger.start_session(
            Session(
                teacher="0" * 64,
                teacher_name=TEACHER,
                store="5" * 32,
                location="/nowhere",
                purpose=purpose,
                device="cpu",
                precision="fp32",
                outputs=("logits",),
                host="here",
            )
        )
        requests = [CallRequest(place.to_bytes(16, "big"), place, place, 0) for place in range(count)]
        ids = sorted(ledger.reserve(session, requests).ids.values())
        ledger.commit({id_: bytes(16) for id_ in ids[:-2]}, seconds=1.5)
        ledger.lose(ids[-2:-1])


def test_totals_are_those_of_the_ledger(grid):
    call_more(grid, 10, "test")
    [ledger] = read(grid)
    assert ledger.problem == ""
    summary = ledger.summary
    assert (summary.committed, summary.lost, summary.reserved) == (104, 1, 1)
    assert (summary.spent, summary.budget, summary.remaining) == (106, 200, 94)
    assert ledger.by_purpose == {"build": {"committed": 96}, "test": {"committed": 8, "lost": 1, "reserved": 1}}
    assert ledger.seconds == pytest.approx(1.5)
    assert (ledger.teacher, ledger.views, ledger.rows) == (TEACHER, 1, 96)


def test_the_timeline_counts_every_call_when_it_was_charged(grid):
    call_more(grid, 10, "test")
    steps = timeline(read(grid))
    # A store is made 64 calls at a time.
    assert steps["calls"].tolist() == [64, 96, 106]
    assert steps["store"].unique().tolist() == [STORE]
    assert steps["at"].is_monotonic_increasing


def test_a_long_timeline_is_thinned_and_keeps_its_ends(grid, monkeypatch):
    whole = timeline(read(grid))["calls"].tolist()
    monkeypatch.setattr(ledgers, "MOST_STEPS", 2)
    call_more(grid, 10, "test")
    thinned = timeline(read(grid))["calls"].tolist()
    assert thinned == [whole[0], whole[-1] + 10]


def test_the_entry_each_run_stood_at_is_found(grid):
    run = planned_runs(grid)[1]["run"]
    change_run(grid, run, ledger_head="ab" * 32)
    [ledger] = read(grid)
    heads = collect(grid).query("teacher_calls > 0")["ledger_head"].unique()
    assert set(ledger.entries) == set(heads)
    assert ledger.entries["ab" * 32] is None
    known = [number for head, number in ledger.entries.items() if head != "ab" * 32]
    # A run noted the newest entry: nothing was charged since.
    with closing(Ledger(grid / STORE / LEDGER_FILE)) as opened:
        assert known == [opened.entry_number(opened.head())]


def test_a_store_that_is_gone_is_a_sentence(grid):
    shutil.rmtree(grid / STORE)
    [ledger] = read(grid)
    assert ledger.summary is None
    assert STORE in ledger.problem
    assert "ckd-cache build" in ledger.problem
    assert timeline([ledger]).empty
    assert list(timeline([ledger]).columns) == ["store", "at", "calls"]


def test_a_damaged_ledger_is_a_sentence(grid):
    (grid / STORE / LEDGER_FILE).write_bytes(b"no database at all" * 100)
    [ledger] = read(grid)
    assert ledger.summary is None
    assert LEDGER_FILE in ledger.problem


def test_a_ledger_that_is_a_link_is_not_followed(grid, tmp_path):
    elsewhere = tmp_path / "elsewhere.sqlite"
    (grid / STORE / LEDGER_FILE).rename(elsewhere)
    (grid / STORE / LEDGER_FILE).symlink_to(elsewhere)
    [ledger] = read(grid)
    assert "is a link to another place" in ledger.problem


def test_a_shared_ledger_is_named_and_not_opened(grid):
    manifest = Manifest.load(grid / STORE)
    replace(manifest, ledger="postgresql://somebody@192.0.2.1/calls").save(grid / STORE)
    [ledger] = read(grid)
    assert "postgresql://somebody@192.0.2.1/calls, which a report does not open" in ledger.problem
    assert f"ckd-cache ledger summary --store {STORE} --ledger postgresql://" in ledger.problem


def test_every_store_of_the_plan_is_told(grid):
    plan = GridPlan.load(grid)
    none = GridStore(teacher="vgg13", dataset="random", store="stores/none", n=1, calls=1)
    plan = structs.replace(plan, stores=(*plan.stores, none))
    found = read_ledgers(grid, plan, collect(grid))
    assert [ledger.store for ledger in found] == [STORE, "stores/none"]
    assert found[1].teacher == "vgg13"
    assert isinstance(timeline(found), pd.DataFrame)
