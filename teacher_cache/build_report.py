"""What a build, or an extension, did."""

from __future__ import annotations

from dataclasses import dataclass

from ground.places import Place


@dataclass(slots=True)
class BuildReport:
    """Counted in teacher calls; rows are (image, all its views), the first n of the store.

    Args:
        new_calls: answers that were paid for now.
        refused_calls: of these, those in which the teacher said that it will not answer.
        returned_calls: attempts that gave no answer and were not billed.
        adopted_calls, lost_calls: of builds that were interrupted, what was settled now.
        unanswered_calls: attempts that gave no answer and count as spent, since they may be billed.
        canary_calls: answers to images that every build asks a teacher that is elsewhere about.
        rest: further images that the store keeps, which nothing was asked about.
        cost_micros: of all these attempts of this build, in millionths of the price's currency.
    """

    store: Place
    n: int
    new_calls: int = 0
    reused_calls: int = 0
    adopted_calls: int = 0
    lost_calls: int = 0
    rows_valid: int = 0
    refused_calls: int = 0
    unanswered_calls: int = 0
    returned_calls: int = 0
    canary_calls: int = 0
    cost_micros: int = 0
    rest: int = 0
