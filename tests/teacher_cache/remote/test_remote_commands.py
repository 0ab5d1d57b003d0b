"""`ckd-cache build` with a teacher that is elsewhere, as a user runs it."""

from __future__ import annotations

import json
from itertools import chain, repeat

import pytest

from benchmarks.stand_ins import scripted_teacher as scripted
from storage.store import Store
from tests.conftest import run_command
from tests.teacher_cache.remote.conftest import summary

CANARIES = 4


@pytest.fixture
def teacher(runs, monkeypatch):
    """Answers whatever the command opens."""
    made = runs.teacher(price=None)
    monkeypatch.setattr("teacher_cache.prepare.open_remote", lambda asked: made)
    return made


def command(store, *arguments, n: int = 40):
    usual = ("--teacher", "openai:scripted", "--base-url", "http://127.0.0.1:9/v1", "--dataset", "digits")
    return run_command("ckd-cache", "build", *usual, "--store", store, "--n", n, "--trust-teacher", *arguments)


def test_a_dry_run_says_the_most_it_costs_and_how_long_it_takes_at_least(tmp_path, teacher):
    limits = ("--max-rpm", "500", "--price-call", "0.002", "--price-input", "2.5", "--dry-run")
    text = command(tmp_path / "s", *limits, n=996)
    assert text.returncode == 0, text.stderr
    assert "996 to be made, and 4 that tell whether the teacher is the same" in text.stdout
    # 1000 calls of 0.002, and of at most 170 tokens in.
    assert "at most 2.425 for these, where each is made once" in text.stdout
    assert "at least 2.0 minutes under the limits; nothing was called or written" in text.stdout
    found = json.loads(command(tmp_path / "s", *limits, "--json", n=996).stdout)
    assert (found["upper_cost"], found["seconds"], found["canary_calls"]) == ("2.425", 120.0, CANARIES)
    assert not teacher.attempts


def test_a_build_says_what_it_cost_and_what_failed(tmp_path, teacher):
    teacher.faults = chain(repeat(None, CANARIES + 2), [scripted.REJECTED, scripted.CUT, scripted.REFUSAL])
    done = command(tmp_path / "s", "--price-call", "0.01", "--in-flight", "4", "--budget-cost", "1")
    assert done.returncode == 0, done.stderr
    assert "40 new teacher calls" in done.stdout
    assert "1 gave no answer and count as spent, 1 gave no answer and were not billed, 1 were refusals" in done.stdout
    assert "it cost 0.45" in done.stdout
    assert summary(tmp_path / "s").budget_micros == 1_000_000


def test_a_budget_in_money_ends_the_build_with_its_own_exit_code(tmp_path, teacher):
    done = command(tmp_path / "s", "--price-call", "0.01", "--budget-cost", "0.25")
    assert done.returncode == 3
    assert "--budget-cost" in done.stderr
    assert summary(tmp_path / "s").cost_micros == 250_000
    assert Store.open(tmp_path / "s").valid().sum() == 25 - CANARIES
    assert command(tmp_path / "s", "--price-call", "0.01", "--budget-cost", "2").returncode == 0


def test_a_teacher_that_gives_no_answer_is_one_line_and_exit_1(tmp_path, teacher):
    teacher.faults = repeat(scripted.FINAL)
    done = command(tmp_path / "s")
    assert done.returncode == 1
    assert "openai:scripted gives no answer: 401 Unauthorized" in done.stderr
    assert "Traceback" not in done.stderr


def build_here(store, weights):
    """A build by a teacher that answers over no network."""
    teacher = ("--teacher", "resnet8", "--weights", weights, "--dataset", "digits")
    return ("build", *teacher, "--store", store, "--n", "20")


@pytest.mark.parametrize(
    "option", [("--in-flight", "2"), ("--deadline", "9"), ("--max-rpm", "9"), ("--price-input", "1")]
)
def test_what_means_nothing_for_a_teacher_that_runs_here_is_refused(tmp_path, weights, option):
    done = run_command("ckd-cache", *build_here(tmp_path / "s", weights), *option)
    assert done.returncode == 2
    assert f"{option[0]} is for teachers that answer over a network, and resnet8 runs here" in done.stderr


def test_a_teacher_that_runs_here_may_cost_something_too(tmp_path, weights):
    options = ("--trust-teacher", "--price-call", "0.5", "--budget-cost", "10")
    assert run_command("ckd-cache", *build_here(tmp_path / "s", weights), *options).returncode == 0
    assert summary(tmp_path / "s").cost_micros == 10_000_000
    # So may its extension, which the same budget holds back.
    extend = ("ckd-cache", "extend", "--store", tmp_path / "s", "--features", "pooled", "--weights", weights, "--yes")
    refused = run_command(*extend)
    assert refused.returncode == 2
    assert "a budget in money, and nobody says what its calls cost" in refused.stderr
    assert run_command(*extend, "--price-call", "0.5").returncode == 3
    assert run_command(*extend, "--price-call", "0").returncode == 0
    assert summary(tmp_path / "s").cost_micros == 10_000_000


@pytest.mark.parametrize(
    ("option", "value"), [("--budget-cost", "-1"), ("--price-call", "much"), ("--budget-cost", "0.0000001")]
)
def test_an_amount_that_is_none_is_refused(tmp_path, teacher, option, value):
    done = command(tmp_path / "s", option, value)
    assert done.returncode == 2
    assert not teacher.attempts
