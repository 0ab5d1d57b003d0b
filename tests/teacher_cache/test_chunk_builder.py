"""Builds in object storage: whole chunks of rows, each by one builder, whatever happens to any of them."""

from __future__ import annotations

import json
import signal
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from uuid import uuid4

import numpy as np
import pytest

from benchmarks.stand_ins import moto
from benchmarks.stand_ins.faulty_proxy import faulty_proxy
from benchmarks.stand_ins.object_server import BUCKET, object_service
from ground.errors import IdentityMismatch, InvalidInput, StorageFailed
from ground.places import ObjectUrl
from storage.ledger import Ledger, ledger_exists
from storage.ledger_records import Summary
from storage.price import Price
from storage.schema import CHUNK_ROWS
from storage.stage import Stage
from storage.store import Store
from storage.store_folder import DESKS
from storage.verify import published_problems
from teacher_cache.build import build
from teacher_cache.datasets import open_dataset
from teacher_cache.datasets.base import ArraySplit
from teacher_cache.prepare import prepare_build
from teacher_cache.publish import fetch, publish
from teacher_cache.remote.policy import AskingConfig
from teacher_cache.rest import Rest
from tests.conftest import run_command
from tests.teacher_cache.builders import committed_calls, wait_until
from tests.teacher_cache.builders import forwards as forwards_of
from tests.teacher_cache.shared_builder import Job

URL = ObjectUrl("s3", BUCKET, "stores/one")
# Three chunks of rows, the last of which is not full; four objects each.
N, BATCH, LEASE_SECONDS = 160, 16, 1.0
OBJECTS = 4


@pytest.fixture
def service(monkeypatch, tmp_path):
    with object_service() as found:
        for name, value in {**found.environment, DESKS: str(tmp_path / "desks")}.items():
            monkeypatch.setenv(name, value)
        yield found


@pytest.fixture
def ledger_url(postgres) -> str:
    return postgres.new_database()


@pytest.fixture
def job(tmp_path, weights, ledger_url, service):
    """Makes jobs on one store and one ledger; `machine` says whose desks are used."""

    def make(name: str, *, machine: str = "here", **changes) -> Job:
        fields = {
            "folder": str(tmp_path),
            "store": str(URL),
            "weights": str(weights),
            "ledger": ledger_url,
            "n": N,
            "batch_size": BATCH,
            "lease_seconds": LEASE_SECONDS,
            "environment": {**service.environment, DESKS: str(tmp_path / "desks" / machine)},
        }
        return Job(name=name, **fields | changes)

    return make


@pytest.fixture(scope="module")
def built_in_a_folder(tmp_path_factory, weights) -> Path:
    folder = tmp_path_factory.mktemp("folder") / "store"
    job = Job(name="folder", folder="", store=str(folder), weights=str(weights), n=N, batch_size=BATCH)
    build(*prepare_build(job.config()))
    return folder


def require_whole(url: str, reference: Path, place: ObjectUrl = URL) -> Summary:
    """Check a store and its ledger, in which every input must be committed once; returns the ledger's totals."""
    store = Store.open(place)
    with closing(Ledger(url)) as ledger:
        assert [str(problem) for problem in published_problems(store, ledger)] == []
        committed, totals = committed_calls(ledger), ledger.summary()
        assert (len(committed), set(committed.values()), totals.reserved) == (N, {1}, 0)
    require_same_content(store, Store.open(reference))
    return totals


def require_same_content(one: Store, other: Store) -> None:
    """What the teacher said may differ in its last bits, since batches do; all else may not."""
    close = {"train/logits": 1e-4, "train/features/layer1": 2e-3}
    for name in one.arrays.specs.keys() - {"train/digest"}:
        found, expected = one.read(name), other.read(name)
        if name in close:
            np.testing.assert_allclose(found, expected, rtol=close[name], atol=close[name], err_msg=name)
        else:
            np.testing.assert_array_equal(found, expected, err_msg=name)


