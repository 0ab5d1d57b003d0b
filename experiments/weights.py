"""A grid's methods whose weights validation chooses: one form of a method for each combination of candidates.

`weight=auto` stands for the usual weight times each of `student_train.auto_weights.FACTORS`, and so does `labels=auto`
of a comparing method. Each form is trained, as each candidate of `choose` is.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ground.errors import InvalidInput
from student_train.auto_weights import LOSS_WEIGHTS, METHOD_WEIGHTS, weighed
from student_train.method_spec import USUAL_WEIGHT, MethodSpec
from student_train.methods import default_of_method, parse_method
from student_train.rest.spec import default_of_rest

# What validation chooses among, at most.
MAX_CANDIDATES = 1000


@dataclass(frozen=True, slots=True)
class Form:
    """A method with one weight for each loss.

    Args:
        text: as a grid would write it.
        rest: what it learns from the rest, likewise.
        weights: those of the texts in which a weight was `auto`, as they became; none where none was.
    """

    text: str
    spec: MethodSpec
    rest: tuple[str, ...] = ()
    weights: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Forms:
    """A method as a grid writes it, with the texts that each part of it may become.

    Args:
        parts: of each loss, or of the method, what it may be.
        rest: of each loss of the rest.
        parse: makes the method of one text for each part.
    """

    parts: Sequence[Sequence[str]]
    rest: Sequence[Sequence[str]]
    parse: Callable[[Sequence[str]], MethodSpec]

    @classmethod
    def of_method(cls, text: str, rest: Sequence[str]) -> Forms:
        """Of a named method; raises `UnknownName`, `InvalidInput` where it has no such weight."""
        parts = [weighed(text, METHOD_WEIGHTS, default_of_method)]
        return cls(parts, _rests(rest), lambda texts: parse_method(*texts))

    @classmethod
    def of_losses(
        cls, texts: Sequence[str], rest: Sequence[str], parse: Callable[[Sequence[str]], MethodSpec]
    ) -> Forms:
        """Of a sum of losses."""
        return cls([weighed(text, LOSS_WEIGHTS, lambda *_: USUAL_WEIGHT) for text in texts], _rests(rest), parse)

    @property
    def count(self) -> int:
        """How many there are."""
        return math.prod(len(texts) for texts in (*self.parts, *self.rest))

    def made(self) -> tuple[Form, ...]:
        """All of them, that with the usual weights first; raises `UnknownName`, `InvalidInput` as `parse`, and where
        there are too many.
        """
        require_few(self.count)
        is_open = [len(texts) > 1 for texts in (*self.parts, *self.rest)]
        forms = []
        for texts in itertools.product(*self.parts, *self.rest):
            own, rest = texts[: len(self.parts)], texts[len(self.parts) :]
            weights = tuple(itertools.compress(texts, is_open))
            forms.append(Form("+".join(own), self.parse(own), rest, weights))
        return tuple(forms)


def require_few(candidates: int) -> None:
    """Raise `InvalidInput` for more trainings than validation is to choose among."""
    if candidates > MAX_CANDIDATES:
        raise InvalidInput(f"validation would choose among more than {MAX_CANDIDATES} trainings; name fewer values")


def _rests(texts: Sequence[str]) -> list[list[str]]:
    return [weighed(text, LOSS_WEIGHTS, default_of_rest) for text in texts]
