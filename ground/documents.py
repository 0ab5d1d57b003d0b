"""JSON documents that others may have written: read whole, decoded into typed records, refused in one sentence.

Nothing in them is trusted: no pipe is waited for, no number is NaN, no text moves a terminal's cursor, and no path
leads out of the folder it belongs to.

msgspec decodes, because it is strict, loads in 0.03 s and takes plain dataclasses, so the types of a record are all
that has to be written. Checks by hand were that much again for each document, and pydantic would load ten times as
long; what msgspec lacks, the value in its messages and whether a text can be printed, is added here.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, NoReturn, TypeVar

import msgspec
from msgspec import Meta, inspect

from ground.errors import InvalidInput

T = TypeVar("T")

_MOST_BYTES = 64 << 20
# float64 holds every whole number up to here, so a table of either type has the same.
_MOST = 1 << 53
_LONGEST_LINE = 4096

# The description is what messages say that a value is not.
Line = Annotated[str, Meta(max_length=_LONGEST_LINE, description="a line of text", extra={"printable": True})]
Count = Annotated[int, Meta(ge=0, le=_MOST, description="a whole number of at least 0")]
Positive = Annotated[int, Meta(ge=1, le=_MOST, description="a whole number of at least 1")]
Amount = Annotated[float, Meta(ge=0, le=sys.float_info.max, description="a number of at least 0")]
Share = Annotated[float, Meta(ge=0, le=1, description="a number between 0 and 1")]
Hex32 = Annotated[str, Meta(pattern=r"\A[0-9a-f]{32}\Z", description="32 hexadecimal digits")]
Hex64 = Annotated[str, Meta(pattern=r"\A[0-9a-f]{64}\Z", description="64 hexadecimal digits")]


def is_line(text: str) -> bool:
    """Whether a text can be a `Line`."""
    return text.isprintable() and len(text) <= _LONGEST_LINE


class Malformed(ValueError):
    """A document does not hold what it should; whoever reads it names the file."""


def read_object(path: Path, most_bytes: int = _MOST_BYTES) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        Malformed: it is missing, damaged, too large, or no object.
    """
    try:
        # Asked first: opening a pipe would wait for its other end.
        if not path.is_file():
            raise Malformed("there is no such file" if not path.exists() else "it is no ordinary file")
        if path.stat().st_size > most_bytes:
            raise Malformed(f"it is larger than {most_bytes >> 20} MiB")
        return parse_object(path.read_bytes())
    except OSError as error:
        raise Malformed(str(error)) from error


def parse_object(content: bytes) -> dict[str, Any]:
    """The JSON object in a document that was read; raises `Malformed` if there is none."""
    try:
        document = json.loads(content, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise Malformed(str(error)) from error
    if not isinstance(document, dict):
        raise Malformed("it is no JSON object")
    return document


def typed(document: object, kind: type[T], *, exact: bool = False) -> T:
    """A decoded document as a record.

    Args:
        kind: a msgspec.Struct or a dataclass; a text whose type is `Line` can be printed as it is.
        exact: refuse a document that lacks a key of the record, or has one more; otherwise those with a default may
            be missing, and others are left out.

    Raises:
        Malformed: names what is missing, or the value that does not fit, with its path.
    """
    try:
        record = msgspec.convert(document, kind)
    except msgspec.ValidationError as error:
        raise Malformed(_translated(error, document, kind)) from error
    except (ValueError, RecursionError) as error:  # a key that is no text, or nested too deeply
        raise Malformed(str(error)) from error
    for path, expected, value in _parts_of(kind, document, but_fine_lines=True):
        if isinstance(value, str) and _must_be_printable(expected) and not value.isprintable():
            raise Malformed(_is_not(path, value, expected))
        if isinstance(value, dict):
            _require_printable_keys(path, expected, value)
        if exact and isinstance(value, dict):
            _require_keys(path, expected, value)
    return record


def read_record(path: Path, kind: type[T], advice: str) -> T:
    """The record in a file.

    Args:
        advice: what to do where it cannot be read; ends the sentence.

    Raises:
        InvalidInput: it is missing, damaged, or not such a record.
    """
    try:
        return typed(read_object(path), kind)
    except Malformed as error:
        raise unreadable(path, error, advice) from error


def unreadable(path: Path, error: Exception, advice: str) -> InvalidInput:
    """The error that names a document which cannot be used, and why."""
    return InvalidInput(f"{str(path)!a} cannot be used ({error}); {advice}")


def require_path_below(folder: Path, value: str, name: str) -> None:
    """Refuse a path that leads out of `folder`, by itself or through a link; raises `Malformed`.

    Args:
        name: of the value, for the message.
    """
    path = PurePosixPath(value)
    # A backslash or a drive's colon would be read as more than a name on Windows.
    if not path.parts or path.is_absolute() or ".." in path.parts or "\\" in value or Path(value).is_absolute():
        raise Malformed(f"{name} is {shown(value)}, which is no path below the folder")
    try:
        inside = (folder / path).resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError, ValueError) as error:
        raise Malformed(f"{name} is {shown(value)}, which cannot be followed: {error}") from error
    if not inside:
        raise Malformed(f"{name} is {shown(value)}, which leads out of the folder through a link")