def test_a_store_in_object_storage_is_that_of_a_folder(service, job, ledger_url, built_in_a_folder, tmp_path):
    report = build(*prepare_build(job("one").config()))
    assert (report.new_calls, report.rows_valid) == (N, N)
    one, other = Store.open(URL), Store.open(built_in_a_folder)
    for name in other.arrays.specs:
        np.testing.assert_array_equal(one.read(name), other.read(name), err_msg=name)
    totals = require_whole(ledger_url, built_in_a_folder)
    assert (totals.committed, totals.spent) == (N, N)
    written = [key for method, key in service.requests if method == "PUT" and ".probe-" not in key]
    assert len(written) == len(set(written)), "each object is written once"
    assert not list((tmp_path / "desks").glob("*/rows-*"))


def test_images_that_nothing_is_asked_about_are_kept_there_too(service, job, ledger_url, built_in_a_folder, tmp_path):
    config = job("one").config()
    report = build(*prepare_build(replace(config, rest=Rest(100))))
    assert (report.new_calls, report.rows_valid, report.rest) == (N, N, 100)
    store, other = Store.open(URL), Store.open(built_in_a_folder)
    with closing(Ledger(ledger_url)) as ledger:
        assert [str(problem) for problem in published_problems(store, ledger)] == []
        record = ledger.store_record(store.manifest.store_id)
    assert record is not None
    assert record["unasked"] == 100
    for name in other.arrays.specs:
        np.testing.assert_array_equal(store.read(name)[: len(other.read(name))], other.read(name), err_msg=name)
    assert len(store.read_sample("train/images")) == N + 100
    assert build(*prepare_build(config)).new_calls == 0
    with pytest.raises(InvalidInput, match="keeps 100 images beside those rows; leave out --rest"):
        prepare_build(replace(config, rest=Rest(101)))
    fetched = fetch(URL, tmp_path / "fetched")
    assert (fetched.manifest.n, fetched.manifest.rest) == (N, 100)


def test_a_plain_zarr_reader_reads_what_was_built(service, job):
    import zarr
    from obstore.store import S3Store

    build(*prepare_build(job("one").config()))
    endpoint = {"aws_endpoint": service.url, "aws_allow_http": "true"}
    objects = S3Store(BUCKET, prefix=f"{URL.path}/data.zarr", config=endpoint)
    group, store = zarr.open_group(zarr.storage.ObjectStore(objects, read_only=True), mode="r"), Store.open(URL)
    for name in ("train/logits", "train/images", "train/features/layer1", "test/labels"):
        np.testing.assert_array_equal(group[name][:], store.read(name), err_msg=name)


def test_the_same_command_again_calls_and_writes_nothing(service, job):
    build(*prepare_build(job("one").config()))
    before = dict(service.objects)
    report = build(*prepare_build(job("again").config()))
    assert (report.new_calls, report.rows_valid) == (0, N)
    assert service.objects == before


def test_calls_of_other_stores_of_the_ledger_are_copied_there_and_back(service, job, ledger_url, tmp_path):
    for number, place in enumerate((str(tmp_path / "folder"), str(URL), str(tmp_path / "third"))):
        report = build(*prepare_build(job(f"job{number}", store=place).config()))
        assert (report.new_calls, report.reused_calls) == ((N, 0) if number == 0 else (0, N))
    # The third has only the bucket to copy from.
    (tmp_path / "folder").rename(tmp_path / "gone")
    (tmp_path / "third").rename(tmp_path / "gone too")
    with pytest.raises(Exception, match="cannot be read"):
        prepare_build(job("fourth", store=str(tmp_path / "fourth")).config())


