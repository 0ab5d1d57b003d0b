"""Several builders at once, killed ones and interrupted ones: what the provider billed is on the record."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections import defaultdict
from itertools import chain, repeat
from pathlib import Path

import numpy as np
import pytest

from benchmarks.stand_ins import scripted_teacher as scripted
from benchmarks.stand_ins.scripted_teacher import PRICE, TOKENS_IN, TOKENS_OUT, logits_of
from ground.errors import DiskFull, Interrupted
from storage.canaries import CanaryRecord
from storage.ledger_report import CallFilter, list_calls
from storage.store import Store
from tests.running import run_program
from tests.teacher_cache.remote.conftest import asking, in_ledger, problems, summary

CANARIES = 4
COST = PRICE.cost(TOKENS_IN, TOKENS_OUT)
UPPER = PRICE.upper(2 * TOKENS_IN, 2 * TOKENS_OUT)


def built(folder: Path, count: int, n: int, share: float, kill: int = 0, **budgets: int) -> list[str]:
    words = [f"{name}={value}" for name, value in budgets.items()]
    process = run_program("tests.teacher_cache.remote.builders", folder, count, n, share, kill, *words)
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout.splitlines()[-1])


def books(folder: Path) -> list[tuple[str, bool, bool]]:
    """Input, whether it was billed, whether nobody could know that: of every attempt in order."""
    lines = (line.split() for line in (folder / "books").read_text().splitlines())
    return [(digest, billed == "1", unknown == "1") for digest, billed, unknown in lines]


def require_honest(folder: Path) -> None:
    """The ledger against the provider's own books."""
    total, attempts = summary(folder / "store"), books(folder)
    billed = sum(is_billed for _, is_billed, _ in attempts)
    assert total.reserved == 0
    assert billed <= total.spent <= billed + total.lost
    assert billed * COST <= total.cost_micros <= billed * COST + total.lost * UPPER
    canaries = {digest.hex() for digest in CanaryRecord.load(folder / "store").inputs}
    before = defaultdict(list)
    for digest, is_billed, is_unknown in attempts:
        if digest[:32] not in canaries and is_billed:
            assert all(before[digest]), "an input was billed twice, and known to be"
            before[digest].append(is_unknown)
    store = Store.open(folder / "store")
    whole = store.valid()[:, 0]
    expected = logits_of(store.read("train/images").transpose(0, 3, 1, 2))
    np.testing.assert_array_equal(store.read("train/logits")[whole, 0], expected[whole])


@pytest.mark.slow
def test_eight_builders_share_the_work_and_no_input_is_billed_twice_for_nothing(tmp_path):
    assert built(tmp_path, 8, 160, 0.2) == ["done"] * 8
    require_honest(tmp_path)
    assert summary(tmp_path / "store").committed == 160 + 8 * CANARIES
    assert problems(tmp_path / "store") == []


@pytest.mark.slow
def test_eight_builders_never_pass_a_budget(tmp_path):
    calls = built(tmp_path, 8, 160, 0.2, budget=192)
    assert any("BudgetRefused" in outcome for outcome in calls)
    total = summary(tmp_path / "store")
    assert total.spent <= 192
    require_honest(tmp_path)


@pytest.mark.slow
def test_eight_builders_never_pass_a_budget_in_money(tmp_path):
    most = 100 * COST
    outcomes = built(tmp_path, 8, 160, 0.2, budget_micros=most)
    assert all("BudgetRefused" in outcome for outcome in outcomes)
    assert most - 8 * UPPER <= summary(tmp_path / "store").cost_micros <= most
    require_honest(tmp_path)


def test_what_a_killed_builder_had_under_way_counts_as_lost_and_is_asked_again(tmp_path):
    assert built(tmp_path, 1, 60, 0.0, kill=CANARIES + 30) == ["killed"]
    before = summary(tmp_path / "store")
    assert before.reserved > 0
    assert built(tmp_path, 1, 60, 0.0) == ["done"]
    total = summary(tmp_path / "store")
    assert total.lost > 0
    assert total.committed == 60 + 2 * CANARIES
    billed = sum(is_billed for _, is_billed, _ in books(tmp_path))
    assert billed <= total.spent <= billed + total.lost
    assert problems(tmp_path / "store") == []