def shown(value: object) -> str:
    """A value in ASCII, cut where it is long."""
    try:
        text = ascii(value)
    except (RecursionError, ValueError):  # nested deeply, or more digits than Python prints
        return "something very large"
    return text if len(text) <= 80 else f"{text[:77]}..."


def _refuse_constant(name: str) -> NoReturn:
    raise Malformed(f"it holds {name}, which is no number")


# What msgspec says, with the value


_WHERE = re.compile(r"(?P<reason>.*) - at `\$\.?(?P<path>.*)`", re.DOTALL)
_MISSING = re.compile(r"Object missing required field `(.*)`")
_RECORDS = (inspect.StructType, inspect.DataclassType, inspect.TypedDictType)
_LISTS = (inspect.VarTupleType, inspect.ListType)
_WORDS: dict[type[inspect.Type], str] = {
    inspect.StrType: "a text",
    inspect.IntType: "a whole number",
    inspect.FloatType: "a number",
    inspect.BoolType: "true or false",
    **dict.fromkeys(_LISTS, "a list"),
    **dict.fromkeys((*_RECORDS, inspect.DictType), "an object"),
}


@cache
def _type_of(kind: type) -> inspect.Type:
    """What msgspec knows of a record."""
    return inspect.type_info(kind)


def _translated(error: msgspec.ValidationError, document: object, kind: type) -> str:
    """Why a document is refused: msgspec names the place and the type, and we add the value that is there."""
    where = _WHERE.fullmatch(str(error))
    reason, place = (where["reason"], where["path"]) if where else (str(error), "")
    if missing := _MISSING.fullmatch(reason):
        return f"{place or 'it'} has no {missing[1]}"
    if where is None and " - at " in reason:  # of a mapping's key
        return reason
    if isinstance(error.__cause__, ValueError):  # a check of the record itself, which has its own words
        return f"{place}: {error.__cause__}"
    found = [(expected, value) for path, expected, value in _parts_of(kind, document) if path == place]
    if not found:
        return f"{place}: {reason}"
    expected, value = found[0]
    if len(found) > 1:  # of the values of a mapping msgspec does not say which it is
        return f"a value of {place.removesuffix('[...]')} is not {_words(expected)}"
    return _is_not(place, value, expected)


def _is_not(path: str, value: object, expected: inspect.Type) -> str:
    return f"{path or 'it'} is {shown(value)}, not {_words(expected)}"


