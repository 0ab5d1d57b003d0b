"""From the log-probabilities of tokens to a distribution over classes.

A server gives, for each token that it answered with, the most probable ones in its place. Every one of these continues
what was answered so far, so by the chain rule its probability, times those of the tokens before it, is that of all
answers that begin so. Where such a beginning can only become one class, it is that class's; so tokens " 7" and "7" add
up, and where a tokeniser splits numbers the later tokens tell apart what the first leaves open. What names no class,
what several classes share and what is not listed is *missing mass*.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from teacher_cache.teachers.remote.class_prompt import Codes

# So that a logarithm is there, where a server rounds to nothing.
_LEAST = 1e-12


@dataclass(frozen=True, slots=True)
class Position:
    """One token of an answer.

    Args:
        token: that was answered.
        logprob: its natural logarithm of probability.
        alternatives: the most probable tokens here, which may include it -> the same.
    """

    token: str
    logprob: float
    alternatives: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Masses:
    """What is known of the classes.

    Args:
        seen: class -> probability.
        shared: what begins several classes, and was not told apart.
        least: the least probable token that is listed first; what is not listed is no more probable.
    """

    seen: Mapping[int, float]
    shared: float
    least: float

    @property
    def missing(self) -> float:
        """What is of no class that is known, from 0 to 1."""
        return max(0.0, 1.0 - sum(self.seen.values()))

    def distribution(self, num_classes: int) -> np.ndarray | None:
        """Over all classes, given that one of them is answered: (K,) float64, adds up to 1; None where none is known.

        The missing mass is spread evenly over the classes that were not seen, to each no more than the least probable
        token that is listed, since its own is not; and then all are divided by their sum.
        """
        total = sum(self.seen.values())
        if total <= 0:
            return None
        unseen = num_classes - len(self.seen)
        each = self.missing / unseen if unseen else 0.0
        # Of a class whose first token is listed, and shared, nothing is known but that it is less than that.
        each = each if self.shared > 0 else min(each, self.least)
        found = np.full(num_classes, max(each, _LEAST))
        for place, mass in self.seen.items():
            found[place] = max(mass, _LEAST)
        shares: np.ndarray = found / found.sum()
        return shares


def masses(positions: Sequence[Position], codes: Codes) -> Masses:
    """What an answer's tokens say of each class."""
    seen: dict[int, float] = {}
    shared, so_far, before = 0.0, 1.0, ""
    for position in positions:
        for token, logprob in position.alternatives.items():
            if token != position.token:
                shared += _count(seen, codes.beginning(before + token), so_far * math.exp(logprob), codes)
        so_far *= math.exp(position.logprob)
        before += position.token
        found = codes.beginning(before)
        if len(found) <= 1:
            _count(seen, found, so_far, codes)
            so_far = 0.0
            break
    # It ended before it said which.
    shared += so_far
    least = min(positions[0].alternatives.values(), default=0.0) if positions else 0.0
    return Masses(seen, shared, math.exp(least))


def _count(seen: dict[int, float], found: range, mass: float, codes: Codes) -> float:
    """Add a mass where one class alone can follow; returns what several share."""
    if len(found) == 1:
        place = codes.place_of(found.start)
        seen[place] = seen.get(place, 0.0) + mass
    return mass if len(found) > 1 else 0.0
