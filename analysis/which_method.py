"""Which method to try first, by what was measured on pools like the user's (docs/results.md, "What calls are worth").

A pool is like another where its teacher is about as often right on the images it was asked about: what it says beside
the label is what calls buy (docs/study.md).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

# Pools whose teachers are farther from the user's than this are not like it.
LIKE = 0.15
# Accuracies that differ by less may be in another order with other samples and seeds.
TIE = 0.01
# The 95 % interval of a share of fewer answers reaches farther than that.
FEWEST_JUDGED = 43


@dataclass(frozen=True, slots=True)
class Finding:
    """What was found on one pool, of kd, dist, crd and ckd, each at its own rate; with 400 and 800 calls, kd and ckd.

    Args:
        pool: for people.
        right: how often its teacher is right on the images it was asked about.
        n: calls.
        rest: with what labels of the rest, as `--rest` has it; None without.
        method, reached: the best, and its test accuracy.
        runner_up, its_rest, its: the next, with what labels, and its accuracy.
        alone: the accuracy of labels alone.
    """

    pool: str
    right: float
    n: int
    rest: str | None
    method: str
    reached: float
    runner_up: str
    its_rest: str | None
    its: float
    alone: float

    @property
    def options(self) -> list[str]:
        """For `ckd-train`; of both where they are about equal."""
        best, other = (self.method, self.rest), (self.runner_up, self.its_rest)
        tried = [best, other] if self.reached - self.its < TIE else [best]
        return [f"--method {method}{'' if rest is None else f' --rest {rest}'}" for method, rest in tried]

    def sentence(self) -> str:
        """The evidence."""
        return (
            f"on {self.pool} (teacher right on {_share(self.right)} % of what it was asked), {self.n} calls brought "
            f"{_share(self.reached)} % by {self.method}{'' if self.rest is None else ' with labels of the rest'}, "
            f"{_share(self.its)} by {self.runner_up}, and labels alone {_share(self.alone)}"
        )


@dataclass(frozen=True, slots=True)
class Hedge:
    """What was reached by a method that is not far behind the best of any pool, for whoever cannot tell which is like
    theirs (docs/study.md, "One that holds on both").

    Args:
        n: calls.
        rest: with what labels of the rest, as `--rest` has it; without any it was not tried.
        reached: test accuracy.
    """

    pool: str
    n: int
    rest: str
    method: str
    reached: float

    @property
    def options(self) -> str:
        """For `ckd-train`."""
        return f"--method {self.method} --rest {self.rest}"

    def sentence(self) -> str:
        """The evidence."""
        return f"{self.method} with labels of the rest brought {_share(self.reached)} % there with {self.n} calls"


@dataclass(frozen=True, slots=True, kw_only=True)
class Suggestion:
    """What to try first.

    Args:
        accuracy: how often the user's teacher is right on what it was asked; None where no label says.
        judged: answers about labelled images, which say so.
        findings: on the pools that are like the user's; on all where none is.
        is_like: whether they are.
        hedges: where none is, what held on all of them, in the same order.
    """

    accuracy: float | None
    judged: int
    findings: tuple[Finding, ...]
    is_like: bool
    hedges: tuple[Hedge, ...] = ()

    @property
    def options(self) -> list[str]:
        """For `ckd-train`: what held on all pools, and then the pool that is most like the user's first."""
        held = [hedge.options for hedge in self.hedges]
        return list(dict.fromkeys([*held, *(options for finding in self.findings for options in finding.options)]))

    def document(self) -> dict[str, Any]:
        """For --json."""
        return {
            "teacher_accuracy": self.accuracy,
            "judged_answers": self.judged,
            "like": self.is_like,
            "try": self.options,
            "evidence": [asdict(finding) for finding in self.findings],
            "held_on_all": [asdict(hedge) for hedge in self.hedges],
        }

    def sentence(self) -> str:
        """For people."""
        held = {hedge.pool: f", and {hedge.sentence()}" for hedge in self.hedges}
        evidence = "; ".join(f"{finding.sentence()}{held.get(finding.pool, '')}" for finding in self.findings)
        each = "each at" if len(self.options) > 1 else "at"
        *others, last = self.options
        tried = f"{', '.join(others)} and {last}" if others else last
        return f"{self._why()}: whoever buys tries {tried} first, {each} several --lr: {evidence}."

    def _why(self) -> str:
        if self.accuracy is None:
            return "No label says how good the teacher is, so that nothing measured is known to be like it"
        why = f"The teacher is right in {_share(self.accuracy)} % of its {self.judged} answers about labelled images"
        if self.judged < FEWEST_JUDGED:
            return f"{why}, which are too few to know whether anything measured is like it"
        return why if self.is_like else f"{why}, and nothing was measured with one like it"


