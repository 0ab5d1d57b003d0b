"""`NAME:key=value,...`: how methods, losses and comparisons are written on the command line."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, get_type_hints

from storage.errors import InvalidInput, UnknownName

_T = TypeVar("_T")


def split_spec(text: str) -> tuple[str, dict[str, str]]:
    """Name and settings, not yet understood.

    Raises:
        InvalidInput: a setting has no value, or is given twice.
    """
    name, _, rest = text.partition(":")
    settings: dict[str, str] = {}
    for item in filter(None, rest.split(",")):
        key, equals, value = item.partition("=")
        if not equals or not key or key in settings:
            raise InvalidInput(f"cannot read {item!r} in {text!r}; write NAME:key=value,key=value, each key once")
        settings[key] = value
    return name, settings


def build_from(kind: str, name: str, settings: Mapping[str, str], factories: Mapping[str, Callable[..., _T]]) -> _T:
    """Call the factory of that name with settings turned into the types of its signature.

    Raises:
        UnknownName: no such factory, or it has no such setting.
        InvalidInput: a value is not of the right type, or is refused.
    """
    if name not in factories:
        raise UnknownName(kind, name, factories)
    factory = factories[name]
    parameters = [parameter for parameter in inspect.signature(factory).parameters if parameter != "self"]
    hints = get_type_hints(factory.__init__ if inspect.isclass(factory) else factory)
    values: dict[str, Any] = {}
    for key, text in settings.items():
        if key not in parameters:
            raise UnknownName(f"setting of {kind} {name}", key, parameters or ["(it has none)"])
        values[key] = _convert(f"{kind} {name}", key, text, hints[key])
    try:
        return factory(**values)
    except ValueError as error:
        raise InvalidInput(f"{kind} {name}: {error}") from error


def to_bool(text: str) -> bool:
    """true or false, yes or no, 1 or 0."""
    known = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    if text.lower() not in known:
        raise ValueError(f"{text!r} is not true or false")
    return known[text.lower()]


def to_float(text: str) -> float:
    """A finite number."""
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text!r} is not a finite number")
    return number


_CONVERTERS: dict[Any, Callable[[str], Any]] = {bool: to_bool, int: int, float: to_float, str: str}


def _convert(owner: str, key: str, text: str, kind: Any) -> Any:
    try:
        return _CONVERTERS[kind](text)
    except ValueError as error:
        raise InvalidInput(f"{owner} takes {key} as {kind.__name__}, got {text!r}") from error
