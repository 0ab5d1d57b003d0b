"""Builders that share a store or a ledger: together they make the calls of one, whatever happens to any of them."""

from __future__ import annotations

import random
import signal
import socket
import sqlite3
import threading
import time
from contextlib import closing, contextmanager, nullcontext, suppress
from pathlib import Path

import numpy as np
import psycopg
import pytest
import sqlalchemy as sa

from ground.errors import StoreUnreadable
from storage.digest import input_digests
from storage.ledger import Ledger
from storage.ledger_records import Lease, Summary
from storage.store import Store
from storage.store_folder import LEDGER_FILE
from storage.verify import store_problems
from teacher_cache.build import build
from teacher_cache.lease import Heartbeat, Watch
from teacher_cache.prepare import prepare_build
from teacher_cache.teachers import ZooTeacher
from tests.conftest import run_command
from tests.ledgers import make_session
from tests.running import begin_program
from tests.teacher_cache.builders import committed_calls, forwards, wait_until
from tests.teacher_cache.shared_builder import Job

N, BATCH, LEASE_SECONDS = 96, 8, 2.0
# What one builder that dies can have in hand: a batch that is being written, and the one at the teacher.
MOST_LOST = 2 * BATCH


def jobs_on(url: str | None, folder: Path, weights: Path):
    """Makes jobs on one ledger and, unless told otherwise, on one store."""

    def make(name: str, **changes) -> Job:
        fields = {
            "folder": str(folder),
            "store": str(folder / "store"),
            "weights": str(weights),
            "ledger": url,
            "n": N,
            "batch_size": BATCH,
            "lease_seconds": LEASE_SECONDS,
            "start_at": time.time() + 0.2,
        }
        return Job(name=name, **fields | changes)

    return make


@pytest.fixture
def job(tmp_path, weights, ledger_url):
    return jobs_on(ledger_url, tmp_path, weights)


@pytest.fixture(scope="module")
def built_alone(tmp_path_factory, weights) -> Path:
    folder = tmp_path_factory.mktemp("alone") / "store"
    build(*prepare_build(Job(name="alone", folder="", store=str(folder), weights=str(weights), n=N).config()))
    return folder


def require_whole(folder: Path, url: str, n: int = N) -> Summary:
    """Check a store and its ledger, in which every input must be committed once; returns the ledger's totals."""
    store = Store.open(folder)
    with closing(Ledger(url)) as ledger:
        assert [str(problem) for problem in store_problems(store, ledger)] == []
        committed, totals = committed_calls(ledger), ledger.summary()
    identity = store.manifest.identity
    inputs = {
        digest
        for row in input_digests(store.read("train/images"), store.read("train/views"), identity.geometry)
        for digest in row
    }
    assert inputs <= committed.keys()
    assert set(committed.values()) == {1}
    assert store.valid_prefix() == n
    return totals


def require_same_content(folder: Path, reference: Path) -> None:
    """What the teacher said may differ in its last bits, since batches do; all else may not."""
    one, other = Store.open(folder), Store.open(reference)
    close = {"train/logits": 1e-4, "train/features/layer1": 2e-3}
    assert one.arrays.specs.keys() == other.arrays.specs.keys() >= close.keys()
    for name in one.arrays.specs.keys() - {"train/digest"}:
        found, expected = one.read(name), other.read(name)
        if name in close:
            np.testing.assert_allclose(found, expected, rtol=close[name], atol=close[name], err_msg=name)
        else:
            np.testing.assert_array_equal(found, expected, err_msg=name)


