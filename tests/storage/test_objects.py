"""Objects by name: written once, read in pieces, and what a service that misbehaves is told apart by."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from uuid import uuid4

import pytest

from benchmarks.stand_ins import moto
from benchmarks.stand_ins.object_server import BUCKET, ObjectService, object_service
from ground.documents import Malformed
from ground.errors import InvalidInput, StorageFailed
from ground.places import ObjectUrl
from storage.objects import Objects

URL = ObjectUrl("s3", BUCKET, "some/where")


@pytest.fixture
def service(monkeypatch):
    monkeypatch.setattr("storage.objects.MAX_RETRIES", 0)
    with object_service() as found:
        for name, value in found.environment.items():
            monkeypatch.setenv(name, value)
        yield found


@pytest.fixture(params=("s3", "file", pytest.param("moto", marks=pytest.mark.slow)))
def objects(request, tmp_path, monkeypatch) -> Objects:
    if request.param == "s3":
        request.getfixturevalue("service")
        return Objects(URL)
    if request.param == "moto":
        endpoint = f"http://127.0.0.1:{request.getfixturevalue('moto_port')}"
        for name, value in {**ObjectService(endpoint).environment}.items():
            monkeypatch.setenv(name, value)
        return Objects(ObjectUrl("s3", moto.BUCKET, uuid4().hex))
    return Objects(ObjectUrl("file", "", f"{tmp_path}/objects".lstrip("/")), make=True)


def test_an_object_is_written_once(objects):
    assert objects.create("a/b", b"first")
    assert not objects.create("a/b", b"other")
    assert objects.read("a/b", 5) == b"first"
    assert list(objects.sizes()) == [("a/b", 5)]


def test_of_several_who_write_an_object_at_once_one_does(objects):
    for number in range(5):
        with ThreadPoolExecutor(8) as pool:
            wrote = list(pool.map(lambda who, name=f"a/{number}": objects.create(name, b"%d" % who), range(8)))
        assert wrote.count(True) == 1
        assert objects.read(f"a/{number}", 1) == b"%d" % wrote.index(True)


def test_what_an_object_holds_is_told_apart(objects):
    objects.create("a/b", b"first")
    assert objects.has("a/b")
    assert objects.holds("a/b", b"first")
    for content in (b"other", b"firs", b"first and more", b""):
        assert not objects.holds("a/b", content)
    assert not objects.has("a/c")
    assert not objects.holds("a/c", b"first")
    objects.create("c/b", b"x")
    assert list(objects.sizes("a")) == [("a/b", 5)]


def test_pieces_are_read_as_far_as_there_are_any(objects):
    objects.create("a", b"0123456789")
    content = bytearray(4)
    assert objects.read_into("a", memoryview(content), 3) == 4
    assert bytes(content) == b"3456"
    assert objects.read_into("a", memoryview(content), 8) == 2
    assert bytes(content[:2]) == b"89"
    assert objects.read_into("a", memoryview(b""), 3) == 0


def test_what_is_not_there_or_too_large_is_told_apart(objects):
    objects.create("a", b"0123456789")
    with pytest.raises(FileNotFoundError):
        objects.read("b", 10)
    with pytest.raises(FileNotFoundError):
        objects.read_into("b", memoryview(bytearray(1)), 0)
    with pytest.raises(Malformed, match="larger than 9 bytes"):
        objects.read("a", 9)


def test_nothing_is_left_of_a_probe(objects):
    objects.require_writable()
    assert list(objects.sizes()) == []


def test_a_service_that_writes_over_objects_is_refused(service):
    service.conditional = False
    with pytest.raises(StorageFailed, match="writes over an object though it was asked not to"):
        Objects(URL).require_writable()
    assert not service.objects


def test_no_more_is_taken_than_was_asked_for(service):
    objects = Objects(URL)
    objects.create("a", b"0123456789")
    service.longer = 3
    content = bytearray(4)
    with pytest.raises(StorageFailed, match="gives more than asked for"):
        objects.read_into("a", memoryview(content), 0)


def test_a_folder_that_is_not_there_is_no_place(tmp_path):
    with pytest.raises(StorageFailed, match="is in no bucket that is there"):
        Objects(ObjectUrl("file", "", f"{tmp_path}/none".lstrip("/")))


def test_a_service_that_is_not_there_is_said_without_its_address(monkeypatch):
    monkeypatch.setattr("storage.objects.MAX_RETRIES", 0)
    for name, value in {
        "ACCESS_KEY_ID": "KEY",
        "SECRET_ACCESS_KEY": "SECRET",
        "ENDPOINT_URL": "http://127.0.0.1:1",
    }.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    with pytest.raises(StorageFailed, match=r"could not be read: .*; see that the service answers") as failed:
        Objects(URL).read("a", 1)
    assert "127.0.0.1" not in str(failed.value)
    assert "SECRET" not in str(failed.value)


def test_without_obstore_it_is_said_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "obstore.store", None)
    with pytest.raises(InvalidInput, match=r"pip install 'teacher-cache\[objects\]'"):
        Objects(URL)
