"""What more teacher calls are expected to bring, from what a pilot of few calls brought.

Accuracy is taken to grow by as much at each doubling of n: a line on log2(n), by least squares. How far one more
student may be from it is a prediction interval of Student's t, of the residuals' deviation. Three things are assumed,
and none of them follows from the pilot: that the line goes on beyond its largest n, while accuracies rise faster at
first and flatten at some point, so that `FARTHEST` times that n is as far as a decision looks; that students differ by
as much at every n; and that other images would give the same, since all of them share the pilot's one sample.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from scipy.special import stdtrit

# Times the pilot's largest n. Measured: at twice the pilot three of four lay in the interval, beyond that all above it
# (docs/results.md, "What calls are worth").
FARTHEST = 2
_CONFIDENCE = 0.95
# Accuracies of a million images differ by more.
_NO_DEVIATION = 1e-9


@dataclass(frozen=True, slots=True)
class Expected:
    """An accuracy, or a difference of accuracies, with the interval in which one more student is expected."""

    mean: float
    low: float
    high: float

    def within(self, least: float, most: float) -> Expected:
        """The same, as far as it can be."""
        return Expected(*(min(max(value, least), most) for value in (self.mean, self.low, self.high)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A line through values at several n, by least squares on log2(n).

    Args:
        slope: what a doubling of n brings.
        level: at the mean of the points.
        centre: mean of log2(n) over the points.
        width: sum of squared distances from it.
        points: how many there are.
        deviation: of the points from the line, for which two of them count as used up.
    """

    slope: float
    level: float
    centre: float
    width: float
    points: int
    deviation: float

    @classmethod
    def through(cls, sizes: Sequence[int], values: Sequence[float]) -> Line:
        """The line; raises `ValueError` for fewer than three points, or a single n."""
        if len(sizes) != len(values) or len(sizes) < 3 or len(set(sizes)) < 2:
            raise ValueError(f"a line with a deviation takes three points of two sizes, got {list(sizes)}")
        places, found = np.log2(np.asarray(sizes, dtype=np.float64)), np.asarray(values, dtype=np.float64)
        away = places - places.mean()
        width = float(away @ away)
        slope = float(away @ found) / width
        left = found - found.mean() - slope * away
        deviation = math.sqrt(float(left @ left) / (len(found) - 2))
        return cls(
            slope=slope,
            level=float(found.mean()),
            centre=float(places.mean()),
            width=width,
            points=len(found),
            deviation=deviation,
        )

    def expected(self, n: int) -> Expected:
        """Of one more student at this n."""
        away = math.log2(n) - self.centre
        return self._around(self.level + self.slope * away, 1 + 1 / self.points + away**2 / self.width)

    def brought(self, n: int, before: int) -> Expected:
        """What one more student at this n has beyond the line at another."""
        doublings = math.log2(n / before)
        return self._around(self.slope * doublings, 1 + doublings**2 / self.width)

    def _around(self, mean: float, variance: float) -> Expected:
        """
        Args:
            variance: in those of a single point.
        """
        quantile = float(stdtrit(self.points - 2, (1 + _CONFIDENCE) / 2))
        # Points that all lie on the line say nothing of how far another may be from it.
        reach = quantile * self.deviation * math.sqrt(variance) if self.deviation > _NO_DEVIATION else math.inf
        return Expected(mean, mean - reach, mean + reach)


class Verdict(StrEnum):
    """What follows for whoever is about to pay."""

    BUY = "buy"
    DO_NOT_BUY = "do not buy"
    CANNOT_TELL = "cannot tell yet"


@dataclass(frozen=True, slots=True)
class Decision:
    """A verdict; `n` is about how many to buy, None where that is not the verdict."""

    verdict: Verdict
    n: int | None = None


def candidates(pilot: int, n: int) -> list[int]:
    """The pilot, its doublings, and n, as far as a decision looks."""
    most = min(n, FARTHEST * pilot)
    doublings = [pilot << times for times in range(FARTHEST.bit_length()) if pilot << times <= most]
    return sorted({*doublings, most})


def decide(gains: Mapping[int, Expected], worth: float, *, doubling: float, is_far: bool = False) -> Decision:
    """Whether to buy, and about how many.

    It is worth buying where a whole interval is above what it has to bring, and not where all of them are below. Then
    the fewest calls that are sure to bring it are enough where twice as many bring too little more, and otherwise the
    most that are.

    Args:
        gains: n, increasing -> what so many calls bring beyond what is there anyway.
        worth: what they have to bring.
        doubling: what twice as many bring more.
        is_far: whether one asks about more calls than a decision looks at, which may bring what these do not.
    """
    sure = [n for n, gain in gains.items() if gain.low > worth]
    if sure:
        return Decision(Verdict.BUY, sure[0] if doubling < worth else sure[-1])
    if not is_far and all(gain.high < worth for gain in gains.values()):
        return Decision(Verdict.DO_NOT_BUY)
    return Decision(Verdict.CANNOT_TELL)