def build_with_deaths(builders, job, tmp_path, *, count: int, deaths: int, seed: int, **changes) -> list[dict]:
    """Start builders together and kill some of them, each at a moment of its own; returns what became of the rest."""
    n, chance = changes.get("n", N), random.Random(seed)
    started = [builders.start(job(f"builder{place}", **changes)) for place in range(count)]
    moments = sorted(chance.randrange(BATCH, n * 2 // 3) for _ in range(deaths))
    for victim, moment in zip(started, moments, strict=False):
        wait_until(lambda moment=moment: forwards(tmp_path) >= moment, 60, victim.log())
        time.sleep(chance.uniform(0, 0.2))
        if victim.state():
            victim.signal(signal.SIGKILL)
    return [builder.wait(120) for builder in started[deaths:]]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ledger_url", "array_format"), [("sqlite", "zarr"), ("postgresql", "hdf5")], indirect=["ledger_url"]
)
def test_builders_of_one_store_make_its_calls_once_even_when_some_are_killed(
    builders, job, tmp_path, ledger_url, built_alone, array_format
):
    budget = N + 2 * MOST_LOST
    settings = {"array_format": array_format, "budget": budget, "slow_ms": 15}
    outcomes = build_with_deaths(builders, job, tmp_path, count=3, deaths=2, seed=len(array_format), **settings)
    assert [outcome["exit_code"] for outcome in outcomes] == [0], outcomes
    totals = require_whole(tmp_path / "store", ledger_url)
    assert (totals.committed, totals.reserved) == (N, 0)
    assert forwards(tmp_path) <= totals.spent <= budget
    require_same_content(tmp_path / "store", built_alone)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("array_format", ["zarr", "hdf5"])
def test_many_builders_of_one_store_make_its_calls_once_even_when_most_are_killed(
    builders, job, tmp_path, ledger_url, array_format, seed
):
    n = 480
    settings = {"array_format": array_format, "n": n, "budget": n + 5 * MOST_LOST, "slow_ms": 15}
    outcomes = build_with_deaths(builders, job, tmp_path, count=8, deaths=5, seed=seed, **settings)
    assert [outcome["exit_code"] for outcome in outcomes] == [0, 0, 0], outcomes
    totals = require_whole(tmp_path / "store", ledger_url, n)
    assert (totals.committed, totals.reserved) == (n, 0)
    assert forwards(tmp_path) <= totals.spent <= n + 5 * MOST_LOST


@pytest.mark.slow
def test_what_a_builder_published_before_it_died_is_committed_by_who_comes_later(builders, job, tmp_path, ledger_url):
    """Its cells look whole to a builder that joins: their calls must not stay unsettled for that."""
    keeper = builders.start(job("keeper", stop_at="call"))
    keeper.wait_until_stopped()  # so that whoever comes joins a build that is under way, and does not settle it alone
    dead = builders.start(job("dead", stop_at="commit"))
    dead.wait_until_stopped()
    other = builders.start(job("other"))
    dead.signal(signal.SIGKILL)
    assert other.wait()["exit_code"] == 0, other.log()
    totals = require_whole(tmp_path / "store", ledger_url)
    assert (totals.committed, totals.reserved) == (N, 0)
    keeper.signal(signal.SIGCONT)
    assert keeper.wait()["exit_code"] in (0, 2)


@pytest.mark.slow
def test_builders_that_nothing_happens_to_lose_nothing(builders, job, tmp_path, ledger_url):
    # So slow that none is through before the others have begun, however busy the machine is.
    started = [builders.start(job(f"builder{place}", slow_ms=250)) for place in range(3)]
    outcomes = [builder.wait() for builder in started]
    assert [outcome["exit_code"] for outcome in outcomes] == [0, 0, 0], outcomes
    assert sum(outcome["new_calls"] for outcome in outcomes) == N
    assert sorted(outcome["new_calls"] > 0 for outcome in outcomes) == [True, True, True], "the work is divided"
    totals = require_whole(tmp_path / "store", ledger_url)
    assert (totals.committed, totals.spent, forwards(tmp_path)) == (N, N, N)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ledger_url", "step"),
    [
        ("sqlite", "call"),
        ("postgresql", "write"),
        ("sqlite", "answer"),
        ("sqlite", "write"),
        ("sqlite", "commit"),
        ("postgresql", "call"),
        ("postgresql", "answer"),
        ("postgresql", "commit"),
    ],
    indirect=["ledger_url"],
)
def test_a_builder_that_is_stopped_for_longer_than_its_lease_does_no_harm(
    builders, job, tmp_path, ledger_url, built_alone, step
):
    sleeper = builders.start(job("sleeper", stop_at=step))
    sleeper.wait_until_stopped()
    other = builders.start(job("other"))
    if step == "write":
        wait_until(lambda: "stopped answering" in other.log(), 30, "its lease is not taken")
        time.sleep(0.5)
        assert other.state(), "cells that are being written are left to who writes them"
    else:
        assert other.wait()["exit_code"] == 0, other.log()
        assert Store.open(tmp_path / "store").valid_prefix() == N
    sleeper.signal(signal.SIGCONT)
    outcome = sleeper.wait()
    assert outcome["exit_code"] == 0 or (outcome["error"], outcome["exit_code"]) == ("StoreBusy", 2), outcome
    assert outcome["exit_code"] == 0 or "its lease ended and its calls in hand were given up" in outcome["message"]
    assert other.wait()["exit_code"] == 0, other.log()
    totals = require_whole(tmp_path / "store", ledger_url)
    assert (totals.committed, totals.reserved) == (N, 0)
    assert forwards(tmp_path) <= totals.spent <= N + MOST_LOST
    require_same_content(tmp_path / "store", built_alone)