@pytest.mark.slow
def test_builders_that_nothing_happens_to_divide_the_chunks_and_lose_nothing(
    builders, job, tmp_path, ledger_url, service, built_in_a_folder
):
    started = [builders.start(job(f"builder{place}", slow_ms=20, machine=f"machine{place % 2}")) for place in range(3)]
    outcomes = [builder.wait() for builder in started]
    assert [outcome["exit_code"] for outcome in outcomes] == [0, 0, 0], outcomes
    totals = require_whole(ledger_url, built_in_a_folder)
    assert (totals.committed, totals.spent, forwards_of(tmp_path)) == (N, N, N)
    written = [key for method, key in service.requests if method == "PUT" and "/train/logits/c" in key]
    assert len(written) == len(set(written)) == 3


@pytest.mark.slow
def test_who_is_overtaken_before_he_has_charged_anything_finds_the_rows_answered(
    builders, job, ledger_url, built_in_a_folder, forwards, monkeypatch
):
    make, others = Stage.make, []

    def overtaken(*arguments, **options):
        if not others:
            others.append(builders.start(job("faster", machine="there")).wait())
        return make(*arguments, **options)

    monkeypatch.setattr(Stage, "make", overtaken)
    report = build(*prepare_build(job("slower").config()))
    assert others[0]["new_calls"] == N
    assert (report.new_calls, report.rows_valid, sum(forwards)) == (0, N, 0)
    assert require_whole(ledger_url, built_in_a_folder).spent == N


# Step, how often it is come to before, and what of the dead builder's calls is lost on its own machine: what it asked
# for, and did not stage.
DEATHS = [
    ("charged", 1, 0, 0),
    ("noted", 1, BATCH, 0),
    ("noted", 2, BATCH, BATCH),
    ("answer", 2, BATCH, BATCH),
    ("write", 2, BATCH, BATCH),
    ("written", 2, BATCH, BATCH),
    ("staged", 2, 0, 2 * BATCH),
    ("put", 1, 0, CHUNK_ROWS),
    ("commit", 1, 0, CHUNK_ROWS),
    ("committed", 1, 0, 0),
]


@pytest.mark.slow
@pytest.mark.parametrize(("step", "at", "lost", "staged"), DEATHS)
def test_what_a_killed_builder_left_is_gone_on_with_on_its_machine(
    builders, job, tmp_path, ledger_url, built_in_a_folder, step, at, lost, staged
):
    # The last chunk has fewer rows: here only its number of cells would differ.
    dead = builders.start(job("dead", kill_at=step, stop_in=at))
    assert dead.wait() == {}
    outcome = builders.start(job("next")).wait()
    assert outcome["exit_code"] == 0, outcome
    totals = require_whole(ledger_url, built_in_a_folder)
    assert totals.lost <= lost
    assert outcome["lost_calls"] == totals.lost
    assert outcome["adopted_calls"] <= staged
    assert forwards_of(tmp_path) <= totals.spent
    assert not list((tmp_path / "desks").glob("*/*/rows-*"))


@pytest.mark.slow
@pytest.mark.parametrize(("step", "is_there"), [("answer", False), ("put", False), ("commit", True)])
def test_what_a_killed_builder_left_is_settled_by_those_of_other_machines(
    builders, job, tmp_path, ledger_url, built_in_a_folder, step, is_there
):
    dead = builders.start(job("dead", kill_at=step, stop_in=1, machine="lost"))
    assert dead.wait() == {}
    outcome = builders.start(job("next")).wait()
    assert outcome["exit_code"] == 0, outcome
    totals = require_whole(ledger_url, built_in_a_folder)
    assert (totals.lost == 0) == is_there
    assert totals.lost <= CHUNK_ROWS
    # On its own machine nothing is left of it, once somebody builds there.
    again = builders.start(job("again", machine="lost")).wait()
    assert (again["exit_code"], again["new_calls"]) == (0, 0), again
    assert not list((tmp_path / "desks").glob("*/*/rows-*"))


