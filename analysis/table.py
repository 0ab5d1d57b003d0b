"""A table to be shown, and how it writes itself: CSV, Markdown, and LaTeX with the rules of booktabs.

Cells come from files that others wrote, so whatever a format would take for its own is escaped.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import pandas as pd

from ground.cells import neutral

_LEADING = re.compile(r"[+-]?\d")
_MARKDOWN = re.compile(r"[\\`*\[\]<>|~&#]|(?<![^\W_])_|_(?![^\W_])")
_LATEX: Mapping[str, str] = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "±": r"$\pm$",
    # After the end of a row these would be read as its options.
    **{character: f"{{{character}}}" for character in "[]*"},
}


@dataclass(frozen=True, eq=False)
class Table:
    """A table to be shown.

    Args:
        name: of its files.
        title: what it shows.
        frame: text in every cell.
        note: what a reader has to know beside it.
    """

    name: str
    title: str
    frame: pd.DataFrame
    note: str

    @property
    def rows(self) -> list[list[str]]:
        """The cells, a list a row."""
        return [list(map(str, row)) for row in self.frame.itertuples(index=False, name=None)]

    @property
    def numeric(self) -> list[bool]:
        """For every column whether all that it shows begins with a number."""
        columns = [[cell for cell in self.frame[name] if cell] for name in self.frame.columns]
        return [bool(cells) and all(_LEADING.match(cell) for cell in cells) for cells in columns]

    def to_csv(self) -> str:
        """The cells under their headings; none begins a formula."""
        frame = self.frame.map(neutral).rename(columns=neutral)
        return str(frame.to_csv(index=False, lineterminator="\n"))

    def to_markdown(self) -> str:
        """Title, table and note; numbers to the right."""
        rules = ["---:" if numeric else ":---" for numeric in self.numeric]
        head = [_markdown(str(name)) for name in self.frame.columns]
        body = [[_markdown(cell) for cell in row] for row in self.rows]
        lines = [f"| {' | '.join(row)} |" for row in [head, rules, *body]]
        parts = [f"**{_markdown(self.title)}**", "\n".join(lines), _markdown(self.note)]
        return "\n\n".join(part for part in parts if part) + "\n"

    def to_latex(self) -> str:
        """A table environment with the rules of the booktabs package; numbers to the right."""
        body = [_latex_row(row) for row in self.rows]
        lines = [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{_latex(' '.join(part for part in (self.title + '.', self.note) if part))}}}",
            rf"\label{{tab:{re.sub('[^A-Za-z0-9]+', '-', self.name)}}}",
            rf"\begin{{tabular}}{{{''.join('r' if numeric else 'l' for numeric in self.numeric)}}}",
            r"\toprule",
            _latex_row(map(str, self.frame.columns)),
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
        ]
        return "\n".join(lines) + "\n"


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _markdown(text: str) -> str:
    return _MARKDOWN.sub(lambda found: f"\\{found[0]}", _one_line(text))


def _latex(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in _one_line(text))


def _latex_row(cells: Iterable[str]) -> str:
    return f"{' & '.join(map(_latex, cells))} \\\\"