@pytest.mark.slow
@pytest.mark.parametrize("ledger_url", ["sqlite"], indirect=True)
def test_who_waits_for_cells_that_a_stopped_builder_holds_ends_and_says_so(builders, job, tmp_path, ledger_url):
    sleeper = builders.start(job("sleeper", stop_at="write", lease_seconds=1.0))
    sleeper.wait_until_stopped()
    other = builders.start(job("other", lease_seconds=1.0))
    outcome = other.wait(30)
    assert (outcome["error"], outcome["exit_code"]) == ("StoreBusy", 2), outcome
    said = f"stayed locked for 1 s: cells.lock is held by process {sleeper.pid} ("
    assert said in outcome["message"], outcome
    assert f"which is stopped; let it go on with: kill -CONT {sleeper.pid}" in outcome["message"]
    assert Store.open(tmp_path / "store").valid().sum() == N - BATCH, "what others can do is done"
    sleeper.signal(signal.SIGCONT)
    assert sleeper.wait()["exit_code"] in (0, 2)
    again = builders.start(job("again"))
    assert again.wait()["exit_code"] == 0, again.log()
    totals = require_whole(tmp_path / "store", ledger_url)
    assert (totals.committed, totals.reserved) == (N, 0)
    assert forwards(tmp_path) <= totals.spent <= N + MOST_LOST


@pytest.mark.slow
def test_who_waits_for_a_store_that_a_stopped_builder_is_making_ends_and_says_so(builders, tmp_path, weights):
    job = jobs_on(None, tmp_path, weights)
    maker = builders.start(job("maker", stop_at="open", stop_in=1))
    maker.wait_until_stopped()
    outcome = builders.start(job("other", lease_seconds=0.5)).wait(30)
    assert (outcome["error"], outcome["exit_code"]) == ("StoreBusy", 2), outcome
    assert f"is being made, grown or repaired: build.lock is held by process {maker.pid}" in outcome["message"]
    assert f"let it go on with: kill -CONT {maker.pid}" in outcome["message"]
    maker.signal(signal.SIGCONT)
    assert maker.wait()["exit_code"] == 0, maker.log()


@pytest.mark.slow
def test_a_builder_that_is_stopped_in_the_middle_of_a_transaction_does_not_stop_the_others(
    builders, tmp_path, postgres, weights
):
    url = postgres.new_database()
    job = jobs_on(url, tmp_path, weights)
    sleeper = builders.start(job("sleeper", stop_at="transaction", stop_in=1, idle_seconds=2.0))
    sleeper.wait_until_stopped()
    other = builders.start(job("other"))
    assert other.wait(20)["exit_code"] == 0, other.log()
    sleeper.signal(signal.SIGCONT)
    assert sleeper.wait()["exit_code"] in (0, 2), sleeper.log()
    totals = require_whole(tmp_path / "store", url)
    assert (totals.committed, totals.reserved) == (N, 0)
    assert forwards(tmp_path) <= totals.spent


@pytest.mark.slow
def test_stores_that_are_built_at_once_on_one_ledger_make_the_same_calls_once(builders, job, tmp_path, ledger_url):
    start_at = time.time() + 0.3
    started = [
        builders.start(
            job(name, store=str(tmp_path / name), array_format=name, start_at=start_at, slow_ms=10, lease_seconds=20.0)
        )
        for name in ("zarr", "hdf5")
    ]
    outcomes = [builder.wait() for builder in started]
    assert [outcome["exit_code"] for outcome in outcomes] == [0, 0], outcomes
    assert sum(outcome["new_calls"] for outcome in outcomes) == forwards(tmp_path) == N
    assert sum(outcome["reused_calls"] for outcome in outcomes) == N
    for name in ("zarr", "hdf5"):
        totals = require_whole(tmp_path / name, ledger_url)
        assert (totals.committed, totals.spent) == (N, N)
    require_same_content(tmp_path / "zarr", tmp_path / "hdf5")


