"""A store in object storage: published whole or not at all, read as from its folder, and fetched back."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from benchmarks.stand_ins.object_server import BUCKET, ObjectService, object_service
from ground.errors import InvalidInput, StoreUnreadable
from ground.places import ObjectUrl
from storage.manifest import FILE_NAME
from storage.rows import Rows
from storage.store import Store
from storage.verify import published_problems
from teacher_cache.build import build
from teacher_cache.prepare import prepare_build
from teacher_cache.publish import fetch, num_objects, publish
from teacher_cache.rest import Rest
from tests.conftest import run_command
from tests.running import begin_program
from tests.teacher_cache.damage import config_of

URL = ObjectUrl("s3", BUCKET, "stores/one")
TRAINING = ("--student", "resnet8", "--method", "kd", "--max-evals", 2, "--device", "cpu")


@pytest.fixture
def service(monkeypatch):
    with object_service() as found:
        for name, value in found.environment.items():
            monkeypatch.setenv(name, value)
        yield found


@pytest.fixture(scope="module")
def published(built_store, tmp_path_factory) -> ObjectUrl:
    """Of the store of 96 rows, below a folder; treat it as read-only."""
    url = ObjectUrl("file", "", str(tmp_path_factory.mktemp("objects") / "store").lstrip("/"))
    publish(built_store, url)
    return url


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def keys(service: ObjectService) -> set[str]:
    return {key.removeprefix(f"{URL.path}/") for key in service.objects}


def test_published_objects_are_the_files_of_the_store(built_store, published):
    there, here = files(Path(f"/{published.path}")), files(built_store)
    assert there == {name: content for name, content in here.items() if name in there}
    assert here.keys() - there.keys() <= {"ledger.sqlite", "build.lock", "cells.lock"}
    assert len(there) == num_objects(Store.open(built_store))


def test_a_published_store_reads_as_its_folder(built_store, published):
    here, there = Store.open(built_store), Store.open(published)
    assert there.manifest == here.manifest
    names = [output.name for output in here.outputs]
    one, other = (store.read_outputs(names, Rows.first(96)) for store in (here, there))
    for name in names:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)
    for name in here.manifest.samples:
        np.testing.assert_array_equal(here.read_sample(name), there.read_sample(name), err_msg=name)


def test_images_that_nothing_was_asked_about_are_published_and_fetched(weights, tmp_path):
    build(*prepare_build(config_of(tmp_path / "store", weights, rest=Rest(90))))
    url = ObjectUrl("file", "", str(tmp_path / "objects" / "store").lstrip("/"))
    publish(tmp_path / "store", url)
    here, there, back = Store.open(tmp_path / "store"), Store.open(url), fetch(url, tmp_path / "back")
    assert (there.manifest.n, there.manifest.rest) == (70, 90)
    for name in here.manifest.samples:
        np.testing.assert_array_equal(here.read_sample(name), there.read_sample(name), err_msg=name)
        np.testing.assert_array_equal(here.read_sample(name), back.read_sample(name), err_msg=name)
    assert list(published_problems(there, None)) == []


def test_a_plain_zarr_reader_reads_what_was_published(built_store, published):
    import zarr
    from obstore.store import LocalStore

    objects = LocalStore(f"/{published.path}/data.zarr")
    group = zarr.open_group(zarr.storage.ObjectStore(objects, read_only=True), mode="r")
    store = Store.open(built_store)
    for name in ("train/logits", "train/images", "train/features/pooled"):
        np.testing.assert_array_equal(group[name][:], store.read(name), err_msg=name)


def test_what_would_change_a_published_store_is_refused(published):
    store = Store.open(published)
    values = np.zeros((1, 1), np.bool_)
    with pytest.raises(InvalidInput, match="read and not changed"):
        store.arrays.write("train/valid", 0, values)
    with pytest.raises(InvalidInput, match="read and not changed"):
        store.save()
    for command in (["repair"], ["widen"], ["extend", "--features", "stem"]):
        result = run_command("ckd-cache", *command, "--store", published)
        assert result.returncode == 2
        assert f"{published} is in object storage, where stores are read and not changed" in result.stderr
        assert "convert --store DIR --to objects" in result.stderr


def test_hdf5_stays_local(stores, tmp_path):
    with pytest.raises(InvalidInput, match="HDF5, which is one file and stays on a local disk"):
        publish(stores["hdf5"], ObjectUrl("file", "", str(tmp_path / "out").lstrip("/")))
    assert not (tmp_path / "out").exists()


def test_publishing_again_writes_nothing(built_store, service):
    first = publish(built_store, URL)
    before = dict(service.objects)
    assert first.written == first.objects == len(before)
    assert publish(built_store, URL).written == 0
    assert service.objects == before


def test_the_manifest_comes_last_and_each_object_once(built_store, service):
    publish(built_store, URL)
    written = [key for method, key in service.requests if method == "PUT" and ".probe-" not in key]
    assert len(written) == len(set(written))
    assert written[-1] == f"{URL.path}/{FILE_NAME}"


def test_what_a_stopped_publication_left_is_gone_on_with(built_store, service):
    whole = publish(built_store, URL).objects
    done = dict(service.objects)
    left = sorted(done)[: whole // 2]
    service.objects.clear()
    service.objects.update({key: done[key] for key in left if not key.endswith(FILE_NAME)})
    with pytest.raises(StoreUnreadable, match=r"no store at .* published there, or not to its end"):
        Store.open(URL)
    report = publish(built_store, URL)
    assert report.written == whole - len([key for key in left if not key.endswith(FILE_NAME)])
    assert service.objects == done


@pytest.mark.parametrize("change", [b"short", None])
def test_an_object_that_is_not_the_stores_is_refused(built_store, service, change):
    publish(built_store, URL)
    key = f"{URL.path}/data.zarr/train/logits/c.0.0.0"
    service.objects[key] = change or bytes(len(service.objects[key]))
    before = dict(service.objects)
    with pytest.raises(InvalidInput, match=r"train/logits/c\.0\.0\.0 is there, and is not of the store"):
        publish(built_store, URL)
    assert service.objects == before


def test_a_place_with_something_else_in_it_is_refused(built_store, service):
    service.objects[f"{URL.path}/notes.txt"] = b"mine"
    with pytest.raises(InvalidInput, match="is not empty .*notes.txt"):
        publish(built_store, URL)
    assert keys(service) == {"notes.txt"}


def test_two_publishers_make_one_store(built_store, service, tmp_path):
    service.slow_seconds = 0.002
    copies = [shutil.copytree(built_store, tmp_path / name) for name in ("one", "two")]
    with ThreadPoolExecutor(2) as pool:
        reports = list(pool.map(lambda folder: publish(folder, URL), copies))
    assert sum(report.written for report in reports) == reports[0].objects == len(service.objects)
    Store.open(URL).read_outputs(["logits"], Rows.first(96))


def test_a_damaged_store_is_not_published(built_store, service, tmp_path):
    folder = shutil.copytree(built_store, tmp_path / "store")
    chunk = folder / "data.zarr/train/logits/c.0.0.0"
    chunk.write_bytes(bytes(chunk.stat().st_size))
    with pytest.raises(StoreUnreadable, match="train/logits: row 0 view 0 does not match its digest"):
        publish(folder, URL)
    assert not service.objects


@pytest.mark.parametrize(
    ("settings", "url", "sentence"),
    [
        ({"conditional": False}, URL, "writes over an object though it was asked not to"),
        ({"writable": False}, URL, "may not be written to with the credentials in the environment"),
        ({}, ObjectUrl("s3", "elsewhere", "store"), "is in no bucket that is there; make elsewhere"),
    ],
)
def test_a_place_that_cannot_take_a_store_is_refused_before_anything_is_read(
    built_store, service, settings, url, sentence, monkeypatch
):
    for name, value in settings.items():
        setattr(service, name, value)
    monkeypatch.setattr(Store, "require_sample", lambda *_: pytest.fail("long work was begun"))
    result = run_command("ckd-cache", "convert", "--store", built_store, "--to", "objects", "--out", url)
    assert result.returncode == 2
    assert sentence in result.stderr
    assert "Traceback" not in result.stderr
    assert "VERYSECRET" not in result.stderr
    assert not service.objects


def test_a_service_that_is_busy_now_and_then_is_asked_again(built_store, service):
    service.unavailable = lambda number: number % 7 == 3
    publish(built_store, URL)
    Store.open(URL).read_outputs(["logits"], Rows.first(96))
    assert len(service.requests) > 100


def test_verify_finds_what_is_wrong_in_object_storage(built_store, service):
    publish(built_store, URL)
    whole = run_command("ckd-cache", "verify", "--store", URL)
    assert whole.returncode == 0, whole.stderr
    assert "96 rows whole; calls were not compared" in whole.stdout
    ledger = f"sqlite:///{built_store / 'ledger.sqlite'}"
    compared = run_command("ckd-cache", "verify", "--store", URL, "--ledger", ledger, "--json")
    assert compared.returncode == 0, compared.stdout + compared.stderr
    assert json.loads(compared.stdout)["calls"] == 96
    del service.objects[f"{URL.path}/data.zarr/train/logits/c.1.0.0"]
    key = f"{URL.path}/data.zarr/train/features/stem/c.0.0.0.0.0"
    service.objects[key] = service.objects[key][:-1] + b"\7"
    service.objects[f"{URL.path}/data.zarr/val/images/c.0.0.0.0"] += b"x"
    damaged = run_command("ckd-cache", "verify", "--store", URL)
    assert damaged.returncode == 1
    assert "data.zarr/train/logits/c.1.0.0 is missing or cut short" in damaged.stdout
    assert "train/logits: row 64 view 0 cannot be read" in damaged.stdout
    assert "train/features/stem: row 63 view 0 does not match its digest" in damaged.stdout


def test_verify_lists_an_object_that_is_empty(built_store, service):
    publish(built_store, URL)
    for name in ("train/logits/c.1.0.0", "train/images/c.0.0.0.0"):
        service.objects[f"{URL.path}/data.zarr/{name}"] = b""
    damaged = run_command("ckd-cache", "verify", "--store", URL)
    assert damaged.returncode == 1, damaged.stderr
    assert "data.zarr/train/logits/c.1.0.0 is missing or cut short" in damaged.stdout
    assert "train/logits: row 64 view 0 cannot be read" in damaged.stdout
    assert "c.0.0.0.0 ends before row 0" in damaged.stdout


@pytest.mark.parametrize("kind", ["link", "pipe", "empty"])
def test_verify_lists_chunks_that_are_no_files(published, tmp_path, kind):
    folder = shutil.copytree(f"/{published.path}", tmp_path / "store")
    for number, name in enumerate(("train/logits/c.1.0.0", "train/images/c.0.0.0.0")):
        place = folder / "data.zarr" / name
        chunk = place.rename(tmp_path / str(number))
        if kind == "link":
            place.symlink_to(chunk)
        elif kind == "pipe":
            os.mkfifo(place)
        else:
            place.touch()
    (folder / "data.zarr/round").symlink_to("..")
    damaged = run_command("ckd-cache", "verify", "--store", f"file://{folder}")
    assert damaged.returncode == 1, damaged.stderr
    assert "train/logits: row 64 view 0 cannot be read" in damaged.stdout
    said = (
        "ends before row 0" if kind == "empty" else "which holds row 0: it is no file of its own, but a link or a pipe"
    )
    assert f"c.0.0.0.0{'' if kind == 'empty' else ','} {said}" in damaged.stdout


@pytest.mark.parametrize("name", ["manifest.json", "data.zarr/train/logits/zarr.json"])
def test_nobody_waits_for_a_pipe_in_place_of_what_is_read_first(published, tmp_path, name):
    folder = shutil.copytree(f"/{published.path}", tmp_path / "store")
    (folder / name).unlink()
    os.mkfifo(folder / name)
    for command in ("info", "verify"):
        result = run_command("ckd-cache", command, "--store", f"file://{folder}")
        assert result.returncode == 2
        assert "it is no file of its own, but a link or a pipe" in result.stderr
        assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize("command", ["info", "verify"])
def test_a_folder_of_objects_that_is_not_there_is_called_a_folder(tmp_path, command):
    result = run_command("ckd-cache", command, "--store", f"file://{tmp_path}/none")
    assert result.returncode == 2
    assert f"file://{tmp_path}/none is no folder that is there; make it, or give another URL" in result.stderr


def test_info_says_of_a_published_store_what_it_says_of_its_folder(built_store, published):
    said = (run_command("ckd-cache", "info", "--store", place, "--json").stdout for place in (built_store, published))
    here, there = map(json.loads, said)
    assert {**there, "bytes": 0} == {**here, "bytes": 0}
    assert 0 < there["bytes"] < here["bytes"]


@pytest.mark.parametrize("options", [(), ("--stream", "--stream-rows", 64)], ids=["memory", "stream"])
def test_a_student_from_object_storage_is_that_from_the_folder(built_store, service, tmp_path, options):
    publish(built_store, URL)
    service.unavailable = lambda number: number % 11 == 5
    runs = []
    for place, out in ((built_store, tmp_path / "here"), (URL, tmp_path / "there")):
        result = run_command("ckd-train", "--store", place, *TRAINING, *options, "--out", out, "--json")
        assert result.returncode == 0, result.stderr
        runs.append(json.loads(result.stdout))
    differing = {name for name in runs[0] if runs[0][name] != runs[1][name]}
    assert differing <= {"store", "seconds"}
    assert runs[1]["store"] == str(URL)
    here, there = ((tmp_path / name / "metrics.csv").read_bytes() for name in ("here", "there"))
    assert here == there
    from safetensors.numpy import load_file

    one, other = (load_file(tmp_path / name / "student.safetensors") for name in ("here", "there"))
    assert one.keys() == other.keys()
    for name, values in one.items():
        np.testing.assert_array_equal(values, other[name], err_msg=name)
    assert "VERYSECRET" not in "".join(path.read_text(errors="ignore") for path in (tmp_path / "there").iterdir())
    assert run_command("ckd-train", "verify", tmp_path / "there").returncode == 0


def test_a_connection_that_is_lost_while_a_student_is_trained_is_said_in_a_sentence(
    built_store, service, tmp_path, monkeypatch
):
    monkeypatch.setattr("storage.objects.MAX_RETRIES", 1)
    publish(built_store, URL)
    begun = len(service.requests)
    service.unavailable = lambda number: number > begun + 40
    result = run_command("ckd-train", "--store", URL, *TRAINING, "--out", tmp_path / "run")
    assert result.returncode == 2
    assert f"{URL} could not be read: it answers with status 503; see that the service answers" in result.stderr
    assert "Traceback" not in result.stderr
    assert "VERYSECRET" not in result.stderr


def test_an_object_that_is_gone_is_named(built_store, service):
    publish(built_store, URL)
    service.objects.pop(f"{URL.path}/data.zarr/train/images/c.1.0.0.0")
    with pytest.raises(StoreUnreadable, match=r"c\.1\.0\.0\.0, which holds row 64: there is no such object"):
        Store.open(URL).read("train/images")


def test_what_was_published_is_fetched_back(built_store, published, tmp_path):
    out = tmp_path / "again"
    result = run_command("ckd-cache", "convert", "--store", published, "--to", "zarr", "--out", out)
    assert result.returncode == 0, result.stderr
    assert "without its calls" in result.stdout
    fetched, there = files(out), files(Path(f"/{published.path}"))
    assert {name: content for name, content in fetched.items() if name != "build.lock"} == there
    # With its ledger beside it, it is the store that it was.
    shutil.copy(built_store / "ledger.sqlite", out)
    assert run_command("ckd-cache", "verify", "--store", out).returncode == 0


def test_what_is_damaged_in_object_storage_is_not_fetched(built_store, service, tmp_path):
    publish(built_store, URL)
    key = f"{URL.path}/data.zarr/train/features/stem/c.0.0.0.0.0"
    service.objects[key] = service.objects[key][:-1] + b"\7"
    with pytest.raises(StoreUnreadable, match="does not match its digest"):
        fetch(URL, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_killed_publication_shows_nothing_and_is_gone_on_with(built_store, service):
    service.slow_seconds = 0.02
    child = begin_program("tests.teacher_cache.publisher", built_store, URL)
    while len(service.objects) < 12:
        assert child.poll() is None, child.stderr
        time.sleep(0.005)
    child.kill()
    assert child.completed().returncode == -signal.SIGKILL
    there = len(service.objects)
    with pytest.raises(StoreUnreadable, match="no store at"):
        Store.open(URL)
    service.slow_seconds = 0.0
    report = publish(built_store, URL)
    assert 0 < report.written < report.objects
    assert report.objects - there <= report.written + 1
    Store.open(URL).read_outputs(["logits"], Rows.first(96))