@pytest.mark.slow
@pytest.mark.parametrize("step", ["answer", "put", "commit"])
def test_a_builder_that_is_stopped_for_longer_than_its_lease_does_no_harm(
    builders, job, ledger_url, built_in_a_folder, step
):
    sleeper = builders.start(job("sleeper", stop_at=step, stop_in=1, machine="asleep"))
    sleeper.wait_until_stopped()
    other = builders.start(job("other"))
    assert other.wait()["exit_code"] == 0, other.log()
    sleeper.signal(signal.SIGCONT)
    outcome = sleeper.wait()
    assert outcome["exit_code"] == 0 or (outcome["error"], outcome["exit_code"]) == ("StoreBusy", 2), outcome
    again = builders.start(job("again", machine="asleep")).wait()
    assert again["exit_code"] == 0, again
    require_whole(ledger_url, built_in_a_folder)


@pytest.mark.slow
def test_rows_of_a_builder_that_is_stopped_on_this_machine_are_left_to_it(builders, job, ledger_url, built_in_a_folder):
    sleeper = builders.start(job("sleeper", stop_at="answer", stop_in=1))
    sleeper.wait_until_stopped()
    outcome = builders.start(job("other")).wait()
    assert (outcome["error"], outcome["exit_code"]) == ("StoreBusy", 2), outcome
    assert f"kill -CONT {sleeper.pid}" in outcome["message"]
    sleeper.signal(signal.SIGCONT)
    sleeper.wait()
    assert builders.start(job("again")).wait()["exit_code"] == 0
    require_whole(ledger_url, built_in_a_folder)


@pytest.mark.slow
def test_objects_that_were_written_halfway_are_finished_and_never_written_over(
    builders, job, tmp_path, ledger_url, service, built_in_a_folder
):
    assert builders.start(job("first", kill_at="charged", stop_in=1)).wait() == {}
    # Two for the probe, then two objects of the chunk.
    assert builders.start(job("dead", kill_at="half put", stop_in=5)).wait() == {}
    before = dict(service.objects)
    outcome = builders.start(job("next")).wait()
    assert outcome["exit_code"] == 0, outcome
    assert {key: service.objects[key] for key in before} == before
    totals = require_whole(ledger_url, built_in_a_folder)
    assert (totals.lost, forwards_of(tmp_path)) == (0, N)


@pytest.mark.slow
def test_objects_that_were_written_but_for_their_flags_are_no_answers_on_another_machine(
    builders, job, tmp_path, ledger_url, service, built_in_a_folder
):
    assert builders.start(job("first", kill_at="charged", stop_in=1, machine="lost")).wait() == {}
    # Two for the probe, then all objects of the chunk but the last.
    assert builders.start(job("dead", kill_at="half put", stop_in=2 + OBJECTS, machine="lost")).wait() == {}
    assert sum("/train/digest/c" in key for key in service.objects) == 1
    assert not any("/train/valid/c" in key for key in service.objects)
    outcome = builders.start(job("next")).wait()
    assert outcome["exit_code"] == 0, outcome
    totals = require_whole(ledger_url, built_in_a_folder)
    assert totals.lost == totals.spent - N > 0
    assert forwards_of(tmp_path) <= totals.spent


@pytest.mark.slow
def test_other_answers_at_a_chunks_place_are_refused_and_those_in_hand_kept(
    builders, job, tmp_path, ledger_url, service, built_in_a_folder
):
    assert builders.start(job("first", kill_at="put", stop_in=1)).wait() == {}
    name = next(path.name for path in (tmp_path / "desks").glob("*/*/rows-*/*logits*")).replace("~", "/")
    key = f"{URL.path}/data.zarr/{name}"
    service.objects[key] = b"of somebody else"
    outcome = builders.start(job("next")).wait()
    assert (outcome["error"], outcome["exit_code"]) == ("InvalidInput", 2), outcome
    assert f"{name} is there and holds something else, which is never written over" in outcome["message"]
    assert service.objects[key] == b"of somebody else"
    del service.objects[key]
    outcome = builders.start(job("again")).wait()
    assert outcome["exit_code"] == 0, outcome
    assert require_whole(ledger_url, built_in_a_folder).lost == 0
    assert forwards_of(tmp_path) == N, "nothing is asked for twice"


