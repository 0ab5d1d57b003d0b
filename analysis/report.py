"""`ckd-pipeline report DIR`: what a grid's runs say, as one page, and its tables and figures as files.

Reads the grid's folder and writes `report.html` and `report/` in it, each file atomically; nothing else is changed. The
same runs give the same report. A partial grid is reported as far as it has come, and the page says what is missing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from analysis.content import Content
from analysis.figures import Figure, png_of
from analysis.page import Page, render
from analysis.sections import facts, sections_of
from analysis.table import Table
from ground.durable import write_bytes
from ground.errors import InvalidInput

PAGE = "report.html"
FOLDER = "report"
_TABLE_SUFFIXES, _FIGURE_SUFFIXES = (".csv", ".md", ".tex"), (".svg", ".png")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportSummary:
    """What was written.

    Args:
        page: the file to open.
        finished, planned: runs.
        missing: sentences, one for each thing that the report lacks.
        files: every file that was written, the page first.
    """

    page: Path
    finished: int
    planned: int
    missing: tuple[str, ...]
    files: tuple[Path, ...]


def write_report(folder: Path) -> ReportSummary:
    """Write the report of a grid into its folder.

    Raises:
        InvalidInput: there is no grid, no run is finished, or a file of it is damaged.
    """
    content = Content.read(folder)
    sections, missing = sections_of(content), content.missing()
    page = Page(
        name=content.plan.name,
        progress=f"{len(content.results):,} of {len(content.states):,} runs finished",
        facts=facts(content),
        looks=content.looks,
        pairs=content.pairs,
        sections=sections,
    )
    figures = [shown.figure for section in sections for shown in section.figures]
    written = _write(folder, render(page), [*content.tables, *content.published], figures)
    return ReportSummary(
        page=folder / PAGE,
        finished=len(content.results),
        planned=len(content.states),
        missing=tuple(missing),
        files=tuple(written),
    )


def _write(folder: Path, page: str, tables: Sequence[Table], figures: Sequence[Figure]) -> list[Path]:
    """Everything, the page last, so that what it points to is there; tables and figures that an earlier report left and
    this one has not are deleted.
    """
    contents: dict[Path, bytes] = {}
    for table in tables:
        path = folder / FOLDER / "tables" / table.name
        for suffix, text in zip(_TABLE_SUFFIXES, (table.to_csv(), table.to_markdown(), table.to_latex()), strict=True):
            contents[path.with_name(path.name + suffix)] = text.encode()
    for figure in figures:
        path, svg = folder / FOLDER / "figures" / figure.name, figure.svg()
        contents[path.with_name(path.name + ".svg")] = svg.encode()
        contents[path.with_name(path.name + ".png")] = png_of(svg)
    for place, suffixes in (("tables", _TABLE_SUFFIXES), ("figures", _FIGURE_SUFFIXES)):
        below = folder / FOLDER / place
        for part in (folder / FOLDER, below):
            if part.is_symlink():
                raise InvalidInput(f"{part} is a link to another place; remove it, then report again")
        below.mkdir(parents=True, exist_ok=True)
        for path in below.iterdir():
            if path.suffix in suffixes and path not in contents:
                path.unlink()
    for path, content in contents.items():
        write_bytes(path, content)
    write_bytes(folder / PAGE, page.encode())
    return [folder / PAGE, *contents]
