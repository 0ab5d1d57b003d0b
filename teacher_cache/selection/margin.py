"""Margin: the images of which a student cannot say which of two classes they are of."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from teacher_cache.selection.student_rule import StudentRule, difference


class Margin(StudentRule):
    """The smallest difference of the two largest probabilities, of one student or of the mean of several.

    See `StudentRule` for its settings.
    """

    name: ClassVar[str] = "margin"
    source: ClassVar[str] = "Scheffer et al. 2001, Active Hidden Markov Models, section 4"

    def scores(self, said: Tensor) -> Tensor:
        """See `StudentRule.scores`."""
        return -difference(said.mean(dim=0))
