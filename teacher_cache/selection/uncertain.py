"""Uncertain: the images whose class a student knows least."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from teacher_cache.selection.student_rule import StudentRule, entropy


class Uncertain(StudentRule):
    """The highest entropy of the class, -sum_k p_k log p_k, of one student or of the mean of several.

    See `StudentRule` for its settings.
    """

    name: ClassVar[str] = "uncertain"
    source: ClassVar[str] = "Settles 2009, Active Learning Literature Survey, section 3.1 (entropy: Shannon 1948)"

    def scores(self, said: Tensor) -> Tensor:
        """See `StudentRule.scores`."""
        return entropy(said.mean(dim=0))
