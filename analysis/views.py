"""Tables as the page shows them: text in cells, what a column is sorted by, and what the filters look at."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from analysis.figures import Figure, Pair
from analysis.table import Table

_NUMBER = re.compile(r"[+-]?\d+(\.\d+)?")
_LONG = 48
_NAMED_PAIR = ("teacher", "student", "dataset")


@dataclass(frozen=True, slots=True)
class Cell:
    """One value.

    Args:
        text: as it is shown.
        key: a number to sort by, in place of the text.
        kind: "" or how it is set: code, best, empty.
    """

    text: str
    key: float | None = None
    kind: str = ""

    @property
    def long(self) -> bool:
        """Whether it is broken into lines."""
        return len(self.text) > _LONG and self.kind != "code"


@dataclass(frozen=True, slots=True)
class Row:
    """Cells, and the method and the pair that the filters know it by; None where they do not matter."""

    cells: list[Cell]
    label: str | None = None
    pair: str | None = None


@dataclass(frozen=True, slots=True)
class Column:
    """A heading; numbers stand to the right."""

    title: str
    numeric: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """A table of the page.

    Args:
        name: its id on the page.
        note: what a reader has to know beside it.
        exported: it lies in report/tables too, under its name.
        searchable: long enough for a field that finds rows.
    """

    name: str
    title: str
    columns: list[Column]
    rows: list[Row]
    note: str = ""
    exported: bool = False
    searchable: bool = False


@dataclass(frozen=True, slots=True)
class ShownFigure:
    """A figure and the table below it."""

    figure: Figure
    numbers: View


@dataclass(frozen=True, slots=True)
class Field:
    """A column of a frame: its heading, and how a value is written.

    Args:
        numeric: sorted by the value itself.
        kind: of its cells.
    """

    title: str
    write: Callable[[Any], str] = str
    numeric: bool = False
    kind: str = ""


def hundredths(accuracy: float) -> str:
    """An accuracy in percent."""
    return f"{100 * accuracy:.2f}"


def signed(difference: float) -> str:
    """A difference of accuracies in points."""
    return f"{100 * difference:+.2f}"


def grouped(count: int) -> str:
    """A count with its thousands apart."""
    return f"{count:,}"


def short(value: float) -> str:
    """A setting as people write it."""
    return f"{value:g}"


METHOD = Field("method")
N = Field("n", grouped, numeric=True)
SAMPLE = Field("sample seed", numeric=True)
SEED = Field("seed", numeric=True)
NAMED = {"label": METHOD, "teacher": Field("teacher"), "student": Field("student"), "dataset": Field("data set")}


def view_of_table(table: Table, pairs: Sequence[Pair], *, label: str | None = "method") -> View:
    """One of the exported tables.

    Args:
        pairs: of the report.
        label: the column that holds the method a row is about, if any.
    """
    headings = [str(name) for name in table.frame.columns]
    columns = [Column(title, numeric) for title, numeric in zip(headings, table.numeric, strict=True)]
    rows = []
    for texts in table.rows:
        named = dict(zip(headings, texts, strict=True))
        cells = [
            Cell(text, _leading(text) if column.numeric else None) for text, column in zip(texts, columns, strict=True)
        ]
        rows.append(Row(cells, None if label is None else named.get(label), _pair_of(named, pairs)))
    return View(name=table.name, title=table.title, columns=columns, rows=rows, note=table.note, exported=True)


def view_of_frame(
    name: str,
    title: str,
    frame: pd.DataFrame,
    fields: dict[str, Field],
    *,
    label: str | None = "label",
    pairs: Sequence[Pair] = (),
    note: str = "",
    searchable: bool = False,
) -> View:
    """A table of a frame's values; NaN and None are empty cells.

    Args:
        fields: column -> how it is shown, in the order of the page.
    """
    columns = [Column(field.title, field.numeric) for field in fields.values()]
    rows = []
    for values in frame.to_dict("records"):
        cells = [_cell(values[column], field) for column, field in fields.items()]
        rows.append(Row(cells, None if label is None else values.get(label), _pair_of(values, pairs)))
    return View(name=name, title=title, columns=columns, rows=rows, note=note, searchable=searchable)


def shown(figure: Figure, fields: dict[str, Field], label: str | None = "label") -> ShownFigure:
    """A figure with its numbers."""
    numbers = view_of_frame(f"numbers-{figure.name}", f"{figure.title}: the numbers", figure.frame, fields, label=label)
    return ShownFigure(figure, numbers)


def _cell(value: Any, field: Field) -> Cell:
    if value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value)):
        return Cell("", None)
    return Cell(field.write(value), float(value) if field.numeric else None, field.kind)


def _leading(text: str) -> float | None:
    found = _NUMBER.match(text)
    return float(found[0]) if found else None


def _pair_of(named: dict[str, Any], pairs: Sequence[Pair]) -> str | None:
    """The name of the one pair a row is about, as far as it says; a table of one data set does not name it."""
    if "teacher" not in named:
        return None
    found = [
        pair.name
        for pair in pairs
        if all(named.get(part, getattr(pair, part)) == getattr(pair, part) for part in _NAMED_PAIR)
    ]
    return found[0] if len(found) == 1 else None
