"""What the environment says of object storage, before anybody is asked by it."""

from __future__ import annotations

import pytest

from ground.errors import StorageFailed
from storage.object_environment import is_plain_http, require_sound
from tests.conftest import run_command

KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")


@pytest.fixture(autouse=True)
def nothing_is_set(monkeypatch):
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT", "AWS_REGION", "AWS_DEFAULT_REGION", *KEYS):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("name", ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT"])
@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1:5998", "localhost", "", "//host", "foo://host", "http://", "http://a b", "http://host/a b"),
        *("http://host:99999", "http://host:x", "http://[::1", "http://hé.com", 'http://h"ost', "https://host\n"),
    ],
)
def test_what_is_no_address_is_named_and_not_repeated(monkeypatch, name, address):
    monkeypatch.setenv(name, address)
    with pytest.raises(StorageFailed) as failed:
        require_sound("s3")
    assert str(failed.value) == f"{name} is no address of a service; give it as https://HOST:PORT, or unset it"


@pytest.mark.parametrize(
    "address",
    [
        *(
            "http://127.0.0.1:5998",
            "https://s3.example.com",
            "http://[::1]:9000/",
            "HTTP://Host",
            "https://a_b/c%20d/e",
        ),
    ],
)
def test_an_address_is_sound(monkeypatch, address):
    monkeypatch.setenv("AWS_ENDPOINT_URL", address)
    require_sound("s3")
    assert is_plain_http("s3") == address.lower().startswith("http:")


@pytest.mark.parametrize("region", ["bad region", "a/b", "é", "us-east-1\n", ""])
def test_what_is_no_region_is_named(monkeypatch, region):
    monkeypatch.setenv("AWS_REGION", region)
    with pytest.raises(StorageFailed, match=r"^AWS_REGION is no name of a region; give one such as us-east-1"):
        require_sound("s3")


@pytest.mark.parametrize(
    ("scheme", "name"), [*(("s3", key) for key in KEYS), ("gs", "GOOGLE_BEARER_TOKEN"), ("az", "AZURE_STORAGE_TOKEN")]
)
def test_a_key_with_the_end_of_a_line_is_named_and_not_repeated(monkeypatch, scheme, name):
    monkeypatch.setenv(name, "VERYSECRET\n")
    with pytest.raises(StorageFailed, match=f"^{name} holds what cannot be printed") as failed:
        require_sound(scheme)
    assert "VERYSECRET" not in str(failed.value)


def test_what_is_of_another_service_is_not_looked_at(monkeypatch):
    monkeypatch.setenv("AWS_REGION", "bad region")
    for scheme in ("gs", "az", "file"):
        require_sound(scheme)


@pytest.mark.parametrize(
    ("name", "value"),
    [("AWS_ENDPOINT_URL", "127.0.0.1:5998"), ("AWS_REGION", "bad region"), ("AWS_ACCESS_KEY_ID", "VERY\nSECRET")],
)
def test_a_command_says_it_in_one_line(monkeypatch, name, value):
    for key in KEYS:
        monkeypatch.setenv(key, "somebody")
    monkeypatch.setenv(name, value)
    result = run_command("ckd-cache", "info", "--store", "s3://bucket/path")
    assert result.returncode == 2
    assert name in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert "SECRET" not in result.stderr