def _words(expected: inspect.Type) -> str:
    """What a value should be."""
    described = (
        (expected.extra_json_schema or {}).get("description") if isinstance(expected, inspect.Metadata) else None
    )
    plain = _plain(expected)
    if isinstance(plain, inspect.TupleType):
        return f"a list of {len(plain.item_types)}"
    return described or _WORDS.get(type(plain), "what belongs there")


def _parts_of(
    kind: type, document: object, *, but_fine_lines: bool = False
) -> Iterator[tuple[str, inspect.Type, object]]:
    return _parts(_type_of(kind), document, "", but_fine_lines)


def _parts(
    expected: inspect.Type, value: object, path: str, but_fine_lines: bool
) -> Iterator[tuple[str, inspect.Type, object]]:
    """Every value in a document that a type says something of: its path as msgspec writes it, its type, itself.

    Args:
        but_fine_lines: leave out what is in a list of lines that can all be printed, as thousands of classes' names.
    """
    if isinstance(expected, inspect.UnionType):
        expected = next(kind for kind in expected.types if not isinstance(kind, inspect.NoneType))
    yield path, expected, value
    plain = _plain(expected)
    if isinstance(plain, _RECORDS) and isinstance(value, dict):
        for field in plain.fields:
            if field.encode_name in value:
                name = f"{path}.{field.encode_name}" if path else field.encode_name
                yield from _parts(field.type, value[field.encode_name], name, but_fine_lines)
    elif isinstance(plain, inspect.DictType) and isinstance(value, dict):
        if not isinstance(plain.value_type, inspect.AnyType):
            for item in value.values():
                yield from _parts(plain.value_type, item, f"{path}[...]", but_fine_lines)
    elif isinstance(plain, (*_LISTS, inspect.TupleType)) and isinstance(value, list):
        if but_fine_lines and _are_fine_lines(plain, value):
            return
        kinds = plain.item_types if isinstance(plain, inspect.TupleType) else (plain.item_type,) * len(value)
        for place, (kind, item) in enumerate(zip(kinds, value, strict=False)):
            yield from _parts(kind, item, f"{path}[{place}]", but_fine_lines)


def _are_fine_lines(expected: inspect.Type, values: list[Any]) -> bool:
    if not isinstance(expected, _LISTS) or not _must_be_printable(expected.item_type):
        return False
    return all(isinstance(value, str) and value.isprintable() for value in values)


def _plain(expected: inspect.Type) -> inspect.Type:
    """A type without what its annotation adds."""
    return expected.type if isinstance(expected, inspect.Metadata) else expected


def _must_be_printable(expected: inspect.Type) -> bool:
    return isinstance(expected, inspect.Metadata) and bool((expected.extra or {}).get("printable"))


def _require_printable_keys(path: str, expected: inspect.Type, value: dict[str, Any]) -> None:
    """Refuse a mapping whose keys are not lines of text, at any depth of one that may hold anything."""
    plain = _plain(expected)
    if not isinstance(plain, inspect.DictType):
        return
    is_open = isinstance(plain.value_type, inspect.AnyType)
    for key in _all_keys(value) if is_open else value:
        if not key.isprintable():
            raise Malformed(f"{path or 'it'} has the key {shown(key)}, which is not a line of text")


def _all_keys(value: object) -> Iterator[str]:
    waiting = [value]
    while waiting:
        current = waiting.pop()
        if isinstance(current, dict):
            yield from current
            waiting += current.values()
        elif isinstance(current, list):
            waiting += current


def _require_keys(path: str, expected: inspect.Type, value: dict[str, Any]) -> None:
    """Refuse an object whose keys are not those of its record; a mapping may have any."""
    plain = _plain(expected)
    if isinstance(plain, _RECORDS):
        names = [field.encode_name for field in plain.fields]
        if missing := [name for name in names if name not in value]:
            raise Malformed(f"{path or 'it'} has no {missing[0]}")
        if unknown := [name for name in value if name not in names]:
            raise Malformed(f"{path or 'it'} has the key {shown(unknown[0])}, which nothing is known of")
