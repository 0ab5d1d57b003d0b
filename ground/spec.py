"""`NAME:key=value,...`: how methods, losses and comparisons are written on the command line."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from ground.errors import InvalidInput, UnknownName

_T = TypeVar("_T")


def split_spec(text: str) -> tuple[str, dict[str, str]]:
    """Name and settings, not yet understood; the name may be a class as `package.module:Class`.

    Raises:
        InvalidInput: a setting has no value, or is given twice.
    """
    name, colon, rest = text.partition(":")
    inner, _, after = rest.partition(":")
    if colon and inner[:1].isupper() and "=" not in inner:  # what begins a class, and no setting
        name, rest = f"{name}:{inner}", after
    settings: dict[str, str] = {}
    for item in filter(None, rest.split(",")):
        key, equals, value = item.partition("=")
        if not equals or not key or not value or key in settings:
            raise InvalidInput(
                f"cannot read {item!r} in {text!r}; write NAME:key=value,key=value, each key once, where NAME may be "
                "package.module:Class"
            )
        settings[key] = value
    return name, settings


def joined_spec(name: str, settings: Mapping[str, str]) -> str:
    """What `split_spec` divides."""
    return ":".join(filter(None, [name, ",".join(f"{key}={value}" for key, value in settings.items())]))


class Settings:
    """The settings of one spec, taken out one after another by whoever knows them.

    Args:
        kind, name: whose they are, for messages.
        values: key -> text.

    Attributes:
        defaults: of those that were asked for so far, and have one.
    """

    def __init__(self, kind: str, name: str, values: Mapping[str, str]) -> None:
        self.owner = f"{kind} {name}"
        self.defaults: dict[str, Any] = {}
        self._left = dict(values)
        self._known: list[str] = []

    def build(self, factory: Callable[..., _T], **defaults: Any) -> _T:
        """Call it with those settings that are its arguments, turned into the types of its signature.

        Args:
            defaults: for arguments that are not given.

        Raises:
            InvalidInput: a value is not of the right type, or is refused.
        """
        return self.call(factory, self.arguments(factory, **defaults))

    def arguments(self, factory: Callable[..., object], **defaults: Any) -> dict[str, Any]:
        """What `build` calls it with."""
        values, kinds = dict(defaults), None
        parameters = inspect.signature(factory).parameters
        for key in argument_names(factory):
            default = defaults.get(key, parameters[key].default)
            if default is not inspect.Parameter.empty:
                self.defaults[key] = default
            if (text := self._take(key)) is not None:
                kinds = self.kinds(factory) if kinds is None else kinds
                values[key] = self.converted(key, text, kinds[key])
        try:
            inspect.signature(factory).bind(**values)
        except TypeError as error:
            raise InvalidInput(f"{self.owner}: {error}; give it as key=value, or give it a default") from error
        return values

    def call(self, factory: Callable[..., _T], arguments: Mapping[str, Any]) -> _T:
        """Call it, and say whose value it is that it refuses."""
        try:
            return factory(**arguments)
        except ValueError as error:
            raise InvalidInput(f"{self.owner}: {error}") from error

    def take(self, key: str, default: _T) -> _T:
        """One setting, of the type of its default."""
        self.defaults[key] = default
        text = self._take(key)
        return default if text is None else cast(_T, self.converted(key, text, type(default)))

    def take_choice(self, key: str, kind: str, known: Iterable[str], default: str) -> str:
        """One of some names, called a `kind` where it is none of them."""
        text = self._take(key)
        if text is not None and text not in known:
            raise UnknownName(kind, text, known)
        return default if text is None else text

    def rest(self) -> tuple[tuple[str, str], ...]:
        """All that is left, as text, where nobody can say what it means."""
        rest = tuple(sorted(self._left.items()))
        self._left.clear()
        return rest

    def refuse(self, keys: Iterable[str], reason: str) -> None:
        """Raise `InvalidInput` if one of these is given."""
        for key in keys:
            if key in self._left:
                raise InvalidInput(f"{self.owner}: {key} {reason}")

    def finish(self) -> None:
        """Raise `UnknownName` if something is left that nobody knew."""
        for key in self._left:
            raise UnknownName(f"setting of {self.owner}", key, self._known or ["(it has none)"])

    def _take(self, key: str) -> str | None:
        self._known.append(key)
        return self._left.pop(key, None)

    def kinds(self, factory: Callable[..., Any]) -> dict[str, Any]:
        """Argument -> its type: the annotated one, or that of its default."""
        try:
            hints = get_type_hints(factory.__init__ if inspect.isclass(factory) else factory)
        except NameError as error:
            raise InvalidInput(f"{self.owner}: an annotation of its arguments cannot be resolved ({error})") from error
        parameters = inspect.signature(factory).parameters.values()
        return {p.name: type(p.default) for p in parameters} | hints

    def converted(self, key: str, text: str, kind: Any) -> Any:
        """A text as a value of a type; raises `InvalidInput` for what is none."""
        kinds = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
        if NoneType in kinds and text.lower() == "none":
            return None
        wanted = next((kind for kind in kinds if kind is not NoneType), NoneType)
        if wanted not in _CONVERTERS:
            known = ", ".join(kind.__name__ for kind in _CONVERTERS)
            raise InvalidInput(f"{self.owner}: {key} cannot be given as text; annotate it as one of {known}")
        try:
            return _CONVERTERS[wanted](text)
        except ValueError as error:
            raise InvalidInput(f"{self.owner} takes {key} as {wanted.__name__}, got {text!r}") from error


def spelled_settings(factory: Callable[..., object], values: Mapping[str, str]) -> dict[str, str]:
    """Settings as they are usually written, so that the same ones are the same text: in the order of its arguments,
    without those that are its defaults. What is none of its arguments, or not of their type, stays as it is.
    """
    if not values:  # then it does not matter what its arguments are
        return {}
    settings, spelled = Settings("settings", factory.__name__, values), dict[str, str]()
    parameters, kinds, known = inspect.signature(factory).parameters, settings.kinds(factory), argument_names(factory)
    for key in filter(values.__contains__, known):
        try:
            value = settings.converted(key, values[key], kinds[key])
        except InvalidInput:
            spelled[key] = values[key]
            continue
        if value != parameters[key].default:
            spelled[key] = spelled_value(value)
    return spelled | {key: text for key, text in values.items() if key not in known}


def spelled_value(value: bool | float | str | None) -> str:
    """A value as text that reads as it again."""
    if value is None or isinstance(value, bool):
        return str(value).lower()
    return repr(value).removesuffix(".0") if isinstance(value, float) else str(value)


def argument_names(factory: Callable[..., Any]) -> list[str]:
    """Names of the arguments that a setting can give."""
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    parameters = inspect.signature(factory).parameters.values()
    # A loss without an __init__ of its own has nn.Module's *args and **kwargs, which are no settings.
    return [parameter.name for parameter in parameters if parameter.kind not in variadic]


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
