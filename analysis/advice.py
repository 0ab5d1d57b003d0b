"""Whether to pay for calls: what labels alone give, what a pilot gave, and what n calls are expected to bring.

Runs of n = 0 are those of labels alone, and of the others those whose rest reads labels are of calls and labels. What
is expected is test accuracy, by `analysis.expectation`; validation decides among candidates, and nothing else. Calls
and labels are compared with labels alone seed by seed; without labels, calls alone with what the pilot has.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd

from analysis.expectation import FARTHEST, Decision, Expected, Line, Verdict, candidates, decide
from analysis.labels_only import of_labels_alone, of_samples, uses_labels
from analysis.results import chosen


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Students that differ in nothing but their seeds.

    Args:
        mean, std: of the test accuracies at the best validation accuracy; the sample deviation is None for one.
        validation: mean of those validation accuracies.
    """

    mean: float
    std: float | None
    validation: float
    runs: int

    @classmethod
    def of(cls, runs: pd.DataFrame) -> Measured | None:
        """None for no runs."""
        if runs.empty:
            return None
        accuracies = runs["test_accuracy"]
        return cls(
            mean=float(accuracies.mean()),
            std=float(accuracies.std(ddof=1)) if len(runs) > 1 else None,
            validation=float(runs["best_val_accuracy"].mean()),
            runs=len(runs),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """What the pilot gave at one n.

    Args:
        gain: of calls and labels beyond labels alone, mean over seeds; None without labels.
    """

    calls_alone: Measured
    calls_and_labels: Measured | None
    gain: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Prospect:
    """What one more student is expected to reach at one n.

    Args:
        gain: beyond labels alone with calls and labels; without labels, beyond the pilot with calls alone.
    """

    calls_alone: Expected
    calls_and_labels: Expected | None
    gain: Expected


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """The answer.

    Args:
        n: that was asked about.
        pilot: images of it; 0 where nobody was asked about any.
        worth: what calls have to bring, as a difference of accuracies.
        labels_alone: None where too few images have a label.
        labelled: images that those learned from.
        measured, expected: n -> what was found there, and what is expected.
        doubling: what twice as many calls are expected to bring more; None without a pilot.
        rates: learning rates that were tried.
    """

    n: int
    pilot: int
    worth: float
    labels_alone: Measured | None
    labelled: int
    measured: dict[int, Point]
    expected: dict[int, Prospect]
    doubling: float | None
    decision: Decision
    rates: tuple[float, ...]

    @property
    def is_far(self) -> bool:
        """Whether n is farther from the pilot than a decision looks."""
        return self.pilot > 0 and self.n > FARTHEST * self.pilot

    def document(self) -> dict[str, Any]:
        """For --json, but for what is said of it to people."""
        return {
            "n": self.n,
            "pilot_images": self.pilot,
            "gain": self.worth,
            "labels_alone": None if self.labels_alone is None else asdict(self.labels_alone),
            "labelled_images": self.labelled,
            "pilot": {str(n): asdict(point) for n, point in self.measured.items()},
            "expected": {str(n): asdict(prospect) for n, prospect in self.expected.items()},
            "doubling": self.doubling,
            "beyond": "pilot" if self.labels_alone is None else "labels",
            "uncertain": self.is_far,
            "rates": list(self.rates),
            "verdict": str(self.decision.verdict),
            "buy": self.decision.n,
        }

    def sentences(self) -> list[str]:
        """For people: the verdict, and what it rests on."""
        verdict = {
            Verdict.BUY: self._buy,
            Verdict.DO_NOT_BUY: self._do_not_buy,
            Verdict.CANNOT_TELL: self._cannot_tell,
        }[self.decision.verdict]()
        return [verdict, *self._caveats()]

    def _buy(self) -> str:
        assert self.decision.n is not None
        assert self.doubling is not None
        n = self.decision.n
        begin = f"Buy about {n}" if n > self.pilot else f"Buy no more than the {n} of the pilot"
        enough = self.doubling < self.worth
        ending = f"{'only ' if enough else ''}{_points(self.doubling)} more"
        return f"{begin}: {self._brings(n)}, and twice as many {ending}."

    def _do_not_buy(self) -> str:
        return f"Do not buy: {self._brings(self._decisive)}, and {self._asked} asked for."

    def _cannot_tell(self) -> str:
        if not self.pilot:
            return "Cannot tell yet: the teacher was asked about nothing; a --pilot of 200 calls would say more."
        return (
            f"Cannot tell yet: {self._brings(self._decisive)}, and {self._asked} asked for; a larger --pilot "
            "would tell, or more --seeds."
        )

    @property
    def _asked(self) -> str:
        return f"{100 * self.worth:.1f} points are"

    @property
    def _decisive(self) -> int:
        """The largest n that the decision looks at."""
        return candidates(self.pilot, self.n)[-1]

    def _brings(self, n: int) -> str:
        gain = self.expected[n].gain
        what = "the pilot" if self.labels_alone is None else "labels alone"
        return (
            f"{n} calls{'' if self.labels_alone is None else ' and labels'} are expected to bring {_points(gain.mean)} "
            f"beyond {what} (95 % interval {signed(gain.low)} to {signed(gain.high)})"
        )

    def _caveats(self) -> list[str]:
        found = []
        if self.labels_alone is None:
            found.append(
                "Hardly any image beside the pilot's has a label, so nothing says what labels alone give: calls are "
                "compared with the pilot's."
            )
        if self.is_far:
            found.append(
                f"{self.n} is more than {FARTHEST} times the pilot, and no line is to be trusted so far: what is "
                "expected there is uncertain, and decided nothing; a --pilot of at least "
                f"{-(-self.n // FARTHEST)} would say more."
            )
        if len(self.rates) == 1:
            found.append(
                f"All students learned at one rate, {self.rates[0]:g}, and another may be worth more than calls are: "
                "give --lr several times, and validation chooses."
            )
        return found


def advice_of(results: pd.DataFrame, *, n: int, pilot: int, worth: float) -> Advice:
    """What follows from the runs of a pilot.

    Args:
        results: of `analysis.results.collect`, of one teacher, student and method.
        pilot: its images, the largest n of the runs; 0 for runs of labels alone.
    """
    runs = chosen(results)
    asked, labels = of_samples(runs), of_labels_alone(runs)
    with_labels = asked["recipe"].map(json.loads).map(uses_labels).astype(bool)
    alone, both = asked[~with_labels], _gained(asked[with_labels], labels)
    labelled = 0 if labels.empty else int(labels["labelled_rows"].max())
    found: dict[str, Any] = {"n": n, "pilot": pilot, "worth": worth, "rates": tuple(sorted(set(results["lr"])))}
    found |= {"labels_alone": Measured.of(labels), "labelled": labelled}
    if not pilot:
        decision = Decision(Verdict.CANNOT_TELL)
        return Advice(**found, measured={}, expected={}, doubling=None, decision=decision)
    looked_at = candidates(pilot, n)
    expected = _expected(alone, both, labels, sorted({*looked_at, n}), pilot)
    doubling = _line(alone, "test_accuracy").slope if both.empty else _line(both, "gain").slope
    # Without labels, what the pilot itself brings is not known.
    gains = {size: expected[size].gain for size in looked_at if size > pilot or not both.empty}
    return Advice(
        **found,
        measured=_measured(alone, both),
        expected=expected,
        doubling=doubling,
        decision=decide(gains, worth, doubling=doubling, is_far=n > FARTHEST * pilot),
    )


def _gained(both: pd.DataFrame, labels: pd.DataFrame) -> pd.DataFrame:
    """Runs of calls and labels with `gain`, what each has beyond labels alone with the same seed."""
    of_seed = labels.set_index("seed")["test_accuracy"]
    return both.assign(gain=both["test_accuracy"] - both["seed"].map(of_seed))


def _line(runs: pd.DataFrame, column: str) -> Line:
    return Line.through(runs["n"].tolist(), runs[column].tolist())


def _measured(alone: pd.DataFrame, both: pd.DataFrame) -> dict[int, Point]:
    found = {}
    for n in sorted(set(alone["n"])):
        calls, paired = Measured.of(alone[alone["n"] == n]), both[both["n"] == n]
        assert calls is not None
        gain = None if paired.empty else float(paired["gain"].mean())
        found[int(n)] = Point(calls_alone=calls, calls_and_labels=Measured.of(paired), gain=gain)
    return found


def _expected(
    alone: pd.DataFrame, both: pd.DataFrame, labels: pd.DataFrame, sizes: Sequence[int], pilot: int
) -> dict[int, Prospect]:
    calls = _line(alone, "test_accuracy")
    if both.empty:
        before = min(max(calls.expected(pilot).mean, 0.0), 1.0)
        return {
            n: Prospect(
                calls_alone=calls.expected(n).within(0, 1),
                calls_and_labels=None,
                gain=calls.brought(n, pilot).within(-before, 1 - before),
            )
            for n in sizes
        }
    base, line = float(labels["test_accuracy"].mean()), _line(both, "gain")
    gains = {n: line.expected(n).within(-base, 1 - base) for n in sizes}
    return {
        n: Prospect(
            calls_alone=calls.expected(n).within(0, 1),
            calls_and_labels=Expected(base + gain.mean, base + gain.low, base + gain.high),
            gain=gain,
        )
        for n, gain in gains.items()
    }


def signed(difference: float) -> str:
    """In percentage points; nothing is +0.0, from whichever side it was rounded."""
    return f"{round(100 * difference, 1) + 0.0:+.1f}"


def _points(difference: float) -> str:
    return f"{signed(difference)} points"
