"""By which rule a grid's stores are bought, and with which students a rule looks.

A rule is as for `ckd-cache build --select`. Where it asks for students, {LABEL} stands for those of the grid's method
of that label: they are trained on the rows that the same rule has bought so far, at the n before, one a seed. So the
first n, which nothing was bought before, is at random.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from experiments.settings_file import Entry
from ground.errors import CKDError, InvalidInput
from storage.manifest import FILE_NAME, Manifest
from storage.run_record import is_finished
from teacher_cache.selection import SelectorSpec, spelled
from teacher_cache.selection.random_order import Random

RANDOM = Random.name
_STUDENTS = re.compile(r"\{([^{}]+)\}")


def read_rules(entry: Entry) -> tuple[str, ...]:
    """The texts of one or several, checked as far as that needs no student."""
    items = entry.items() if entry.is_list else [entry]
    found = tuple(_read(item) for item in items)
    if len(set(map(usual_text, found))) < len(found):
        entry.refuse("a rule is named twice; give each once")
    return found


def _read(entry: Entry) -> str:
    try:
        return checked(entry.text(), 2)
    except CKDError as error:
        entry.refuse(error)


def checked(text: str, students: int) -> str:
    """A rule as it is written, refused now for whatever it would be refused for once it is given its students.

    Args:
        students: how many stand for each label.

    Raises:
        UnknownName, InvalidInput: there is no such rule or setting, or a value is refused.
    """
    _with_any_students(text, students)
    return text.removesuffix(":")


def usual_text(text: str) -> str:
    """A rule as it is usually written (`teacher_cache.selection.spelled`), with the labels of its students."""
    # A label may hold any mark.
    labels = {f"{{{place}}}": f"{{{label}}}" for place, label in enumerate(students_of(text))}
    places = iter(labels)
    usual = spelled(_STUDENTS.sub(lambda _: next(places), text))
    return _STUDENTS.sub(lambda place: labels[place[0]], usual)


def _with_any_students(text: str, students: int) -> SelectorSpec:
    number = itertools.count()
    return SelectorSpec.read(_STUDENTS.sub(lambda _: "+".join(f"run{next(number)}" for _ in range(students)), text))


def plainest(rules: Sequence[str]) -> str:
    """Of several rules random, or else the first that buys images and makes none, as far as there is one."""
    plain = [text for text in rules if not _with_any_students(text, 2).make().makes]
    return RANDOM if RANDOM in rules else [*plain, *rules][0]


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


class StudentsMissing(InvalidInput):
    """A rule looks at students of which none was trained to its end."""


def with_students(text: str, folders: Mapping[str, Sequence[Path]]) -> SelectorSpec:
    """A rule with the folders of its students in their places: those of them that are finished.

    Args:
        folders: label -> runs at the n before.

    Raises:
        StudentsMissing: none is.
    """
    finished = {label: [folder for folder in folders[label] if is_finished(folder)] for label in students_of(text)}
    for label, found in finished.items():
        if not found:
            raise StudentsMissing(
                f"{text} looks at students of {label}, and none of {len(folders[label])} is finished; mend what they "
                "failed for, and run the grid again with --retry"
            )
    filled = _STUDENTS.sub(lambda label: "+".join(map(str, finished[label[1]])), text)
    try:
        return replace(SelectorSpec.read(filled), written=text)
    except InvalidInput as error:
        raise StudentsMissing(f"{text} cannot be given its students ({error})") from error


def require_plain(out: Path) -> None:
    """Raise `InvalidInput` for a folder whose path cannot stand in a rule."""
    if any(mark in str(out.absolute()) for mark in "+,=:{}") or not str(out.absolute()).isprintable():
        raise InvalidInput(
            f"rules name students below {str(out.absolute())!a}, whose path has to be printable, without any of "
            "+ , = : { } in it; give another --out"
        )


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
