"""The report as one HTML file that asks nothing of the network.

What comes from run files is text: it is escaped in the markup, and spelled out where it cannot be printed; in the
figures' JSON no character is left that could end a script. The page's policy lets only our two scripts run, by their
digests, and nothing be fetched.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files

from jinja2 import Environment, StrictUndefined, Template
from markupsafe import Markup

from analysis.answer import Statement, percent
from analysis.figures import Pair, browser_code
from analysis.palette import DARK, LIGHT, SHAPES, Look
from analysis.views import ShownFigure, View
from ground.terminal import plain_lines

_FOLDER = files("analysis") / "report_page"
_FORMATS = {"csv": "CSV", "md": "Markdown", "tex": "LaTeX", "svg": "SVG", "png": "PNG"}


@dataclass(frozen=True, slots=True)
class Terms:
    """Names and their values, under a heading."""

    title: str
    terms: list[tuple[str, str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A part of the page.

    Args:
        name: its anchor.
        warning: its paragraphs are what the reader must not miss.
        folded: tables that are shown on request, under `fold_title`.
    """

    name: str
    title: str
    paragraphs: Sequence[str] = ()
    warning: bool = False
    statements: Sequence[Statement] = ()
    figures: Sequence[ShownFigure] = ()
    lists: Sequence[Terms] = ()
    views: Sequence[View] = ()
    folded: Sequence[View] = ()
    fold_title: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """What is on it.

    Args:
        progress: how much of the grid is finished.
        facts: the grid in a few terms.
    """

    name: str
    progress: str
    facts: list[tuple[str, str]]
    looks: list[Look]
    pairs: list[Pair]
    sections: list[Section] = field(default_factory=list)


def render(page: Page) -> str:
    """The whole file."""
    charts = {shown.figure.name: shown.figure.page_chart() for section in page.sections for shown in section.figures}
    return _template().render(page=page, charts=charts)


@cache
def _template() -> Template:
    """What is the same on all pages; read, compiled and hashed once."""
    script, library = _script(_read("page.js")), _script(browser_code())
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, finalize=_printable)
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    environment.filters |= {"percent": percent, "number": lambda value: f"{value:.12g}"}
    environment.globals |= {"shapes": SHAPES, "dash": _swatch_dash, "formats": _FORMATS}
    environment.globals |= {"style": Markup(_style()), "script": script, "library": library}
    environment.globals["script_hashes"] = Markup(" ".join(map(_hash_source, (library, script))))
    return environment.from_string(_read("template.html.jinja"))


def _printable(value: object) -> object:
    """A text of others as every reader sees it: no mark turns what follows around, and all of it can be encoded."""
    return plain_lines(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _read(name: str) -> str:
    return (_FOLDER / name).read_text(encoding="utf-8")


def _script(code: str) -> Markup:
    """Code as the content of a script element, which nothing in it may end."""
    code = code.replace("\r\n", "\n")
    assert "</script" not in code.lower(), "our scripts hold no end tag"
    assert "<!--" not in code, "our scripts hold no comment of HTML"
    return Markup(code)


def _hash_source(code: str) -> str:
    """How a Content-Security-Policy names an inline script."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()}'"


def _style() -> str:
    pairs = enumerate(zip(LIGHT, DARK, strict=True))
    colours = "\n".join(f"  --colour-{place}: light-dark({light}, {dark});" for place, (light, dark) in pairs)
    return f":root {{\n{colours}\n}}\n{_read('style.css')}"


def _swatch_dash(look: Look) -> str:
    """The dashes of a line in the legend's units; a solid line has none."""
    on, off = look.dash
    return f"{on / 8:g} {off / 8:g}" if off else "none"
