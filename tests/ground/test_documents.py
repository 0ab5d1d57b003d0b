"""A document is read as the record it should be, or refused in one sentence that a terminal can show."""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Meta, Struct

from ground.documents import (
    Amount,
    Count,
    Hex64,
    Line,
    Malformed,
    Positive,
    Share,
    read_object,
    read_record,
    require_path_below,
    shown,
    typed,
)
from ground.errors import InvalidInput


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """A plain dataclass with a check of its own."""

    first: Count
    last: Count

    def __post_init__(self) -> None:
        if self.last < self.first:
            raise ValueError(f"a window from {self.first} to {self.last} is backwards")


class Record(Struct, frozen=True, kw_only=True):
    name: Line
    rows: Positive = 1
    seconds: Amount = 0.0
    share: Share | None = None
    digest: Hex64 = "0" * 64
    windows: tuple[Window, ...] = ()
    colour: tuple[float, float, float] = (0.0, 0.0, 0.0)
    digests: dict[str, Hex64] = {}
    free: dict[str, Any] = {}
    anything: str = ""
    flag: bool = False


FITTING: dict[str, Any] = {"name": "a"}

# A float holds all of these exactly.
WHOLE = st.integers(-(1 << 53), 1 << 53) | st.just(1 << 100)
JSON = st.recursive(
    st.none() | st.booleans() | WHOLE | st.floats() | st.text(st.characters(), max_size=9),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(st.characters(), max_size=5), inner, max_size=3)
    ),
    max_leaves=9,
)
LINES = st.text(st.characters(exclude_categories=("C", "Z")), max_size=20)
RECORDS = st.fixed_dictionaries(
    {"name": LINES},
    optional={
        "rows": st.integers(1, 1 << 53),
        "seconds": st.floats(0, allow_infinity=False),
        "share": st.none() | st.floats(0, 1),
        "digest": st.text("0123456789abcdef", min_size=64, max_size=64),
        "windows": st.lists(
            st.fixed_dictionaries({"first": st.integers(0, 9), "last": st.integers(9, 99)}), max_size=3
        ),
        "colour": st.lists(st.floats(allow_nan=False), min_size=3, max_size=3),
        "free": st.dictionaries(LINES, st.integers() | st.none() | st.text(max_size=5), max_size=3),
        "anything": st.text(max_size=9),
        "flag": st.booleans(),
    },
)


def as_json(value: Any) -> Any:
    """A record's value as JSON has it."""
    if isinstance(value, Window):
        return asdict(value)
    return [as_json(item) for item in value] if isinstance(value, tuple) else value


@given(RECORDS)
def test_what_fits_is_read_unchanged(document):
    record = typed(document, Record)
    assert {name: as_json(getattr(record, name)) for name in document} == document


@given(st.sampled_from(Record.__struct_fields__), JSON)
def test_any_value_in_any_place_is_read_or_refused_in_a_printable_sentence(name, value):
    refused = None
    try:
        record = typed(FITTING | {name: value}, Record)
    except Malformed as error:
        refused = str(error)
    if refused is not None:
        assert refused.isascii()
        assert refused.isprintable()
        assert len(refused) < 300
    else:
        # Nothing is turned into another type, but a whole number into a float where one belongs.
        assert as_json(getattr(record, name)) == value
        assert isinstance(value, bool) == (name == "flag")


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ({}, "it has no name"),
        ([], "it is [], not an object"),
        ({"name": 7}, "name is 7, not a line of text"),
        ({"name": "\x1b[2J"}, "name is '\\x1b[2J', not a line of text"),
        ({"name": "\ud800"}, "name is '\\ud800', not a line of text"),
        ({"name": "two\nlines"}, "name is 'two\\nlines', not a line of text"),
        ({"name": "x" * 5000}, f"name is '{'x' * 76}..., not a line of text"),
        (FITTING | {"rows": True}, "rows is True, not a whole number of at least 1"),
        (FITTING | {"rows": 7.0}, "rows is 7.0, not a whole number of at least 1"),
        (FITTING | {"rows": 10**30}, f"rows is {10**30}, not a whole number of at least 1"),
        (FITTING | {"rows": None}, "rows is None, not a whole number of at least 1"),
        (FITTING | {"seconds": -1}, "seconds is -1, not a number of at least 0"),
        (FITTING | {"seconds": math.inf}, "seconds is inf, not a number of at least 0"),
        (FITTING | {"seconds": math.nan}, "seconds is nan, not a number of at least 0"),
        (FITTING | {"share": 1.5}, "share is 1.5, not a number between 0 and 1"),
        (FITTING | {"share": "1"}, "share is '1', not a number between 0 and 1"),
        (FITTING | {"digest": "f" * 64 + "\n"}, "not 64 hexadecimal digits"),
        (FITTING | {"windows": {}}, "windows is {}, not a list"),
        (FITTING | {"windows": [{"first": 1, "last": 2}, {"first": 1}]}, "windows[1] has no last"),
        (
            FITTING | {"windows": [{"first": 1, "last": "2"}]},
            "windows[0].last is '2', not a whole number of at least 0",
        ),
        (FITTING | {"windows": [{"first": 2, "last": 1}]}, "windows[0]: a window from 2 to 1 is backwards"),
        (FITTING | {"colour": [0, 1]}, "colour is [0, 1], not a list of 3"),
        (FITTING | {"colour": [0, 1, "2"]}, "colour[2] is '2', not a number"),
        (FITTING | {"digests": {"a": 7}}, "digests[...] is 7, not 64 hexadecimal digits"),
        (FITTING | {"digests": {"a": "0" * 64, "b": 7}}, "a value of digests is not 64 hexadecimal digits"),
        (FITTING | {"flag": 1}, "flag is 1, not true or false"),
    ],
)
def test_what_does_not_fit_is_named_with_its_path_and_value(document, said):
    with pytest.raises(Malformed) as refused:
        typed(document, Record)
    assert str(refused.value).endswith(said)