@pytest.mark.slow
def test_others_go_on_where_one_is_killed(tmp_path):
    outcomes = built(tmp_path, 4, 120, 0.1, kill=CANARIES + 8)
    assert outcomes == ["killed", "done", "done", "done"]
    total = summary(tmp_path / "store")
    billed = sum(is_billed for _, is_billed, _ in books(tmp_path))
    assert billed <= total.spent <= billed + total.lost
    assert Store.open(tmp_path / "store").valid().all()
    assert problems(tmp_path / "store") == []


def test_a_builder_that_is_killed_among_its_canaries_leaves_none_unsettled(tmp_path):
    assert built(tmp_path, 1, 40, 0.0, kill=2) == ["killed"]
    assert summary(tmp_path / "store").reserved == CANARIES
    assert built(tmp_path, 1, 40, 0.0) == ["done"]
    total = summary(tmp_path / "store")
    assert (total.committed, total.lost, total.reserved) == (40 + CANARIES, CANARIES, 0)
    assert problems(tmp_path / "store") == []


def test_what_is_under_way_at_an_interruption_is_waited_for_and_kept(tmp_path, runs):
    def interrupt(count: int) -> None:
        if count == CANARIES + 10:
            os.kill(os.getpid(), signal.SIGINT)

    teacher = runs.teacher(latency=0.1, on_attempt=interrupt)
    with pytest.raises(Interrupted, match="run the same command again"):
        runs.build(tmp_path / "s", teacher)
    total = summary(tmp_path / "s")
    assert (total.reserved, total.lost) == (0, 0)
    assert total.committed == teacher.attempts.total() < CANARIES + 40
    assert total.returned > 0, "what was charged ahead is given back"
    again = runs.teacher()
    runs.build(tmp_path / "s", again)
    assert not set(again.attempts) & set(teacher.attempts) - canary_images(tmp_path / "s", teacher)
    assert problems(tmp_path / "s") == []


def canary_images(store: Path, teacher) -> set[bytes]:
    known = {*CanaryRecord.load(store).inputs}
    return {digest for digest in teacher.attempts if digest[:16] in known}


def test_at_a_second_interruption_what_was_answered_is_spooled_and_the_rest_is_lost(tmp_path, runs):
    def interrupt(count: int) -> None:
        if count == CANARIES + 6:
            teacher.latency = 30  # those that are answered from here on
            for seconds in (0.3, 0.8):
                threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGINT)).start()

    teacher = runs.teacher(on_attempt=interrupt)
    with pytest.raises(KeyboardInterrupt):
        runs.build(tmp_path / "s", teacher, asking=asking(deadline_seconds=60))
    before = summary(tmp_path / "s")
    assert before.returned > 0, "what was charged ahead and not sent is given back at once"
    assert 0 < before.reserved <= 4 + 6
    report = runs.build(tmp_path / "s", runs.teacher())
    total = summary(tmp_path / "s")
    assert report.lost_calls == total.lost > 0
    assert total.committed == 40 + 2 * CANARIES
    # Answered before the first interruption, so neither lost nor asked again.
    assert total.lost <= 4
    assert problems(tmp_path / "s") == []


def test_answers_in_hand_at_a_full_disk_are_kept_with_those_under_way(tmp_path, runs, monkeypatch):
    write, calls = Store.write_outputs, []

    def failing(self, *arguments):
        calls.append(1)
        if len(calls) == 2:
            raise DiskFull("no room left")
        return write(self, *arguments)

    teacher = runs.teacher(latency=0.02, faults=chain(repeat(None, CANARIES + 12), [scripted.REFUSAL]))
    with monkeypatch.context() as patch:
        patch.setattr(Store, "write_outputs", failing)
        with pytest.raises(DiskFull):
            runs.build(tmp_path / "s", teacher)
    again = runs.teacher()
    report = runs.build(tmp_path / "s", again)
    total = summary(tmp_path / "s")
    assert report.adopted_calls > 0
    assert total.lost == 0
    # What was spooled has its bill, request and all; the refusal alone names none.
    bills = in_ledger(tmp_path / "s", lambda ledger: list(list_calls(ledger, CallFilter(status="committed"))))
    assert {bill["billed"] for bill in bills} == {"yes"}
    assert {bill["cost_micros"] for bill in bills} == {COST}
    assert sum(bill["request_id"] is None for bill in bills) == 1
    assert np.isnan(Store.open(tmp_path / "s").read("train/logits")).all(axis=2).sum() == 1
    attempts = teacher.attempts + again.attempts
    assert max(attempts[digest] for digest in {*attempts} - canary_images(tmp_path / "s", teacher)) == 1
    assert problems(tmp_path / "s") == []
