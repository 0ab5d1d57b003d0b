"""The key of a server: read from the environment, put into one header of a request, and written nowhere else.

It is never part of a URL, a card, an error, a log or a record; `Key` prints as the name of its variable.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping

from ground.errors import InvalidInput

KEY_VARIABLE = "CKD_API_KEY"
OPENAI_VARIABLE = "OPENAI_API_KEY"
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
_HEADER = re.compile(r"[A-Za-z0-9-]{1,64}")
_SECRET_NAME = re.compile(
    r"(api|access|private)[-_]?key|(?<![a-z])key(?![a-z])|token|secret|passw|authori[sz]ation|credential|signature"
)
_SECRET_TEXT = re.compile(
    r"\b(sk|pk|rk|ghp|hf|xox[a-z])[-_][A-Za-z0-9_-]{12,}|\bbearer\s+\S{8,}|"
    # In base64, and no "most basic classification".
    r"\bbasic\s+(?=\S*(?-i:[A-Z0-9=]))\S{12,}",
    re.I,
)
# What a server calls a request or a model; anything else that it says is not repeated.
_IDENTIFIER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:/@+-]{0,199}")


# Places of cards that say where the key is, or what is counted; elsewhere, as in a query, so called things are keys.
_PLACES = (
    *("key", "key_header", "key_prefix", "tokens_in_at", "tokens_out_at", "token_limit", "price.input_tokens"),
    "price.output_tokens",
)


class Key:
    """A key, and how it is sent.

    Args:
        variable: of the environment, that it came from.
        header: of a request.
        prefix: before it in the header.
    """

    __slots__ = ("_header", "_prefix", "_value", "variable")

    def __init__(self, value: str, variable: str, header: str = "authorization", prefix: str = "Bearer ") -> None:
        self._value, self.variable, self._header, self._prefix = value, variable, header, prefix

    def __repr__(self) -> str:
        return f"Key(${self.variable})"

    @property
    def headers(self) -> dict[str, str]:
        """Of a request that it opens."""
        return {self._header: f"{self._prefix}{self._value}"}

    def is_in(self, text: str) -> bool:
        """Whether a text repeats it."""
        return self._value in text


def read_key(variables: Iterable[str], header: str = "authorization", prefix: str = "Bearer ") -> Key | None:
    """The key in the first of these variables that is set; None where none is, for servers that ask for none.

    Raises:
        InvalidInput: it can be in no header.
    """
    for variable in variables:
        value = os.environ.get(variable, "").strip()
        if value:
            if not (value.isascii() and value.isprintable() and " " not in value):
                raise InvalidInput(f"the key in ${variable} has characters that no header takes; set it again")
            return Key(value, variable, header, prefix)
    return None


def require_variable(name: str) -> None:
    """Raise `ValueError` for what is no variable's name, as a key that was put in its place; it is not repeated."""
    if not _VARIABLE.fullmatch(name) or _SECRET_TEXT.search(name):
        raise ValueError("key names no variable of the environment; it has to be one, as CKD_API_KEY")


def require_header(name: str, prefix: str = "") -> None:
    """Raise `ValueError` for what is no header's name, or cannot begin its value; neither is repeated."""
    if not _HEADER.fullmatch(name):
        raise ValueError("a header is named that cannot be one")
    if not (prefix.isascii() and prefix.isprintable()):
        raise ValueError("key_prefix has characters that no header takes")


def refuse_secrets(document: object, what: str, variable: object = None) -> None:
    """Refuse a document that holds a key, or what looks like one.

    Args:
        variable: of the environment, that a key is in beside the usual ones.

    Raises:
        InvalidInput: names the place and not the value.
    """
    names = (KEY_VARIABLE, OPENAI_VARIABLE, *([variable] if isinstance(variable, str) else ()))
    known = [value for name in names if (value := os.environ.get(name, "").strip())]
    for place, text in _texts(document):
        is_named = bool(_SECRET_NAME.search(place.rpartition(".")[2].lower())) and place not in _PLACES
        if is_named or _SECRET_TEXT.search(text) or any(value in text for value in known):
            raise InvalidInput(
                f"{what} has at {place or 'its top'} what looks like a key, and others read such files; leave it out, "
                f"and put the key into the environment, as {KEY_VARIABLE}"
            )


def _texts(value: object, place: str = "") -> Iterator[tuple[str, str]]:
    """Every text in a document: where it is, itself."""
    waiting: list[tuple[str, object]] = [(place, value)]
    while waiting:
        where, current = waiting.pop()
        if isinstance(current, str):
            yield where, current
        elif isinstance(current, Mapping):
            waiting += [(f"{where}.{key}" if where else str(key), item) for key, item in current.items()]
        elif isinstance(current, (list, tuple)):
            waiting += [(f"{where}.{number}", item) for number, item in enumerate(current)]


def identifier(text: object, key: Key | None) -> str | None:
    """What a server calls something, where that can be repeated: short, plain, and without the key."""
    if not isinstance(text, str) or not _IDENTIFIER.fullmatch(text) or (key is not None and key.is_in(text)):
        return None
    return text