_Found = TypeVar("_Found", Finding, Hedge)

# By pool, its teacher and what labels alone reached: n, and with what labels the best and the next. As in the tables,
# in percent.
_FOUND: tuple[tuple[str, float, float, tuple[tuple[int, str | None, str, float, str | None, str, float], ...]], ...] = (
    (
        "100 classes of Tiny ImageNet",
        62.9,
        13.1,
        (
            (200, None, "ckd", 8.8, None, "dist", 6.6),
            (200, "ce:weight=4", "ckd", 21.5, "ce:weight=4", "kd", 15.8),
            (400, "ce:weight=2", "ckd", 24.0, "ce:weight=2", "kd", 19.3),
            (800, "ce:weight=1", "ckd", 25.2, "ce:weight=2", "kd", 21.6),
            (1600, None, "ckd", 25.0, None, "dist", 23.0),
            (1600, "ce:weight=1", "ckd", 27.4, "ce:weight=4", "dist", 26.6),
        ),
    ),
    (
        "101 classes of photographs",
        99.4,
        48.1,
        (
            (200, None, "crd", 10.4, None, "kd", 10.3),
            (200, "ce:weight=4", "kd", 49.8, "ce:weight=4", "crd", 47.0),
            (400, "ce:weight=2", "kd", 52.6, "ce:weight=2", "ckd", 46.8),
            (800, "ce:weight=2", "kd", 53.2, "ce:weight=2", "ckd", 45.2),
            (1600, None, "dist", 43.2, None, "crd", 42.4),
            (1600, "ce:weight=1", "kd", 55.7, "ce:weight=1", "crd", 54.0),
        ),
    ),
)


# By pool: n, with what labels, and what `kd+ckd` reached.
_HELD: tuple[tuple[str, tuple[tuple[int, str, float], ...]], ...] = (
    ("100 classes of Tiny ImageNet", ((200, "ce:weight=4", 20.4), (1600, "ce:weight=1", 27.8))),
    ("101 classes of photographs", ((200, "ce:weight=4", 48.1), (1600, "ce:weight=1", 53.7))),
)


def _of(percent: float) -> float:
    return round(percent / 100, 4)


FINDINGS = tuple(
    Finding(pool, _of(right), n, rest, method, _of(reached), runner_up, its_rest, _of(its), _of(alone))
    for pool, right, alone, found in _FOUND
    for n, rest, method, reached, its_rest, runner_up, its in found
)
HEDGES = tuple(Hedge(pool, n, rest, "kd+ckd", _of(reached)) for pool, found in _HELD for n, rest, reached in found)


def suggest(
    *,
    n: int,
    accuracy: float | None,
    judged: int,
    has_labels: bool,
    findings: Iterable[Finding] = FINDINGS,
    hedges: Iterable[Hedge] = HEDGES,
) -> Suggestion:
    """What to try first with n calls.

    Args:
        accuracy: how often the teacher is right on the labelled images that it was asked about; None where none has a
            label.
        judged: its answers about those.
        has_labels: whether images beside those that are asked about have labels.
        findings, hedges: to go by; of each pool those of the nearest n, by ratio.
    """
    fitting = _nearest((finding for finding in findings if (finding.rest is not None) == has_labels), n)
    pools = sorted(fitting.values(), key=lambda found: 0.0 if accuracy is None else abs(found.right - accuracy))
    is_known = judged >= FEWEST_JUDGED
    like = [found for found in pools if accuracy is not None and is_known and abs(found.right - accuracy) <= LIKE]
    held = _nearest(hedges if has_labels and not like else (), n)
    return Suggestion(
        accuracy=accuracy,
        judged=judged,
        findings=tuple(like[:1] or pools),
        is_like=bool(like),
        hedges=tuple(held[found.pool] for found in pools if found.pool in held),
    )


def _nearest(found: Iterable[_Found], n: int) -> dict[str, _Found]:
    """Pool -> what was found with the nearest n, the first of equals."""
    nearest: dict[str, _Found] = {}
    for one in sorted(found, key=lambda one: abs(math.log(one.n / n))):
        nearest.setdefault(one.pool, one)
    return nearest


def _share(accuracy: float) -> str:
    return f"{100 * accuracy:.1f}"
