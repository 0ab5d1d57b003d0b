"""Objects by name: written once, read in pieces, and what a service that misbehaves is told apart by."""

from __future__ import annotations

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from uuid import uuid4

import pytest

from benchmarks.stand_ins import moto
from benchmarks.stand_ins.faulty_proxy import faulty_proxy
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


def test_an_empty_object_is_read_as_nothing(objects):
    objects.create("a", b"")
    assert objects.read_into("a", memoryview(bytearray(4)), 0) == 0
    assert objects.read("a", 4) == b""
    assert objects.has("a")
    assert objects.holds("a", b"")
    objects.create("b", b"0123")
    assert objects.read_into("b", memoryview(bytearray(4)), 4) == 0


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


@pytest.mark.parametrize("fault", ["cut before", "cut after"])
def test_an_answer_that_is_lost_on_its_way_is_no_sign_of_that(service, monkeypatch, fault):
    monkeypatch.setattr("storage.objects.MAX_RETRIES", 4)
    with faulty_proxy(int(service.url.rpartition(":")[2]), {}) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.port}")
        faults = iter((fault, "", fault, ""))
        monkeypatch.setattr(proxy.random, "choices", lambda *_: [next(faults, "")])
        Objects(URL).require_writable()
    assert not service.objects


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
    with pytest.raises(StorageFailed, match="none is no folder that is there; make it"):
        Objects(ObjectUrl("file", "", f"{tmp_path}/none".lstrip("/")))


@pytest.mark.parametrize("kind", ["pipe", "link", "link above"])
def test_in_a_folder_no_link_is_followed_and_no_pipe_waited_for(tmp_path, kind):
    objects, root = Objects(ObjectUrl("file", "", f"{tmp_path}/objects".lstrip("/")), make=True), tmp_path / "objects"
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/b").write_bytes(b"content")
    if kind == "link above":
        (root / "a").symlink_to(tmp_path / "elsewhere")
    else:
        (root / "a").mkdir()
        (root / "a/b").symlink_to(tmp_path / "elsewhere/b") if kind == "link" else os.mkfifo(root / "a/b")
    for read in (lambda: objects.read("a/b", 100), lambda: objects.read_into("a/b", memoryview(bytearray(7)), 0)):
        with pytest.raises(Malformed, match="no file of its own, but a link or a pipe"):
            read()
    assert objects.has("a/b")
    assert not objects.holds("a/b", b"content")
    assert not objects.create("a/b", b"other")
    if kind == "link above":
        assert not objects.create("a/c", b"other")
    assert [path.name for path in (tmp_path / "elsewhere").iterdir()] == ["b"]


def test_the_folder_itself_may_be_a_link(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "here").symlink_to(tmp_path / "there")
    objects = Objects(ObjectUrl("file", "", f"{tmp_path}/here".lstrip("/")))
    objects.create("a", b"content")
    assert objects.read("a", 7) == b"content"


@pytest.mark.parametrize("name", ["PanicException", "KeyboardInterrupt"])
def test_a_panic_is_said_in_a_sentence_and_nothing_else_is_taken_for_one(service, monkeypatch, name):
    class PanicException(BaseException):
        pass

    raised = {"PanicException": PanicException("VERYSECRET"), "KeyboardInterrupt": KeyboardInterrupt()}[name]

    def panics(*_: object, **__: object) -> None:
        raise raised

    monkeypatch.setattr("obstore.get", panics)
    expected = StorageFailed if name == "PanicException" else KeyboardInterrupt
    with pytest.raises(expected) as failed:
        Objects(URL).read("a", 1)
    if name == "PanicException":
        for variable in ("AWS_ENDPOINT_URL", "AWS_REGION", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            assert variable in str(failed.value)
        assert "VERYSECRET" not in str(failed.value)


@pytest.mark.parametrize(
    ("url", "sentence", "variables"),
    [
        (
            ObjectUrl("az", "container", "path"),
            "Account must be specified",
            "AZURE_STORAGE_ACCOUNT_NAME, AZURE_STORAGE_ACCOUNT_KEY",
        ),
        (ObjectUrl("gs", "bucket", "path"), "Unable to open service account file .*", "GOOGLE_APPLICATION_CREDENTIALS"),
    ],
)
def test_each_service_has_variables_of_its_own(monkeypatch, url, sentence, variables):
    for name in ("AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_ACCOUNT_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "/nowhere")
    said = rf"could not be opened: {sentence}; see that the service answers \({variables}, \.\.\.\)"
    with pytest.raises(StorageFailed, match=said):
        Objects(url)


def test_who_may_not_read_a_folder_is_told_of_no_service(tmp_path, monkeypatch):
    from obstore.exceptions import PermissionDeniedError

    objects = Objects(ObjectUrl("file", "", f"{tmp_path}".lstrip("/")))

    def denied(*_: object, **__: object) -> None:
        raise PermissionDeniedError("no")

    monkeypatch.setattr("obstore.get", denied)
    with pytest.raises(StorageFailed, match="may not be read by you"):
        objects.read("a", 1)


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