@pytest.mark.slow
def test_ctrl_c_finishes_the_rows_in_hand(builders, job, tmp_path, ledger_url, built_in_a_folder):
    stopped = builders.start(job("stopped", slow_ms=10))
    wait_until(lambda: forwards_of(tmp_path) >= BATCH, 60, stopped.log())
    stopped.signal(signal.SIGINT)
    outcome = stopped.wait()
    assert (outcome["error"], outcome["exit_code"]) == ("Interrupted", 130), outcome
    with closing(Ledger(ledger_url)) as ledger:
        totals = ledger.summary()
        assert (totals.reserved, totals.lost, ledger.leases()) == (0, 0, {})
    assert totals.committed == forwards_of(tmp_path) in (CHUNK_ROWS, N % CHUNK_ROWS)
    assert builders.start(job("next")).wait()["exit_code"] == 0
    assert require_whole(ledger_url, built_in_a_folder).spent == N


@pytest.mark.slow
def test_a_service_that_fails_for_a_while_costs_no_call(
    builders, job, tmp_path, ledger_url, service, built_in_a_folder
):
    service.unavailable = lambda number: number % 7 == 3
    assert builders.start(job("patient")).wait()["exit_code"] == 0
    totals = require_whole(ledger_url, built_in_a_folder)
    assert (totals.spent, forwards_of(tmp_path)) == (N, N)


def test_the_budget_is_a_hard_stop_and_counts_what_is_in_hand(builders, job, tmp_path, ledger_url, built_in_a_folder):
    assert builders.start(job("dead", kill_at="staged", stop_in=2, budget=N)).wait() == {}
    outcome = builders.start(job("next", budget=N)).wait()
    assert outcome["exit_code"] == 0, outcome
    assert require_whole(ledger_url, built_in_a_folder).spent == N == forwards_of(tmp_path)


def test_the_teacher_is_judged_by_its_first_answers(service, job, ledger_url):
    config = job("doubted", trust_teacher=False).config()
    with pytest.raises(Exception, match="first 64 answers look wrong"):
        build(*prepare_build(config))
    with closing(Ledger(ledger_url)) as ledger:
        assert (ledger.summary().committed, ledger.summary().spent) == (CHUNK_ROWS, CHUNK_ROWS)


def test_an_unfinished_store_is_told_apart_and_fetched(builders, job, service, ledger_url, tmp_path, built_in_a_folder):
    assert builders.start(job("dead", kill_at="noted", stop_in=5)).wait() == {}
    store = Store.open(URL)
    assert len(store.missing_cells()) in (N - CHUNK_ROWS, N - N % CHUNK_ROWS)
    with closing(Ledger(ledger_url)) as ledger:
        said = [str(problem) for problem in published_problems(store, ledger)]
    assert any("is not there; finish it with: ckd-cache build --store s3://" in problem for problem in said), said[:3]
    assert any("is not settled" in problem for problem in said)
    assert not any("cut short" in problem for problem in said)
    fetched = fetch(URL, tmp_path / "fetched")
    np.testing.assert_array_equal(fetched.valid(), store.valid())
    report = build(*prepare_build(job("local", store=str(tmp_path / "fetched")).config()))
    assert report.rows_valid == N
    require_same_content(fetched, Store.open(built_in_a_folder))


def test_an_input_that_rows_of_several_chunks_share_is_asked_for_once(service, job, ledger_url, forwards):
    digits = open_dataset("digits")
    index = np.arange(300) % 50
    few = replace(digits, train=ArraySplit(digits.train.read(index), digits.train.labels[index]))
    config = replace(job("one").config(), view_policy="plain")
    report = build(*prepare_build(config, dataset=few))
    assert sum(forwards) == report.new_calls <= 50 < CHUNK_ROWS
    assert (report.rows_valid, report.reused_calls) == (N, N - report.new_calls)
    with closing(Ledger(ledger_url)) as ledger:
        assert published_problems(Store.open(URL), ledger) == []
        assert ledger.summary().spent == report.new_calls


