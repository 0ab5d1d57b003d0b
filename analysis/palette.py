"""How methods look: a colour, a point's shape and a line's dashes each, the same in every figure and on the page.

The colours of each list stay apart for the three kinds of colour blindness and stand out from their background by 3:1
(tests/analysis/test_figures.py computes both); shapes and dashes say the same again without colour.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

# In the same order: the page changes one list for the other.
LIGHT = ("#3958cd", "#d3765d", "#004b2c", "#740058", "#765a03", "#379ec2", "#511483", "#838081")
DARK = ("#4066db", "#c33d08", "#23a46b", "#d87bad", "#f6c84f", "#8ed4ff", "#845da8", "#e2dcdd")
LIGHT_BACKGROUND, DARK_BACKGROUND = "#ffffff", "#15181d"
# Grey is what no teacher had a part in, and a line that is no method.
GREY = len(LIGHT) - 1
DASHES = ((1, 0), (6, 3), (2, 2))
# Vega's name of a shape -> the same as an SVG path in a box from -1 to 1, for the page's legend.
SHAPES = {
    "circle": "M-.8 0A.8 .8 0 1 0 .8 0A.8 .8 0 1 0 -.8 0Z",
    "square": "M-.7-.7H.7V.7H-.7Z",
    "triangle-up": "M0-.9L.9 .7H-.9Z",
    "diamond": "M0-1L.8 0L0 1L-.8 0Z",
    "cross": "M-.3-.9H.3V-.3H.9V.3H.3V.9H-.3V.3H-.9V-.3H-.3Z",
    "triangle-down": "M0 .9L.9-.7H-.9Z",
    "triangle-right": "M.9 0L-.7 .9V-.9Z",
    "triangle-left": "M-.9 0L.7 .9V-.9Z",
}


@dataclass(frozen=True, slots=True)
class Look:
    """Of one method; `colour` is a place in the lists of colours."""

    label: str
    colour: int
    shape: str
    dash: tuple[int, int]


def looks_of(labels: Iterable[str], without_teacher: Collection[str] = ()) -> list[Look]:
    """A look for every label, in their order: a method without a teacher is grey, no two others are alike."""
    looks, shapes, grey, coloured = [], list(SHAPES), 0, 0
    for place, label in enumerate(labels):
        if label in without_teacher:
            colour, dash, grey = GREY, DASHES[(grey + 1) % len(DASHES)], grey + 1
        else:
            colour, dash, coloured = coloured % GREY, DASHES[coloured // GREY % len(DASHES)], coloured + 1
        looks.append(Look(label, colour, shapes[place % len(shapes)], dash))
    return looks
