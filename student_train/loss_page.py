"""The entries of docs/losses.md, one for each loss, from its class: `python -m student_train.loss_page PAGE`.

They stand between two marks; the rest of the page is written by hand.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from ground.errors import InvalidInput
from student_train.catalogue import describe_loss, explained_kinds, shown_settings
from student_train.docstrings import arguments, sections, summary_and_prose
from student_train.losses import FAMILIES, DistillationLoss

BEGIN = "<!-- From here on written by `make docs`, from the docstrings and declarations in student_train/losses/. -->"
END = "<!-- Up to here. -->"
_WIDTH = 120
_ITEM, _TIE = re.compile(r" (?=(?:[-+]|\d+\.)(?: |$))"), "\0"


def with_entries(page: str) -> str:
    """The page with the entries between its marks written anew.

    Raises:
        InvalidInput: the page has no such marks.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise InvalidInput(f"the page has no place for the entries; put these two lines into it:\n{BEGIN}\n{END}")
    return f"{before}{begin}\n\n{entries()}\n{end}{after}"


def entries() -> str:
    """Every loss, by family."""
    return "\n".join(
        f"### {family}\n\n" + "".join(_entry(loss) for loss in losses) for family, losses in FAMILIES.items()
    )


def _entry(loss: type[DistillationLoss]) -> str:
    known = describe_loss(loss.name)
    formula, prose = summary_and_prose(loss)
    lines = [f"- **`{loss.name}`** `{formula.rstrip('.')}`."]
    lines += _filled(" ".join([*([_plain(prose)] if prose else []), *_facts(loss, known)]), "  ")
    for names, text in arguments(loss).items():
        settings = ", ".join(f"`{shown_settings({name: known['settings'][name]})}`" for name in names)
        lines += _filled(f"{settings}: {_plain(text)}", "    ", first="  - ")
    return "\n".join(lines) + "\n"


def _facts(loss: type[DistillationLoss], known: dict[str, Any]) -> Iterator[str]:
    said = {title: _plain(text) for title, text in sections(loss).items()}
    yield f"*Needs* {known['needs'] or 'labels alone'}{'' if known['comparable'] else '; single samples only'}."
    if known["kinds"]:
        where = "" if loss().needs.answers else "where it reads logits, "
        yield f"*Answers* {where}{_plain(explained_kinds(known['kinds']))}."
    recipe = "{weight:g} (ce {ce:g}, kd {kd:g})".format(**known["recipe"])
    yield f"*Recipe* {recipe}: {said['Recipe']}" if "Recipe" in said else f"*Recipe* {recipe}."
    yield f"*Source* {known['source']}."
    for title in ("Note", "Checked"):
        if title in said:
            yield f"*{title}* {said[title]}"


def _plain(text: str) -> str:
    """On one line, with nothing that markdown would take for emphasis."""
    return " ".join(text.split()).replace("*", r"\*")


def _filled(text: str, indent: str, first: str | None = None) -> list[str]:
    """Lines, none of which begins with what would make it an item of a list: that stays with the word before it."""
    lines = textwrap.wrap(
        _ITEM.sub(_TIE, text),
        _WIDTH,
        initial_indent=indent if first is None else first,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return [line.replace(_TIE, " ") for line in lines]


@click.command()
@click.argument("page", type=click.Path(path_type=Path, exists=True, dir_okay=False))
def main(page: Path) -> None:
    """Write the entries of this PAGE anew."""
    page.write_text(with_entries(page.read_text()))


if __name__ == "__main__":
    main()
