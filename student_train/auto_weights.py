"""Weights that are written `auto`: which values validation chooses among, once somebody trains with each of them.

A training has one weight for each loss, so it refuses `auto`; a grid trains every candidate (`experiments.weights`).
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Sequence

from ground.errors import InvalidInput
from ground.spec import spelled_value

# Of the usual weight; that comes first, so that it is the one among equals.
FACTORS = (1.0, 0.25, 4.0, 16.0)
# Of losses, alone or of the rest; and of methods, which weigh their labels too.
LOSS_WEIGHTS: tuple[str, ...] = ("weight",)
METHOD_WEIGHTS = ("weight", "labels")
_AUTO = re.compile(r"(?<=[:,])(\w+)=auto(?=,|$)")
# Digits that tell candidates apart, without what binary fractions add.
_DIGITS = 12


def refuse_auto(text: str, names: Sequence[str]) -> None:
    """Raise `InvalidInput` for a text that leaves one of the weights to validation."""
    left_open = [name for name in _AUTO.findall(text) if name in names]
    if left_open:
        raise InvalidInput(
            f"{text!a} has {left_open[0]}=auto, which validation chooses by training with each candidate, as a grid of "
            "ckd-pipeline run does (docs/pipeline.md); write it in one, or give a number"
        )


def weighed(text: str, names: Sequence[str], usual: Callable[[str, str], float]) -> list[str]:
    """A text with every combination of candidates in the place of its weights that are `auto`; itself where none is.

    Args:
        names: of weights that may be `auto`.
        usual: the weight of that name where a text does not give it; the text has 1 in the place of each `auto`.
    """
    left_open = list(dict.fromkeys(name for name in _AUTO.findall(text) if name in names))
    weights = {name: usual(_filled(text, dict.fromkeys(left_open, "1")), name) for name in left_open}
    candidates = [[(name, _written(factor * weights[name])) for factor in FACTORS] for name in left_open]
    return [_filled(text, dict(chosen)) for chosen in itertools.product(*candidates)]


def _filled(text: str, values: dict[str, str]) -> str:
    return _AUTO.sub(lambda found: f"{found[1]}={values.get(found[1], 'auto')}", text)


def _written(weight: float) -> str:
    return spelled_value(float(f"{weight:.{_DIGITS}g}"))
