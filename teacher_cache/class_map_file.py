"""A class map as the user gives it: a CSV file with the header `teacher,data`, or the names of both sides.

Each column holds names or indices, and which it is must follow from what is in it: where a class is named by another's
index, the header says it, as `teacher:name` or `data:index`. Everything is refused by the number of its line.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ground.errors import InvalidInput, UnknownName
from ground.terminal import plain
from models.class_names import Names
from teacher_cache.class_map import ClassMap

# What the user gives in place of a file, to match classes by their names.
BY_NAME = "names"
_NAME, _INDEX = "name", "index"
_SIDES = ("teacher", "data")
_HEADER = ",".join(_SIDES)
_MOST_BYTES = 16 << 20
_MOST_LISTED = 5
_LONGEST_SHOWN = 80


@dataclass(frozen=True)
class Classes:
    """The classes on one side of a map.

    Args:
        whose: "teacher" or "data".
        count: how many.
        names: all names of each; None where they are unknown.
    """

    whose: str
    count: int
    names: Names | None

    @property
    def title(self) -> str:
        """Whose classes they are, for messages."""
        return "the teacher" if self.whose == "teacher" else "the data set"

    def called(self, name: str) -> list[int]:
        """Every class that goes by a name."""
        return self._places.get(name, [])

    @cached_property
    def _places(self) -> dict[str, list[int]]:
        places: dict[str, list[int]] = {}
        for place, names in enumerate(self.names or ()):
            for name in dict.fromkeys(names):
                places.setdefault(name, []).append(place)
        return places

    def shown(self, place: int) -> str:
        """A class, for messages."""
        return str(place) if self.names is None else f"{plain(self.names[place][0])} ({place})"


@dataclass(frozen=True, slots=True)
class _Row:
    line: int
    teacher: str
    data: str


def read_class_map(path: Path, teacher: Classes, data: Classes) -> tuple[ClassMap, bool]:
    """The map in a file, and whether it calls the teacher's classes by name.

    Raises:
        InvalidInput: it is no such file, names what is not there, maps a class of the teacher to two of the data, or
            leaves out a class of the data.
    """
    rows, kinds = _rows(path)
    theirs, by_name = _column(path, [(row.line, row.teacher) for row in rows], teacher, kinds[0])
    ours, _ = _column(path, [(row.line, row.data) for row in rows], data, kinds[1])
    meant: dict[int, tuple[int, int]] = {}
    for row, place, target in zip(rows, theirs, ours, strict=True):
        earlier, line = meant.setdefault(place, (target, row.line))
        if earlier != target:
            raise InvalidInput(
                f"{path}, line {row.line}: the teacher's class {teacher.shown(place)} means {data.shown(target)}, and "
                f"{data.shown(earlier)} by line {line}; leave one of them out"
            )
    pairs = ((place, target) for place, (target, _) in meant.items())
    return _grouped(f"{path} leaves out", pairs, data), by_name


def match_names(teacher: Classes, data: Classes) -> ClassMap:
    """The map that gives each class of the data those of the teacher that have its name.

    Raises:
        InvalidInput: the teacher's names are unknown, or a class of the data has the name of none or of several.
    """
    if teacher.names is None:
        raise InvalidInput(
            "nothing says what the teacher's classes are called, so they cannot be matched by name; give --class-map "
            f"FILE, a CSV with the header {_HEADER} and indices 0 to {teacher.count - 1} under teacher"
        )
    assert data.names is not None
    pairs: list[tuple[int, int]] = []
    for target, (name, *_) in enumerate(data.names):
        found = teacher.called(name)
        if len(found) > 1:
            places = " and ".join(map(str, found))
            raise InvalidInput(
                f"{len(found)} of the teacher's classes are called {plain(name)} ({places}); say which is meant by its "
                "index, with --class-map FILE"
            )
        pairs += [(place, target) for place in found]
    left_out = "of the teacher's classes, none is called as this of the data set:"
    return _grouped(left_out, pairs, data)


def _grouped(complaint: str, pairs: Iterable[tuple[int, int]], data: Classes) -> ClassMap:
    groups: list[list[int]] = [[] for _ in range(data.count)]
    for place, target in pairs:
        groups[target].append(place)
    gaps = [data.shown(target) for target, group in enumerate(groups) if not group]
    if gaps:
        more = f" and {len(gaps) - _MOST_LISTED} more" if len(gaps) > _MOST_LISTED else ""
        raise InvalidInput(
            f"{complaint} {', '.join(gaps[:_MOST_LISTED])}{more}; every class of the data set needs one of the "
            "teacher's in --class-map FILE, or take it out of the data set"
        )
    return tuple(tuple(sorted(group)) for group in groups)


def _rows(path: Path) -> tuple[list[_Row], tuple[str | None, str | None]]:
    """The rows of a file, and whether its header says that a column holds names, or indices."""
    lines = csv.reader(io.StringIO(_text(path), newline=""), strict=True)
    rows: list[_Row] = []
    try:
        header = next((line for line in lines if any(line)), None)
        if header is None:
            raise InvalidInput(f"{path} is empty; give a CSV with the header {_HEADER}, and a line for each class")
        kinds = _kinds(path, lines.line_num, header)
        for cells in lines:
            if not any(cell.strip() for cell in cells):
                continue
            if len(cells) != len(_SIDES):
                raise InvalidInput(
                    f"{path}, line {lines.line_num}: {len(cells)} values are there, and {_HEADER} are two; put a value "
                    "with a comma in double quotes"
                )
            rows.append(_Row(lines.line_num, *cells))
    except csv.Error as error:
        raise InvalidInput(f"{path}, line {lines.line_num}: it is no CSV ({error}); correct it") from error
    return rows, kinds


def _text(path: Path) -> str:
    try:
        # Asked first: opening a pipe would wait for its other end.
        if not path.is_file():
            what = "it is no ordinary file" if path.exists() else "there is no such file"
            raise InvalidInput(f"the class map {path} cannot be read ({what}); give a CSV with the header {_HEADER}")
        if path.stat().st_size > _MOST_BYTES:
            raise InvalidInput(f"{path} is larger than {_MOST_BYTES >> 20} MiB; give a CSV with a line for each class")
        # Spreadsheets begin UTF-8 with a mark.
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise InvalidInput(f"the class map {path} cannot be read ({error.strerror}); check its rights") from error
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{path} is not UTF-8; save it as CSV in UTF-8") from error


def _kinds(path: Path, line: int, header: Sequence[str]) -> tuple[str | None, str | None]:
    found = [cell.strip().partition(":") for cell in header]
    if tuple(side for side, _, _ in found) != _SIDES or any(
        kind not in (_NAME, _INDEX) for _, colon, kind in found if colon
    ):
        raise InvalidInput(
            f"{path}, line {line}: the header is {_shown(','.join(header))}, and has to be {_HEADER} (or, where a "
            f"number could be a name, teacher:{_INDEX},data:{_NAME} and the like)"
        )
    (_, _, theirs), (_, _, ours) = found
    return theirs or None, ours or None


def _column(path: Path, cells: Sequence[tuple[int, str]], classes: Classes, kind: str | None) -> tuple[list[int], bool]:
    """The classes that a column means, and whether by name."""
    if kind is None:
        kind = _kind_of(path, cells, classes)
    find = _by_index if kind == _INDEX else _by_name
    places = []
    for line, cell in cells:
        try:
            places.append(find(cell, classes))
        except InvalidInput as error:
            raise InvalidInput(f"{path}, line {line}: {error}") from error
    return places, kind == _NAME


def _kind_of(path: Path, cells: Sequence[tuple[int, str]], classes: Classes) -> str:
    """Whether a column holds names or indices; raises `InvalidInput` where it could be either and they differ."""
    numbers = sum(_is_number(cell) for _, cell in cells)
    if classes.names is None or numbers < len(cells):
        # The likelier one: its complaint is about the cell that is wrong.
        return _INDEX if classes.names is None or 2 * numbers > len(cells) else _NAME
    for line, cell in cells:
        named = classes.called(cell.strip())
        if not named:
            return _INDEX
        if named != [int(cell)] and all(classes.called(other.strip()) for _, other in cells):
            raise InvalidInput(
                f"{path}, line {line}: {_shown(cell)} under {classes.whose} is the name of a class, "
                f"{classes.shown(named[0])}, and the index of another; say which is meant in the header, as "
                f"{classes.whose}:{_NAME} or {classes.whose}:{_INDEX}"
            )
    return _INDEX


def _shown(text: str) -> str:
    text = plain(text.strip())
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}..."


def _is_number(cell: str) -> bool:
    return cell.strip().isascii() and cell.strip().isdecimal() and len(cell.strip()) < 10


def _by_index(cell: str, classes: Classes) -> int:
    if not _is_number(cell):
        why = "" if classes.names is not None else f" (nothing says what the classes of {classes.title} are called)"
        raise InvalidInput(f"{_shown(cell)!r} under {classes.whose} is no index{why}; give 0 to {classes.count - 1}")
    if int(cell) >= classes.count:
        raise InvalidInput(f"{classes.title} has no class {int(cell)}; its indices are 0 to {classes.count - 1}")
    return int(cell)


def _by_name(cell: str, classes: Classes) -> int:
    if classes.names is None:
        raise InvalidInput(f"nothing says what the classes of {classes.title} are called; give their indices")
    name = cell if classes.called(cell) else cell.strip()
    found = classes.called(name)
    if not found:
        raise UnknownName(
            f"class of {classes.title}", _shown(name), {each for names in classes.names for each in names}
        )
    if len(found) > 1:
        places = " and ".join(map(str, found))
        raise InvalidInput(
            f"{len(found)} classes of {classes.title} are called {_shown(name)} ({places}); give indices, in a column "
            f"headed {classes.whose}:{_INDEX}"
        )
    return found[0]
