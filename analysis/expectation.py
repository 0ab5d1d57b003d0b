"""What n calls are expected to bring beyond labels alone, from a few small trainings, before they are paid.

Accuracy grows about linearly in log2(n) over the sizes that are bought (figures 2 and 3 of Xu et al., WACV 2025), so a
line is fitted to the pilots' accuracies. All trainings, those of labels alone included, are taken to scatter alike by
their seed: one variance is pooled from all of them, and what is expected has a prediction interval by Student's t. That
interval covers the scatter, and not that the line may bend: far beyond the pilots' sizes it says too much.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

_CONFIDENCE = 0.95
_BUY, _OPEN, _NOT = "buy about", "cannot tell yet", "do not buy"


@dataclass(frozen=True, slots=True)
class Pilot:
    """The test accuracy, in [0, 1], of a training with the answers to n images, by one seed."""

    n: int
    seed: int
    accuracy: float


@dataclass(frozen=True, slots=True)
class Expected:
    """Something that is not known yet, with its 95 % prediction interval: infinite where nothing shows the scatter."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Growth:
    """A line through pilots: accuracy = at_middle + slope * (log2(n) - middle).

    Args:
        slope: of accuracy, for each doubling of n.
        middle: mean of log2(n) over the pilots.
        at_middle: mean of their accuracies.
        spread: sum of the squares of log2(n) - middle.
        runs: pilots.
        residual: sum of the squares of what the line leaves.
    """

    slope: float
    middle: float
    at_middle: float
    spread: float
    runs: int
    residual: float

    @classmethod
    def fit(cls, pilots: Iterable[Pilot]) -> Growth:
        """The line of least squares; raises `ValueError` where pilots are not of two sizes at least, or not finite."""
        found = list(pilots)
        x = np.array([math.log2(pilot.n) for pilot in found])
        y = np.array([pilot.accuracy for pilot in found])
        if len(set(x.tolist())) < 2 or not np.isfinite(y).all():
            raise ValueError(f"a line needs finite accuracies of at least two sizes, got {found}")
        dx, dy = x - x.mean(), y - y.mean()
        slope = float(dx @ dy / (dx @ dx))
        left = dy - slope * dx
        return cls(slope, float(x.mean()), float(y.mean()), float(dx @ dx), len(found), float(left @ left))

    def at(self, n: int) -> float:
        """The line at n."""
        return self.at_middle + self.slope * (math.log2(n) - self.middle)

    def leverage(self, n: int) -> float:
        """Variance of the line at n, in those of a single training: 1/N + (x - middle)^2 / spread."""
        return 1 / self.runs + (math.log2(n) - self.middle) ** 2 / self.spread


@dataclass(frozen=True, slots=True)
class Outlook:
    """What calls are expected to bring: `growth` with them, beside `alone`, test accuracies of labels alone by seed.

    Raises:
        ValueError: nothing is known of labels alone.
    """

    growth: Growth
    alone: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.alone or not all(map(math.isfinite, self.alone)):
            raise ValueError(f"labels alone need at least one finite accuracy, got {self.alone}")

    @property
    def degrees(self) -> int:
        """Of freedom of the pooled variance."""
        return self.growth.runs - 2 + len(self.alone) - 1

    @property
    def variance(self) -> float:
        """Of a training by its seed, pooled over the line's residuals and labels alone; NaN where none shows it."""
        alone = np.array(self.alone)
        squares = self.growth.residual + float(((alone - alone.mean()) ** 2).sum())
        return squares / self.degrees if self.degrees else math.nan

    def accuracy(self, n: int, runs: int = 1) -> Expected:
        """The mean test accuracy of so many trainings with n answers that are still to be bought."""
        return self._expected(self.growth.at(n), 1 / runs + self.growth.leverage(n))

    def gain(self, n: int, runs: int = 1) -> Expected:
        """The same beyond as accurate as labels alone are on average."""
        alone = self.alone
        return self._expected(
            self.growth.at(n) - float(np.mean(alone)), 1 / runs + self.growth.leverage(n) + 1 / len(alone)
        )

    def _expected(self, mean: float, variances: float) -> Expected:
        """A value whose variance is so many times that of a training."""
        if not self.degrees:
            return Expected(mean, -math.inf, math.inf)
        quantile = float(stdtrit(self.degrees, (1 + _CONFIDENCE) / 2))
        half = quantile * math.sqrt(self.variance * variances)
        return Expected(mean, mean - half, mean + half)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What to do.

    Args:
        kind: "buy about", "cannot tell yet" or "do not buy".
        n: to buy; None for the other two.
        gain: that is expected of it; of the n with the most expected where nothing is to be bought.
    """

    kind: str
    n: int | None
    gain: Expected

    @property
    def text(self) -> str:
        """In words."""
        return self.kind if self.n is None else f"{self.kind} {self.n:,}"


def verdict(outlook: Outlook, sizes: Sequence[int], *, least: float = 0.01, runs: int = 3) -> Verdict:
    """Whether to buy, of the sizes that could be.

    Buy the smallest n whose gain is at least `least` with 97.5 % confidence: the lower end of its interval. Do not buy
    where that can be said of no size: where the upper end is below `least` for all of them. Otherwise more pilots, or
    more seeds, have to tell.

    Args:
        sizes: values of n that could be bought.
        least: gain in accuracy beyond labels alone that makes calls worth their price.
        runs: trainings whose mean the gain is of.

    Raises:
        ValueError: there is no size.
    """
    gains = {n: outlook.gain(n, runs) for n in sorted(sizes)}
    if not gains:
        raise ValueError("a verdict needs at least one size that could be bought")
    for n, gain in gains.items():
        if gain.low >= least:
            return Verdict(_BUY, n, gain)
    most = max(gains.values(), key=lambda gain: gain.mean)
    if all(gain.high < least for gain in gains.values()):
        return Verdict(_NOT, None, most)
    return Verdict(_OPEN, None, most)


def decisive(verdicts: Mapping[str, Verdict]) -> str:
    """Which of several ways to learn from the same calls, as without and with the labels of the rest, decides: of those
    that say buy the one with the fewest calls, else one that cannot tell, and only then that none is worth it; the
    largest gain where several are alike.

    Raises:
        ValueError: there is none.
    """
    if not verdicts:
        raise ValueError("at least one verdict is needed to decide")

    def rank(name: str) -> tuple[float, float, float]:
        found = verdicts[name]
        open_first = (_BUY, _OPEN, _NOT).index(found.kind)
        return open_first, found.n or 0, -found.gain.mean

    return min(verdicts, key=rank)
