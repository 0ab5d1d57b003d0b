"""Prompts of a teacher that compares images with texts: a CSV file, class,prompt, one or several for each class."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

from ground.errors import InvalidInput, UnknownName
from ground.terminal import plain

_HEADER = ["class", "prompt"]
_MOST_BYTES = 1 << 25
_MOST_LISTED = 3


def read_prompts(path: Path, classes: Sequence[str] | None = None) -> tuple[tuple[str, str], ...]:
    """(class, prompt) of every line, in the order of the classes, however the file has them.

    Args:
        classes: those of the data set; None takes those of the file, in its order.

    Raises:
        InvalidInput: the file cannot be read, names another class, or has no prompt for one.
    """
    found: dict[str, list[str]] = {name: [] for name in classes or ()}
    for place, label, prompt in _lines(path):
        if classes is None:
            found.setdefault(label, [])
        if label not in found:
            raise InvalidInput(f"{place}: {UnknownName('class of the data set', label, found)}")
        if not prompt.strip():
            raise InvalidInput(f"{place} has no prompt for {plain(label)}; give one, or leave the line out")
        found[label].append(prompt)
    if not found:
        raise InvalidInput(f"{path} has no prompts; give one or several for each class of the data set")
    if missing := [name for name, prompts in found.items() if not prompts]:
        more = f" and {len(missing) - _MOST_LISTED} more" if len(missing) > _MOST_LISTED else ""
        raise InvalidInput(
            f"{path} has no prompt for {', '.join(map(plain, missing[:_MOST_LISTED]))}{more}; give one or several for "
            "each class of the data set"
        )
    return tuple((name, prompt) for name, prompts in found.items() for prompt in prompts)


def _lines(path: Path) -> Iterator[tuple[str, str, str]]:
    """Where it stands, class, and prompt."""
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise InvalidInput(f"{path} is larger than any file of prompts ({_MOST_BYTES} bytes); give another")
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            if next(reader, None) != _HEADER:
                raise InvalidInput(f"{path} does not begin with the line {','.join(_HEADER)}; add it")
            for row in reader:
                place = f"line {reader.line_num} of {path}"
                if row and len(row) != len(_HEADER):
                    raise InvalidInput(
                        f"{place} has {len(row)} fields instead of class and prompt; put a prompt that has commas in "
                        "double quotes"
                    )
                if row:
                    yield place, row[0], row[1]
    except OSError as error:
        raise InvalidInput(f"the prompts {path} cannot be read ({error.strerror}); give another --prompts") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise InvalidInput(f"the prompts {path} are no CSV in UTF-8 ({error}); give another --prompts") from error