@pytest.mark.slow
def test_stores_that_are_built_at_once_cannot_pass_a_budget_together(builders, job, tmp_path, ledger_url):
    budget, start_at = N + N // 2 + 3, time.time() + 0.3
    started = [
        builders.start(
            job(
                f"seed{seed}",
                store=str(tmp_path / f"seed{seed}"),
                seed=seed,
                budget=budget,
                start_at=start_at,
                slow_ms=10,
                lease_seconds=20.0,
            )
        )
        for seed in (0, 1)
    ]
    outcomes = [builder.wait() for builder in started]
    refused = [outcome for outcome in outcomes if outcome["exit_code"] != 0]
    assert refused, "the test needs more calls than the budget"
    assert {(outcome["exit_code"], outcome["error"]) for outcome in refused} == {(3, "BudgetRefused")}, refused
    with closing(Ledger(ledger_url)) as ledger:
        totals = ledger.summary()
    assert forwards(tmp_path) == totals.spent <= budget
    assert totals.spent > budget - BATCH, "no more is refused than has to be"
    assert (totals.reserved, totals.lost) == (0, 0)


@pytest.mark.parametrize("looked", [1, 2])
def test_a_budget_that_is_just_enough_is_enough_for_a_builder_that_joins(builders, tmp_path, weights, looked):
    url = f"sqlite:///{tmp_path / 'shared.sqlite'}"
    job = jobs_on(url, tmp_path, weights)
    first = builders.start(job("first", budget=N, slow_ms=20))
    wait_until(lambda: forwards(tmp_path) >= BATCH, 30, first.log())
    # Between looking what is known and checking the budget, others go on.
    second = builders.start(job("second", budget=N, stop_at="known", stop_in=looked))
    wait_until(lambda: second.state() in ("T", ""), 30, second.log())
    before = forwards(tmp_path)
    wait_until(lambda: forwards(tmp_path) >= before + 3 * BATCH or not first.state(), 30, first.log())
    if second.state():
        second.signal(signal.SIGCONT)
    outcomes = [first.wait(), second.wait()]
    assert [outcome["exit_code"] for outcome in outcomes] == [0, 0], outcomes
    totals = require_whole(tmp_path / "store", url)
    assert (totals.committed, totals.spent, forwards(tmp_path)) == (N, N, N)


@pytest.mark.parametrize("dies", [False, True])
@pytest.mark.slow
def test_a_builder_that_comes_while_a_store_is_being_made_waits_or_goes_on(builders, tmp_path, weights, dies):
    job = jobs_on(None, tmp_path, weights)
    # The store is there, and its ledger is not yet.
    maker = builders.start(job("maker", stop_at="open", stop_in=1))
    maker.wait_until_stopped()
    other = builders.start(job("other"))
    wait_until(lambda: "waiting until that ends" in other.log() or not other.state(), 30, other.log())
    maker.signal(signal.SIGKILL if dies else signal.SIGCONT)
    assert other.wait()["exit_code"] == 0, other.log()
    assert dies or maker.wait()["exit_code"] == 0, maker.log()
    totals = require_whole(tmp_path / "store", str(tmp_path / "store" / LEDGER_FILE))
    assert (totals.committed, totals.spent, forwards(tmp_path)) == (N, N, N)


@pytest.mark.slow
def test_a_ledger_that_is_being_made_is_not_taken_for_a_broken_one(builders, job, tmp_path, ledger_url):
    maker = builders.start(job("maker", stop_at="begin", stop_in=1))
    maker.wait_until_stopped()
    other = builders.start(job("other", store=str(tmp_path / "other")))
    time.sleep(1.0)
    maker.signal(signal.SIGCONT)
    assert [builder.wait()["exit_code"] for builder in (maker, other)] == [0, 0], other.log()
    require_whole(tmp_path / "store", ledger_url)
    require_whole(tmp_path / "other", ledger_url)


# A server that goes away


@pytest.mark.slow
def test_a_build_outlasts_a_server_that_is_started_again(builders, tmp_path, postgres, weights):
    url = postgres.new_database()
    builder = builders.start(jobs_on(url, tmp_path, weights)("builder", slow_ms=10, lease_seconds=60.0))
    wait_until(lambda: forwards(tmp_path) >= 3 * BATCH, 30, builder.log())
    with stopped(postgres):
        time.sleep(1.0)
        assert builder.state(), builder.log()
    outcome = builder.wait()
    assert (outcome["exit_code"], outcome["new_calls"]) == (0, N), outcome
    totals = require_whole(tmp_path / "store", url)
    assert (totals.committed, totals.lost, forwards(tmp_path)) == (N, 0, N)
    assert "cannot be used" in builder.log()
    assert "trying again" in builder.log()
    assert postgres.password not in builder.log()


