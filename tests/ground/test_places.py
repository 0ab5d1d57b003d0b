"""Folders and URLs of stores, as users write them."""

from __future__ import annotations

from pathlib import Path

import pytest

from ground.errors import CKDError
from ground.places import ObjectUrl, parse_place


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("s3://bucket/path", ("s3", "bucket", "path")),
        ("gs://a-bucket.b/stores/wrn40_2/", ("gs", "a-bucket.b", "stores/wrn40_2")),
        ("az://container/x=1/y z", ("az", "container", "x=1/y z")),
        ("file:///srv/stores/one", ("file", "", "srv/stores/one")),
    ],
)
def test_a_url_is_read_and_written(text, parts):
    place = parse_place(text)
    assert isinstance(place, ObjectUrl)
    assert (place.scheme, place.bucket, place.path) == parts
    assert str(place) == text.rstrip("/")
    assert str(place / "manifest.json") == f"{text.rstrip('/')}/manifest.json"
    assert place.name == parts[2].split("/")[-1]


def test_what_is_no_url_is_a_folder():
    assert parse_place("stores/one") == Path("stores/one")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("s3://KEY:SECRET@bucket/path", "no credentials in it"),
        ("s3://KEY:SEC/RET@bucket/path", "no credentials in it"),
        ("s3://bucket/path?X-Amz-Signature=SECRET", "no query"),
        ("s3://bucket/path#SECRET", "no query"),
        ("https://SECRET/path", "no kind of object storage is called 'https'"),
        ("s3://bucket", "give it as s3://BUCKET/PATH"),
        ("s3://bucket/", "give it as s3://BUCKET/PATH"),
        ("s3:///path", "give it as s3://BUCKET/PATH"),
        ("s3://bucket/a//b", "give it as s3://BUCKET/PATH"),
        ("s3://bucket/../b", "give it as s3://BUCKET/PATH"),
        ("s3://bucket/a\nb", "give it as s3://BUCKET/PATH"),
        ("file://host/path", "give it as file:///FOLDER"),
        (f"s3://bucket/{'a/' * 600}b", "give it as s3://BUCKET/PATH"),
    ],
)
def test_other_urls_are_refused_without_repeating_a_secret(text, sentence):
    with pytest.raises(CKDError) as refused:
        parse_place(text)
    assert sentence in str(refused.value)
    assert "SECRET" not in str(refused.value)
    assert "SEC/RET" not in str(refused.value)