def test_a_text_that_is_no_line_may_hold_anything():
    assert typed(FITTING | {"anything": "\x1b\n\ud800"}, Record).anything == "\x1b\n\ud800"


def test_keys_that_nothing_is_known_of_are_left_out_or_refused():
    window = {"first": 1, "last": 2}
    assert typed(window | {"more": 3}, Window) == Window(first=1, last=2)
    assert typed(window, Window, exact=True) == Window(first=1, last=2)
    with pytest.raises(Malformed, match="it has the key 'more'"):
        typed(window | {"more": 3}, Window, exact=True)


def test_an_exact_document_lacks_nothing_that_has_a_default_either():
    with pytest.raises(Malformed, match="it has no rows"):
        typed({"name": "a"}, Record, exact=True)


def test_a_mapping_with_keys_that_do_not_fit_is_refused():
    class Keyed(Struct):
        by_digest: dict[Annotated[str, Meta(max_length=2)], int]

    with pytest.raises(Malformed, match="by_digest"):
        typed({"by_digest": {"long": 1}}, Keyed)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "Expecting value"),
        (b"[]", "no JSON object"),
        (b'{"a": NaN}', "it holds NaN, which is no number"),
        (b'{"a": -Infinity}', "it holds -Infinity, which is no number"),
        (b"[" * 100_000, "recursion"),
        (b"\xff\xfe\xfa", "decode"),
        (b'{"a": ' + b"9" * 5000 + b"}", "digits"),
        (b'{"a": "' + b"x" * (1 << 20) + b'"}', "larger than 1 MiB"),
    ],
)
def test_a_file_that_is_no_object_is_refused(tmp_path, content, said):
    path = tmp_path / "document.json"
    path.write_bytes(content)
    with pytest.raises(Malformed, match=said):
        read_object(path, most_bytes=1 << 20)


def test_a_pipe_a_folder_and_nothing_are_no_files(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for name, said in {"pipe": "no ordinary file", ".": "no ordinary file", "none": "no such file"}.items():
        with pytest.raises(Malformed, match=said):
            read_object(tmp_path / name)


def test_a_refused_file_is_named_in_ascii_before_the_advice(tmp_path):
    path = tmp_path / "été\n.json"
    path.write_text(json.dumps({"name": 7}))
    with pytest.raises(InvalidInput) as refused:
        read_record(path, Record, "write it again")
    assert str(refused.value).isprintable()
    assert str(refused.value).endswith(
        r"\xe9t\xe9\n.json' cannot be used (name is 7, not a line of text); write it again"
    )


@given(JSON)
def test_a_value_is_shown_in_ascii_and_short(value):
    assert shown(value).isascii()
    assert shown(value).isprintable()
    assert len(shown(value)) <= 80


@pytest.mark.parametrize("place", ["../x", "/etc", "a/../../x", "..", "", "a\\..\\b"])
def test_a_path_that_leaves_the_folder_is_refused(tmp_path, place):
    with pytest.raises(Malformed, match="place is .*, which is no path below the folder"):
        require_path_below(tmp_path, place, "place")


def test_a_path_below_the_folder_is_not_and_a_link_out_of_it_is(tmp_path):
    (tmp_path / "inside" / "deep").mkdir(parents=True)
    (tmp_path / "inside" / "link").symlink_to(tmp_path)
    (tmp_path / "inside" / "loop").symlink_to(tmp_path / "inside" / "loop")
    require_path_below(tmp_path / "inside", "deep/not/yet", "place")
    with pytest.raises(Malformed, match="through a link"):
        require_path_below(tmp_path / "inside", "link", "place")
    with pytest.raises(Malformed, match="place is"):
        require_path_below(tmp_path / "inside", "nul\0", "place")


@pytest.mark.parametrize("key", ["a\x1b[31m", "a\nb", "a\u202eb", "a\ud800", "a\0"])
@pytest.mark.parametrize("where", ["digests", "free", "deep"])
def test_a_key_that_a_terminal_would_obey_is_refused(where, key):
    document = {
        "digests": {"name": "a", "digests": {key: "0" * 64}},
        "free": {"name": "a", "free": {key: 1}},
        "deep": {"name": "a", "free": {"list": [{"inner": {key: 1}}]}},
    }[where]
    with pytest.raises(Malformed, match=r"has the key '.*', which is not a line of text") as refused:
        typed(document, Record)
    assert str(refused.value).isprintable()