def test_an_answer_that_does_not_fit_is_kept_and_not_asked_for_again(service, job, ledger_url, forwards, loud):
    loud(1e6, name="layer1")
    said = "layer1 holds 1e\\+06, which float16 cannot hold; fetch it into a folder, keep features in float32 there"
    with pytest.raises(InvalidInput, match=said):
        build(*prepare_build(job("one").config()))
    before = sum(forwards)
    with pytest.raises(InvalidInput, match=said):
        build(*prepare_build(job("again").config()))
    assert sum(forwards) == before
    with closing(Ledger(ledger_url)) as ledger:
        assert ledger.summary().lost == 0


@pytest.mark.slow
def test_an_answer_that_does_not_fit_among_rows_that_were_left_is_not_asked_for_again_either(
    builders, job, ledger_url, forwards, loud, monkeypatch, tmp_path
):
    assert builders.start(job("dead", kill_at="staged", stop_in=2)).wait() == {}
    monkeypatch.setenv(DESKS, str(tmp_path / "desks" / "here"))
    loud(1e6, name="layer1", batch=1)
    for _ in range(2):
        with pytest.raises(InvalidInput, match="which float16 cannot hold"):
            build(*prepare_build(job("next").config()))
        assert forwards == [BATCH]
    with closing(Ledger(ledger_url)) as ledger:
        assert ledger.summary().lost == 0


def test_what_a_store_in_object_storage_cannot_become_is_refused_before_any_call(service, job, forwards, tmp_path):
    build(*prepare_build(job("one").config()))
    made, before = sum(forwards), dict(service.objects)
    with pytest.raises(InvalidInput, match=f"it has {N} rows; give --n {N}, or build a store of 200 at a new URL"):
        prepare_build(job("longer", n=200).config())
    with pytest.raises(IdentityMismatch, match="seed"):
        prepare_build(job("other", seed=1).config())
    assert (sum(forwards), service.objects) == (made, before)


def test_what_was_published_from_a_folder_is_not_built_on(service, job, built_in_a_folder):
    publish(built_in_a_folder, URL)
    with pytest.raises(InvalidInput, match="read and not changed; do it in the folder that it was published from"):
        prepare_build(job("one").config())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"ledger": None}, "give --ledger postgresql://"),
        ({"ledger": "sqlite:////tmp/ledger.sqlite"}, "give --ledger postgresql://"),
        ({"array_format": "hdf5"}, "HDF5 is one file, which stays on a local disk"),
    ],
)
def test_what_is_not_built_in_object_storage_says_what_to_do_instead(service, job, changes, said):
    with pytest.raises(InvalidInput, match=said) as refused:
        job("one", **changes).config()
    assert "ckd-cache convert --store DIR --to objects --out s3://bucket/stores/one" in str(refused.value)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"writable": False}, "may not be written to with the credentials in the environment"),
        ({"conditional": False}, "writes over an object though it was asked not to"),
    ],
)
def test_a_place_that_cannot_be_built_in_is_refused_before_any_call(service, job, forwards, ledger_url, changes, said):
    for name, value in changes.items():
        setattr(service, name, value)
    prepared = prepare_build(job("one").config())
    with pytest.raises(StorageFailed, match=said):
        build(*prepared)
    assert not forwards
    assert not ledger_exists(ledger_url)


def test_a_bucket_that_is_not_there_is_named(service, job):
    with pytest.raises(StorageFailed, match="s3://other/stores/one is in no bucket that is there; make other"):
        prepare_build(job("one", store="s3://other/stores/one").config())