def test_a_lease_ends_only_while_it_is_watched():
    now = [0.0]
    watch, lease = Watch(LEASE_SECONDS, clock=lambda: now[0]), Lease(1, "s", "/s", "h", beat=7)
    assert watch.silent({1: lease}, now[0]) == []
    now[0] += 10 * LEASE_SECONDS  # the server was away, or this machine asleep: nobody could show that it lives
    assert watch.silent({1: lease}, now[0]) == []
    for _ in range(9):
        now[0] += LEASE_SECONDS / 10
        assert watch.silent({1: lease}, now[0]) == []
    now[0] += LEASE_SECONDS / 10 + 0.001
    assert watch.silent({1: lease}, now[0]) == [lease]


def test_a_lease_ends_only_while_our_own_beats_get_through():
    now = [0.0]
    watch, lease = Watch(LEASE_SECONDS, clock=lambda: now[0]), Lease(1, "s", "/s", "h", beat=7)
    for _ in range(50):  # the database is busy for five leases
        now[0] += LEASE_SECONDS / 10
        assert watch.silent({1: lease}, 0.0) == []
    silent = []
    for _ in range(11):
        assert silent == []
        now[0] += LEASE_SECONDS / 10
        silent = watch.silent({1: lease}, now[0])
    assert silent == [lease], "a whole lease, from when beats got through"


def test_a_database_that_is_busy_for_longer_than_a_lease_ends_no_living_builders(tmp_path):
    seconds, path = 0.6, tmp_path / "ledger.sqlite"
    session = make_session(teacher_name="resnet8", purpose="build")
    with closing(Ledger(path, create=True)) as ledger, closing(Ledger(path)) as other:
        ours, theirs = ledger.start_session(session), ledger.start_session(session)
        dead = ledger.start_session(session)
        watch, ended = Watch(seconds), set()

        def look_for(leases: float) -> None:
            until = time.monotonic() + leases * seconds
            while time.monotonic() < until:
                ended.update(lease.session for lease in watch.silent(ledger.leases(), heartbeat.landed))
                time.sleep(seconds / 20)

        with Heartbeat(ledger, ours, seconds) as heartbeat, Heartbeat(other, theirs, seconds) as living:
            with closing(sqlite3.connect(path, isolation_level=None)) as busy:
                busy.execute("BEGIN IMMEDIATE")
                look_for(2.5)
                assert ended == set(), "nobody could write"
            look_for(2.5)
        assert ended == {dead}
        assert not living.lost


@pytest.mark.slow
def test_a_server_that_is_away_for_longer_than_a_lease_ends_no_builders_lease(builders, tmp_path, postgres, weights):
    url = postgres.new_database()
    job = jobs_on(url, tmp_path, weights)
    # One that has done all the rest waits for one whose teacher takes its time.
    slow = builders.start(job("slow", slow_ms=1500, n=BATCH, store=str(tmp_path / "slow")))
    wait_until(lambda: forwards(tmp_path) > 0, 30, slow.log())
    watcher = builders.start(job("watcher"))
    wait_until(lambda: forwards(tmp_path) >= N or not watcher.state(), 30, watcher.log())
    time.sleep(0.5)
    with stopped(postgres):
        time.sleep(LEASE_SECONDS + 1.0)
        assert slow.state(), "the test needs a slower teacher"
    outcomes = [slow.wait(), watcher.wait()]
    assert [outcome["exit_code"] for outcome in outcomes] == [0, 0], outcomes
    totals = require_whole(tmp_path / "store", url)
    assert (totals.committed, totals.lost, forwards(tmp_path)) == (N, 0, N)


@pytest.mark.parametrize("reaches_server", [True, False])
def test_a_lost_answer_to_a_commit_repeats_no_call(tmp_path, postgres, weights, monkeypatch, reaches_server):
    url, counted, call = postgres.new_database(), [], ZooTeacher.call

    def counting(self, views, outputs):
        counted.append(len(views))
        return call(self, views, outputs)

    monkeypatch.setattr(ZooTeacher, "call", counting)
    with proxy_that_loses_commits(postgres.port, every=3, reaches_server=reaches_server) as (port, lost):
        through = url.replace(f":{postgres.port}/", f":{port}/")
        report = build(*prepare_build(jobs_on(through, tmp_path, weights)("alone", n=32).config()))
    assert len(lost) >= 3, "the test needs commits that are lost"
    assert (report.new_calls, report.lost_calls, sum(counted)) == (32, 0, 32)
    totals = require_whole(tmp_path / "store", url, 32)
    assert (totals.committed, totals.spent) == (32, 32)


