"""Ways to pair samples for comparison, by the names that `pairs=` and `--comparison` take."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ground.spec import Settings, argument_names
from student_train.comparison import AllPairs, Comparison, GroupComparison
from student_train.sampling import EpochSampling, GroupSampling, Sampling


@dataclass(frozen=True, slots=True)
class Pairing:
    """How samples are compared: the rows to draw, what to make of them, and whether to anchor."""

    sampling: Sampling
    comparison: Comparison
    anchor: bool


def sampled(
    positives: int = 1,
    negatives: int = 1,
    joint: bool = False,
    comparisons: int = 0,
    combine: str = "difference",
    anchor: bool = True,
) -> Pairing:
    """Groups of samples."""
    comparison = GroupComparison(positives, negatives, combine)
    return Pairing(GroupSampling(positives, negatives, joint, comparisons), comparison, anchor)


def all_pairs(anchor: bool = True) -> Pairing:
    """Every ordered pair of each batch."""
    return Pairing(EpochSampling(), AllPairs(), anchor)


PAIRINGS: dict[str, Callable[..., Pairing]] = {"sampled": sampled, "all": all_pairs}


def chosen_pairing(settings: Settings, usual: str = "sampled") -> Pairing:
    """What `pairs=` and its settings say, for a method that compares; `usual` where they do not say which pairs."""
    pairing = settings.build(PAIRINGS[settings.take_choice("pairs", "kind of pairs", PAIRINGS, usual)])
    settings.refuse(argument_names(sampled), "belongs to pairs=sampled; leave it out with pairs=all")
    return pairing