def test_a_folder_that_is_not_there_yet_is_made_by_its_first_build(job, ledger_url, built_in_a_folder, tmp_path):
    url = ObjectUrl("file", "", f"{tmp_path}/new/store".lstrip("/"))
    prepared = prepare_build(job("one", store=str(url)).config())
    assert not (tmp_path / "new").exists()
    assert build(*prepared).new_calls == N
    require_whole(ledger_url, built_in_a_folder, url)


def test_the_command_refuses_in_one_sentence(service, ledger_url):
    said = run_command("ckd-cache", "build", "--teacher", "resnet8", "--n", N, "--store", URL, "--dataset", "digits")
    assert said.returncode == 2
    assert "give --ledger postgresql://" in said.stderr
    assert len(said.stderr.strip().splitlines()) == 1
    said = run_command("ckd-cache", "build", "--teacher", "resnet8", "--n", N, "--store", "s3://me:SECRET@bucket/one")
    assert said.returncode == 2
    assert "a URL of a store has no credentials in it" in said.stderr
    assert "SECRET" not in said.stderr


def test_a_student_is_trained_from_what_was_built(service, job, ledger_url, tmp_path):
    build(*prepare_build(job("one").config()))
    options = ("--student", "resnet8", "--method", "kd", "--max-evals", 1, "--device", "cpu", "--out", tmp_path / "run")
    result = run_command("ckd-train", "--store", URL, *options, "--stream", "--json")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["teacher_calls"] == N
    result = run_command("ckd-cache", "verify", "--store", URL, "--ledger", ledger_url)
    assert result.returncode == 0, result.stdout + result.stderr
    assert f"{N} rows whole, {N} calls committed, the ledger's chain holds" in result.stdout
    trace = ("ckd-cache", "ledger", "trace", tmp_path / "run", "--ledger", ledger_url)
    result = run_command(*trace)
    assert result.returncode == 2
    assert f"object storage is asked only where you say so; add --store {URL}" in result.stderr
    result = run_command(*trace, "--store", URL)
    assert result.returncode == 0, result.stdout + result.stderr
    assert f"the ledger vouches for all {N} rows" in result.stdout


def test_what_builds_cost_is_what_the_user_says_of_a_call(builders, job, service, ledger_url, tmp_path):
    asking = AskingConfig(price=Price.parse(call="0.01"))
    config = replace(job("one").config(), views=2, batch_size=48, asking=asking, budget_micros=10_000_000)
    report = build(*prepare_build(config))
    assert report.cost_micros == 10_000 * report.new_calls
    with closing(Ledger(ledger_url)) as ledger:
        totals = ledger.summary()
        assert published_problems(Store.open(URL), ledger) == []
    assert (totals.cost_micros, totals.reserved_micros) == (report.cost_micros, 0)


@pytest.mark.slow
def test_builders_on_a_server_of_s3_that_fails_and_dies_lose_nothing_that_was_answered(
    builders, job, tmp_path, ledger_url, moto_port, built_in_a_folder, monkeypatch
):
    url = ObjectUrl("s3", moto.BUCKET, uuid4().hex)
    shares = {"503": 0.06, "cut before": 0.02, "cut after": 0.02}
    with faulty_proxy(moto_port, shares, seed=1) as proxy:
        endpoint = {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{proxy.port}"}
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint["AWS_ENDPOINT_URL"])
        made = partial(job, store=str(url))
        environment = made("any").environment | endpoint
        kills = [("answer", 2), ("half put", 6), ("commit", 1)]
        started = [
            builders.start(made(f"dead{number}", kill_at=step, stop_in=at, environment=environment))
            for number, (step, at) in enumerate(kills)
        ]
        for builder in started:
            builder.wait()
        outcome = builders.start(made("last", environment=environment)).wait(120)
        assert outcome["exit_code"] == 0, outcome
        totals = require_whole(ledger_url, built_in_a_folder, url)
        assert proxy.met["503"]
        assert proxy.met["cut after"]
    assert totals.lost <= BATCH
    assert forwards_of(tmp_path) <= totals.spent
