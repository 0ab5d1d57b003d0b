"""Places in a JSON document: keys and positions with dots between, and `*` for each item of a list.

Nothing is evaluated: a place is followed or is not there.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from teacher_cache.teachers.remote.saying import Unfit

_EACH = "*"
_MOST_STEPS = 32


def require_place(place: str) -> None:
    """Raise `ValueError` for what is no place, or goes through lists of lists."""
    steps = place.split(".")
    if "" in steps or len(steps) > _MOST_STEPS or steps.count(_EACH) > 1:
        raise ValueError(f"{place[:80]!a} is no place in JSON; write keys with dots between, and * once at most")


def found_at(document: Any, place: str) -> Any:
    """What lies at a place; a list of what lies at each item where it has a `*`.

    Raises:
        Unfit: nothing does.
    """
    before, each, after = place.partition(_EACH)
    if not each:
        return _followed(document, place)
    items = _followed(document, before.rstrip("."))
    if not isinstance(items, list):
        raise Unfit(f"the answer has no list at {before.rstrip('.') or 'its top'!a}")
    return [_followed(item, after.lstrip(".")) for item in items]


def _followed(document: Any, place: str) -> Any:
    for step in _steps(place):
        if isinstance(document, dict) and step in document:
            document = document[step]
        elif isinstance(document, list) and step.isdecimal() and step.isascii() and int(step) < len(document):
            document = document[int(step)]
        else:
            raise Unfit(f"the answer has nothing at {place!a}")
    return document


def _steps(place: str) -> Iterator[str]:
    return iter(place.split(".") if place else ())
