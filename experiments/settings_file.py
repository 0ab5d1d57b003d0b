"""A YAML file read with its line numbers, so that every complaint about it can name the line.

Only plain YAML is read: no tags, so no objects; each key once; a depth and a size that a grid can need.

It is read by hand, and not decoded into records as JSON is (`ground.documents`): a decoded value has lost its line, and
of a file that people write the line is half of the message.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import yaml

from ground.errors import InvalidInput, UnknownName

_MAX_BYTES = 1 << 20
_MAX_NUMBER = 1e300
# What reads the same to everybody; a leading zero makes a number octal to some readers of YAML.
_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]{0,30})")
_NUMBER = re.compile(r"[-+]?((0|[1-9][0-9]*)(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]{1,3})?")
_NEWER_OCTAL = re.compile(r"[-+]?0o[0-7]{1,30}")
_NUMBER_TAGS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")


@dataclass(frozen=True, slots=True)
class Entry:
    """One value of the file, with the name it has there.

    Args:
        name: as it is called in messages, for instance "training.lr".
    """

    path: Path
    name: str
    node: yaml.Node

    @property
    def line(self) -> int:
        """Counted from 1."""
        return int(self.node.start_mark.line) + 1

    def refuse(self, reason: object) -> NoReturn:
        """Raise `InvalidInput` that names file and line."""
        raise InvalidInput(f"{self.path}, line {self.line}: {reason}")

    def fields(self, known: Iterable[str], required: Iterable[str] = ()) -> dict[str, Entry]:
        """The entries of a mapping, by key; keys that are not known are refused with the nearest that is."""
        if not isinstance(self.node, yaml.MappingNode):
            self.refuse(f"{self.name} must be a mapping of settings, as name: value")
        names, found = list(known), {}
        for key, value in self.node.value:
            place = Entry(self.path, self.name, key)
            name = key.value if isinstance(key, yaml.ScalarNode) else ""
            if name not in names:
                place.refuse(UnknownName(f"setting of {self.name}", name, names))
            if name in found:
                place.refuse(f"{name} is given twice; give it once")
            found[name] = Entry(self.path, name, value)
        missing = [name for name in required if name not in found]
        if missing:
            self.refuse(f"{self.name} lacks {', '.join(missing)}; add it")
        return found

    @property
    def is_mapping(self) -> bool:
        """Whether it is of the form name: value."""
        return isinstance(self.node, yaml.MappingNode)

    @property
    def is_list(self) -> bool:
        """Whether it is of the form [a, b] or of lines with dashes."""
        return isinstance(self.node, yaml.SequenceNode)

    def items(self) -> list[Entry]:
        """The entries of a list, at least one."""
        if not isinstance(self.node, yaml.SequenceNode) or not self.node.value:
            self.refuse(f"{self.name} must be a list with at least one item, as [a, b]")
        return [Entry(self.path, self.name, node) for node in self.node.value]

    def text(self) -> str:
        """A text."""
        if not isinstance(self.node, yaml.ScalarNode) or not self.node.value.strip():
            self.refuse(f"{self.name} must be a text")
        if not self.node.value.isprintable():
            self.refuse(f"{self.name} must be of one line, without control characters")
        return str(self.node.value)

    def integer(self, least: int, most: int = 2**63 - 1) -> int:
        """A whole number within limits, in plain digits."""
        written = self._plain_scalar()
        value = int(written) if _INTEGER.fullmatch(written) else None
        if value is None or not least <= value <= most:
            self._refuse_spelling(written)
            bounds = f"of at least {least}" if most == 2**63 - 1 else f"from {least} to {most}"
            self.refuse(f"{self.name} must be a whole number {bounds}, got {self._shown()}")
        return value

    def number(self) -> float:
        """A finite number, in plain digits; 5e-4 is one, which YAML reads as text."""
        written = self.node.value if isinstance(self.node, yaml.ScalarNode) else ""
        value = float(written) if _NUMBER.fullmatch(written) else None
        if value is None or not abs(value) < _MAX_NUMBER:
            self._refuse_spelling(self._plain_scalar())
            self.refuse(f"{self.name} must be a number, got {self._shown()}")
        return value

    def fraction(self) -> float:
        """An accuracy, above 0 and below 1."""
        value = self.number()
        if not 0 < value < 1:
            self.refuse(f"{self.name} must be an accuracy between 0 and 1, as 0.5, got {self._shown()}")
        return value

    @property
    def is_none(self) -> bool:
        """Whether it is `none`, `null`, or left empty."""
        return isinstance(self.node, yaml.ScalarNode) and self.node.value.lower() in ("", "none", "null", "~")

    def _plain_scalar(self) -> str:
        """As it is written, without quotes; empty where it is something else."""
        return self.node.value if isinstance(self.node, yaml.ScalarNode) and self.node.style is None else ""

    def _refuse_spelling(self, written: str) -> None:
        """Refuse what is a number to YAML, but not the one that most people read: 040 is 32, and 1:30 is 90."""
        tag = yaml.SafeLoader("").resolve(yaml.ScalarNode, written, (True, False))
        is_other = tag in _NUMBER_TAGS and not (_INTEGER.fullmatch(written) or _NUMBER.fullmatch(written))
        if not is_other and not _NEWER_OCTAL.fullmatch(written):
            return
        with contextlib.suppress(ValueError, OverflowError):  # of .inf no digits can be given, nor of an endless one
            value = int(written, 8) if _NEWER_OCTAL.fullmatch(written) else yaml.safe_load(written)
            plain, meant = f"{value:.15g}", written.lstrip("+-0")
            zeros = f"{meant}, or {plain} if that is meant" if _INTEGER.fullmatch(meant) else plain
            if math.isfinite(value):
                self.refuse(f"{self.name} is {self._shown()}, which YAML reads as {plain}; write {zeros}")

    def _shown(self) -> str:
        return repr(self.node.value[:60]) if isinstance(self.node, yaml.ScalarNode) else "several values"


def read_bytes(path: Path) -> bytes:
    """The content of a file that may be a grid."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidInput(f"{path} cannot be read ({error.strerror}); give the path of a grid") from error


def parse_settings(path: Path, content: bytes) -> Entry:
    """The whole file as one entry; raises `InvalidInput` if it is no plain YAML."""
    if len(content) > _MAX_BYTES:
        raise InvalidInput(f"{path} has {len(content)} bytes, which no grid needs; give the path of a grid")
    try:
        text = content.decode()
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        _require_plain(path, node)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = "" if mark is None else f", line {mark.line + 1}"
        problem = getattr(error, "problem", None) or "it is no text in UTF-8, or nested too deeply"
        raise InvalidInput(f"{path}{where}: this is no YAML ({problem}); correct it") from error
    if node is None:
        raise InvalidInput(f"{path} is empty; a grid names pairs, methods, n and seeds")
    return Entry(path, "the grid", node)


def _require_plain(path: Path, node: yaml.Node | None) -> None:
    """Refuse tags and references, which a grid does not need and a hostile file could grow without end."""
    seen: set[int] = set()
    waiting = [node] if node is not None else []
    while waiting:
        current = waiting.pop()
        entry = Entry(path, "it", current)
        if id(current) in seen:
            entry.refuse("references (&name, *name) are not read in a grid; write the value again")
        seen.add(id(current))
        if not current.tag.startswith("tag:yaml.org,2002:") or ":python" in current.tag:
            entry.refuse(f"the tag {current.tag} is not read in a grid; leave it out")
        if isinstance(current, yaml.MappingNode):
            waiting += [part for pair in current.value for part in pair]
        elif isinstance(current, yaml.SequenceNode):
            waiting += current.value
