"""Which method to try first, by what was measured on pools like the user's (docs/results.md, "What calls are worth").

A pool is like another where its teacher is about as often right on the images it was asked about: what it says beside
the label is what calls buy (docs/study.md).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

# Pools whose teachers are farther from the user's than this are not like it.
LIKE = 0.15
# Accuracies that differ by less may be in another order with other samples and seeds.
TIE = 0.01
# What to try where no pool is like the user's.
HELD = "kd+ckd"
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
        held: that of `HELD` with the same labels, which is not far behind the best of any pool (docs/study.md, "One
            that holds on both"); None where it was not tried.
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
    held: float | None = None

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
            f"{_share(self.its)} by {self.runner_up}, "
            f"{'' if self.held is None else f'{_share(self.held)} by {HELD}, '}and labels alone {_share(self.alone)}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Suggestion:
    """What to try first.

    Args:
        accuracy: how often the user's teacher is right on what it was asked; None where no label says.
        judged: answers about labelled images, which say so.
        findings: on the pools that are like the user's; on all where none is.
        is_like: whether they are.
    """

    accuracy: float | None
    judged: int
    findings: tuple[Finding, ...]
    is_like: bool

    @property
    def options(self) -> list[str]:
        """For `ckd-train`, by the pool that is most like the user's; before that, where none is, what holds on each."""
        tried = self.findings if not self.is_like else ()
        held = [f"--method {HELD} --rest {finding.rest}" for finding in tried if finding.held is not None]
        return list(dict.fromkeys([*held, *(options for finding in self.findings for options in finding.options)]))

    def document(self) -> dict[str, Any]:
        """For --json."""
        return {
            "teacher_accuracy": self.accuracy,
            "judged_answers": self.judged,
            "like": self.is_like,
            "try": self.options,
            "evidence": [asdict(finding) for finding in self.findings],
        }

    def sentence(self) -> str:
        """For people."""
        evidence = "; ".join(finding.sentence() for finding in self.findings)
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


# By pool, its teacher and what labels alone reached: n, and with what labels the best and the next; with those of the
# best, `HELD`. As in the tables, in percent.
_Row = tuple[int, str | None, str, float, str | None, str, float, float | None]
_FOUND: tuple[tuple[str, float, float, tuple[_Row, ...]], ...] = (
    (
        "100 classes of Tiny ImageNet",
        62.9,
        13.1,
        (
            (200, None, "ckd", 8.8, None, "dist", 6.6, None),
            (200, "ce:weight=4", "ckd", 21.5, "ce:weight=4", "kd", 15.8, 20.4),
            (400, "ce:weight=2", "ckd", 24.0, "ce:weight=2", "kd", 19.3, None),
            (800, "ce:weight=1", "ckd", 25.2, "ce:weight=2", "kd", 21.6, None),
            (1600, None, "ckd", 25.0, None, "dist", 23.0, None),
            (1600, "ce:weight=1", "ckd", 27.4, "ce:weight=4", "dist", 26.6, 27.8),
        ),
    ),
    (
        "101 classes of photographs",
        99.4,
        48.1,
        (
            (200, None, "crd", 10.4, None, "kd", 10.3, None),
            (200, "ce:weight=4", "kd", 49.8, "ce:weight=4", "crd", 47.0, 48.1),
            (400, "ce:weight=2", "kd", 52.6, "ce:weight=2", "ckd", 46.8, None),
            (800, "ce:weight=2", "kd", 53.2, "ce:weight=2", "ckd", 45.2, None),
            (1600, None, "dist", 43.2, None, "crd", 42.4, None),
            (1600, "ce:weight=1", "kd", 55.7, "ce:weight=1", "crd", 54.0, 53.7),
        ),
    ),
)


def _of(percent: float) -> float:
    return round(percent / 100, 4)


FINDINGS = tuple(
    Finding(
        pool, _of(right), n, rest, method, _of(reached), runner_up, its_rest, _of(its), _of(alone), held and _of(held)
    )
    for pool, right, alone, found in _FOUND
    for n, rest, method, reached, its_rest, runner_up, its, held in found
)


def suggest(
    *, n: int, accuracy: float | None, judged: int, has_labels: bool, findings: Iterable[Finding] = FINDINGS
) -> Suggestion:
    """What to try first with n calls.

    Args:
        accuracy: how often the teacher is right on the labelled images that it was asked about; None where none has a
            label.
        judged: its answers about those.
        has_labels: whether images beside those that are asked about have labels.
        findings: to go by; of each pool the one of the nearest n, by ratio, where no pool is like the user's of those n
            at which `HELD` was tried.
    """
    fitting = [finding for finding in findings if (finding.rest is not None) == has_labels]
    is_known = accuracy is not None and judged >= FEWEST_JUDGED
    pools = _by_likeness(fitting, n, accuracy)
    like = [found for found in pools if is_known and accuracy is not None and abs(found.right - accuracy) <= LIKE]
    held = [found for found in fitting if found.held is not None]
    return Suggestion(
        accuracy=accuracy,
        judged=judged,
        findings=tuple(like[:1] or _by_likeness(held or fitting, n, accuracy)),
        is_like=bool(like),
    )


def _by_likeness(findings: Iterable[Finding], n: int, accuracy: float | None) -> list[Finding]:
    """Of each pool the finding of the nearest n, the pool whose teacher is most like that of the user first."""
    nearest: dict[str, Finding] = {}
    for finding in sorted(findings, key=lambda found: abs(math.log(found.n / n))):
        nearest.setdefault(finding.pool, finding)
    return sorted(nearest.values(), key=lambda found: 0.0 if accuracy is None else abs(found.right - accuracy))


def _share(accuracy: float) -> str:
    return f"{100 * accuracy:.1f}"
