"""Committee: the images that several students do not agree on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from teacher_cache.selection.student_rule import StudentRule, difference, entropy


class Committee(StudentRule):
    """The highest disagreement of several students, which differ in seed, in network or in loss.

    By `disagreement` it is the mean over students of KL(p_s || mean p), which is the mutual information of class and
    student (BALD); by `entropy` and `margin` each student has one vote, and the shares of votes count as probabilities
    do in `uncertain` and `margin`.

    Args:
        run: FOLDER+FOLDER, of two runs at least.
        by: disagreement, entropy or margin.
        subset: see `StudentRule`.
    """

    name: ClassVar[str] = "committee"
    source: ClassVar[str] = (
        "McCallum and Nigam 1998, section 3 (KL to the mean; BALD: Houlsby et al. 2011, arXiv:1112.5745, eq. 2); vote "
        "entropy: Dagan and Engelson 1995"
    )

    def __init__(self, run: str, by: str = "disagreement", subset: int | None = None) -> None:
        super().__init__(run, subset)
        if len(self.folders) < 2:
            raise ValueError("a committee has two runs at least; write run=FOLDER+FOLDER, or choose by uncertain")
        if by not in _MEASURES:
            raise ValueError(f"by must be one of {', '.join(_MEASURES)}, got {by}")
        self.by = by

    def scores(self, said: Tensor) -> Tensor:
        """See `StudentRule.scores`."""
        return _MEASURES[self.by](said)


def _disagreement(said: Tensor) -> Tensor:
    return entropy(said.mean(dim=0)) - entropy(said).mean(dim=0)


def _votes(said: Tensor) -> Tensor:
    """Shares of the students that think a class the likeliest, largest first: (B, K).

    In that order equal votes make equal sums, to the last bit, whichever classes they are for.
    """
    return F.one_hot(said.argmax(dim=2), said.shape[2]).double().mean(dim=0).sort(dim=1, descending=True).values


_MEASURES: Mapping[str, Callable[[Tensor], Tensor]] = {
    "disagreement": _disagreement,
    "entropy": lambda said: entropy(_votes(said)),
    "margin": lambda said: -difference(_votes(said)),
}
