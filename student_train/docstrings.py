"""Docstrings taken apart: a summary, prose, and sections such as `Args:`, each indented below its title."""

from __future__ import annotations

import inspect
import re
from typing import Any

_TITLE = re.compile(r"^([A-Z][a-z]+):\n(?=    )", re.MULTILINE)
_ARGUMENT = re.compile(r"^(\w+(?:, \w+)*): ", re.MULTILINE)


def summary_and_prose(documented: Any) -> tuple[str, str]:
    """The first line, and what follows up to the first section."""
    summary, _, rest = _text(documented).partition("\n")
    return summary.strip(), _TITLE.split(rest)[0].strip()


def sections(documented: Any) -> dict[str, str]:
    """Title -> text, its lines no longer indented."""
    _, *parts = _TITLE.split(_text(documented))
    return {title: inspect.cleandoc(text) for title, text in zip(parts[::2], parts[1::2], strict=True)}


def arguments(documented: Any) -> dict[tuple[str, ...], str]:
    """What `Args:` says, on one line each; names that are described together stay together."""
    _, *parts = _ARGUMENT.split(sections(documented).get("Args", ""))
    pairs = zip(parts[::2], parts[1::2], strict=True)
    return {tuple(names.split(", ")): " ".join(text.split()) for names, text in pairs}


def _text(documented: Any) -> str:
    return inspect.cleandoc(documented.__doc__ or "")