@contextmanager
def stopped(server, mode: str = "immediate"):
    # After a crash a server goes through all that was written since the last checkpoint: hundreds of databases.
    with psycopg.connect(server.url, autocommit=True) as connection:
        connection.execute("CHECKPOINT")
    server.stop(mode)
    try:
        yield
    finally:
        server.start()


@contextmanager
def proxy_that_loses_commits(port: int, *, every: int, reaches_server: bool):
    """Forward to a server, and cut every so many-th connection that commits, before or after the server did.

    Yields:
        Its port, and a list that grows with each cut.
    """
    listening = socket.create_server(("127.0.0.1", 0))
    commits, lost, open_sockets = [], [], [listening]

    def forward(source: socket.socket, target: socket.socket, *, is_client: bool) -> None:
        try:
            while content := source.recv(1 << 16):
                if is_client and b"COMMIT\0" in content:
                    commits.append(content)
                    if len(commits) % every == 0:
                        lost.append(content)
                        if reaches_server:
                            swallow.add(target)
                            target.sendall(content)
                            while target in swallow:
                                time.sleep(0.001)
                        break
                if not is_client and source in swallow:
                    swallow.discard(source)
                    break
                target.sendall(content)
        except OSError:
            pass
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    swallow: set[socket.socket] = set()

    def serve() -> None:
        while True:
            try:
                client, _ = listening.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", port))
            open_sockets.extend((client, server))
            for source, target, is_client in ((client, server, True), (server, client, False)):
                threading.Thread(target=forward, args=(source, target), kwargs={"is_client": is_client}).start()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield listening.getsockname()[1], lost
    finally:
        for end in open_sockets:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        thread.join(10)
        for end in open_sockets:
            end.close()


# Opening a ledger


@pytest.mark.slow
def test_processes_that_make_a_ledger_at_the_same_moment_all_succeed(tmp_path, ledger_url):
    begun_at = time.time() + 1.5
    started = [begin_program("tests.teacher_cache.ledger_maker", ledger_url, begun_at) for _ in range(4)]
    ended = [process.completed() for process in started]
    assert [process.returncode for process in ended] == [0, 0, 0, 0], [process.stderr for process in ended]
    with closing(Ledger(ledger_url)) as ledger, ledger.reading() as connection:
        assert connection.execute(sa.text("SELECT kind FROM entries")).scalars().all() == ["genesis"]


@pytest.mark.slow
def test_a_ledgers_password_is_written_and_said_nowhere(tmp_path, postgres, weights):
    url, store = postgres.new_database(), tmp_path / "store"
    asked = ["--teacher", "resnet8", "--weights", weights, "--dataset", "digits", "--n", 16, "--device", "cpu"]
    said = [
        run_command("ckd-cache", "build", *asked, "--store", store, "--ledger", url),
        run_command("ckd-cache", "info", "--store", store),
    ]
    assert [result.returncode for result in said] == [0, 0], [result.stderr for result in said]
    assert "ckd:***@127.0.0.1" in said[1].stdout
    other = url.rpartition("/")[0] + "/no_such_database"
    refused = run_command("ckd-cache", "--debug", "build", *asked, "--store", tmp_path / "new", "--ledger", other)
    assert refused.returncode != 0
    assert "no_such_database" in refused.stderr
    said.append(refused)
    texts = [text.encode() for result in said for text in (result.stdout, result.stderr)]
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert store / "manifest.json" in files
    for content in (*texts, *(path.read_bytes() for path in files)):
        assert postgres.password.encode() not in content


@pytest.mark.parametrize("fault", ["a wrong password", "no such database", "a stopped server"])
@pytest.mark.slow
def test_a_server_that_refuses_is_named_without_the_password(postgres, fault):
    url, password = postgres.new_database(), postgres.password
    if fault == "a wrong password":
        password = "not-the-secret"
        url = url.replace(postgres.password, password)
    if fault == "no such database":
        url = url.rpartition("/")[0] + "/no_such_database"
    with (
        stopped(postgres, "fast") if fault == "a stopped server" else nullcontext(),
        pytest.raises(
            StoreUnreadable, match=r"the ledger at postgresql.*://ckd:\*\*\*@127.0.0.1.* cannot be used"
        ) as told,
    ):
        Ledger(url)
    error: BaseException | None = told.value
    while error is not None:
        assert password not in str(error)
        error = error.__cause__
