"""By which rule a grid's stores are bought, and with which students a rule looks.

A rule is as for `ckd-cache build --select`. Where it asks for students, {LABEL} stands for those of the grid's method
of that label: they are trained on the rows that the same rule has bought so far, at the n before, one a seed. So the
first n, which nothing was bought before, is at random.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from experiments.settings_file import Entry
from ground.errors import CKDError, InvalidInput
from storage.manifest import FILE_NAME, Manifest
from storage.run_record import is_finished
from teacher_cache.selection import SelectorSpec
from teacher_cache.selection.random_order import Random
from teacher_cache.selection.rules import find_selector

RANDOM = Random.name
_STUDENTS = re.compile(r"\{([^{}]+)\}")


def read_rules(entry: Entry) -> tuple[str, ...]:
    """The texts of one or several, checked as far as that needs no student."""
    items = entry.items() if entry.is_list else [entry]
    found = tuple(_read(item) for item in items)
    if len(set(found)) < len(found):
        entry.refuse("a rule is named twice; give each once")
    return found


def _read(entry: Entry) -> str:
    text = entry.text()
    try:
        if students_of(text):
            find_selector(text.partition(":")[0])
            return text
        return SelectorSpec.read(text).text
    except CKDError as error:
        entry.refuse(error)


def students_of(text: str) -> list[str]:
    """Labels of the methods whose students a rule looks at."""
    return _STUDENTS.findall(text)


def labelled_by(label: str, text: str, others: Iterable[str]) -> str:
    """What tables call a method on rows of a rule: its own label where they are the seed's.

    Args:
        others: all rules of the grid; by its name alone a rule is called where it is the only one of that name.
    """
    if text == RANDOM:
        return label
    name = text.partition(":")[0]
    is_only = sum(other.partition(":")[0] == name for other in others) == 1
    return f"{label} by {name if is_only else text}"


def with_students(text: str, folders: Mapping[str, Sequence[Path]]) -> SelectorSpec:
    """A rule with the folders of its students in their places.

    Args:
        folders: label -> runs at the n before.

    Raises:
        InvalidInput: there are none, or one is not finished.
    """
    for label in students_of(text):
        missing = [folder for folder in folders.get(label, ()) if not is_finished(folder)]
        if missing or not folders.get(label):
            what = f"{missing[0]} is not finished" if missing else "the grid trains none"
            raise InvalidInput(
                f"{text} looks at students of {label}, and {what}; mend that, and run the grid again with --retry"
            )
    return SelectorSpec.read(_STUDENTS.sub(lambda found: "+".join(map(str, folders[found[1]])), text))


def ends_of(folder: Path, sizes: Sequence[int]) -> list[int]:
    """Where the rounds of a grid's store end: those that it has, and then one at each larger n of the grid."""
    there = Manifest.load(folder) if (folder / FILE_NAME).exists() else None
    if there is None:
        return [*sizes]
    first = there.rounds[0].first if there.rounds else there.n
    bought = [first, *(made.end for made in there.rounds)]
    return [end for end in bought if end] + [n for n in sizes if n > there.n]


def ends_behind(ends: Sequence[int], n: int) -> list[int]:
    """Of those, the ones that decide which the first n rows are."""
    return [*(end for end in ends if end < n), next((end for end in ends if end >= n), n)]
