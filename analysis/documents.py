"""JSON files that others may have written: read whole, checked, and refused in one sentence that names the file.

Nothing in them is trusted: no pipe is waited for, no number is NaN, no text moves a terminal's cursor, and no path
leads out of the folder it belongs to.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn

from ground.errors import InvalidInput

_MAX_BYTES = 64 << 20
_MAX_NUMBER = 1 << 53
_MAX_TEXT = 4096


class Malformed(ValueError):
    """A document does not hold what it should; whoever reads it names the file."""


def read_object(path: Path, advice: str) -> dict[str, Any]:
    """The JSON object in a file.

    Args:
        advice: what to do where it cannot be read; ends the sentence.

    Raises:
        InvalidInput: it is missing, damaged, or no object.
    """
    try:
        # Asked first: opening a pipe would wait for its other end.
        if not path.is_file():
            raise Malformed("there is no such file" if not path.exists() else "it is no ordinary file")
        if path.stat().st_size > _MAX_BYTES:
            raise Malformed(f"it is larger than {_MAX_BYTES >> 20} MiB")
        document = json.loads(path.read_bytes(), parse_constant=_refuse_constant)
        if not isinstance(document, dict):
            raise Malformed("it is no JSON object")
    except (OSError, ValueError, RecursionError) as error:
        raise unreadable(path, error, advice) from error
    return document


def unreadable(path: Path, error: Exception, advice: str) -> InvalidInput:
    """The error that names a document which cannot be used, and why."""
    return InvalidInput(f"{str(path)!a} cannot be used ({error}); {advice}")


def text(document: Mapping[str, Any], key: str) -> str:
    """A text of one printable line."""
    value = _value(document, key)
    if not isinstance(value, str) or not value.isprintable() or len(value) > _MAX_TEXT:
        raise Malformed(f"{key} is {_shown(value)}, not a line of text")
    return value


def whole(document: Mapping[str, Any], key: str, least: int = 0) -> int:
    """A whole number from `least` on that a float64 holds exactly."""
    value = _value(document, key)
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= _MAX_NUMBER:
        raise Malformed(f"{key} is {_shown(value)}, not a whole number of at least {least}")
    return value


def optional_whole(document: Mapping[str, Any], key: str, least: int = 0) -> int | None:
    """A whole number, or None."""
    return None if _value(document, key) is None else whole(document, key, least)


def number(document: Mapping[str, Any], key: str, most: float = math.inf) -> float:
    """A finite number between 0 and `most`."""
    value = _value(document, key)
    if not isinstance(value, int | float) or isinstance(value, bool) or not _within(value, most):
        limit = "of at least 0" if math.isinf(most) else f"between 0 and {most:g}"
        raise Malformed(f"{key} is {_shown(value)}, not a number {limit}")
    return float(value)


def _within(value: float, most: float) -> bool:
    try:
        return 0 <= float(value) <= most and math.isfinite(value)
    except OverflowError:
        return False


def objects(document: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    """A list of objects."""
    value = _value(document, key)
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise Malformed(f"{key} is {_shown(value)}, not a list of objects")
    return value


def mapping(document: Mapping[str, Any], key: str) -> dict[str, Any]:
    """An object inside the object."""
    value = _value(document, key)
    if not isinstance(value, dict):
        raise Malformed(f"{key} is {_shown(value)}, not an object")
    return value


def relative_path(document: Mapping[str, Any], key: str, folder: Path) -> str:
    """A path below `folder`, as it is written; one that leads out of it, by itself or through a link, is refused."""
    value = text(document, key)
    path = PurePosixPath(value)
    # A backslash or a drive's colon would be read as more than a name on Windows.
    if not path.parts or path.is_absolute() or ".." in path.parts or "\\" in value or Path(value).is_absolute():
        raise Malformed(f"{key} is {_shown(value)}, which is no path below the folder")
    try:
        inside = (folder / path).resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError) as error:
        raise Malformed(f"{key} is {_shown(value)}, which cannot be followed: {error}") from error
    if not inside:
        raise Malformed(f"{key} is {_shown(value)}, which leads out of the folder through a link")
    return value


def _value(document: Mapping[str, Any], key: str) -> Any:
    if key not in document:
        raise Malformed(f"it has no {key}")
    return document[key]


def _shown(value: object) -> str:
    """A value in ASCII, cut where it is long."""
    try:
        shown = ascii(value)
    except (RecursionError, ValueError):  # nested deeply, or more digits than Python prints
        return "something very large"
    return shown if len(shown) <= 80 else f"{shown[:77]}..."


def _refuse_constant(name: str) -> NoReturn:
    raise Malformed(f"it holds {name}, which is no number")
