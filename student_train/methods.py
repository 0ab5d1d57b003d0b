"""Methods: named recipes of losses, weights and sampling.

A method is data. The training loop asks it for batches and for a loss, and never which one it is; what the command
line offers is what `METHODS` holds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from storage.errors import InvalidInput, UnknownName
from student_train.comparison import AllPairs, Comparison, GroupComparison
from student_train.losses import KD, LOSSES, CrossEntropy, DistillationLoss, MatchLabels, MatchLogits
from student_train.sampling import EpochSampling, GroupSampling, Sampling
from student_train.signals import Signals
from student_train.spec import build_from, split_spec, to_bool, to_float


@dataclass(frozen=True, slots=True)
class Term:
    """One summand of a method's loss.

    Args:
        compared: apply the loss to differences between samples.
    """

    loss: DistillationLoss
    weight: float = 1.0
    compared: bool = False

    def __post_init__(self) -> None:
        if not (math.isfinite(self.weight) and self.weight >= 0):
            raise InvalidInput(f"the weight of a loss must be a finite number of at least 0, got {self.weight}")


@dataclass(frozen=True, slots=True)
class Pairing:
    """How samples are compared: the rows to draw, what to make of them, and whether to anchor."""

    sampling: Sampling
    comparison: Comparison
    anchor: bool


@dataclass(frozen=True)
class Method:
    """A recipe.

    Args:
        name: what run.json calls it.
        terms: summands.
        sampling: draws the batches.
        comparison: applied for compared terms; None where there are none.
        anchor: where comparisons leave the level of the logits open, set it (`student_train/anchor.py`).
    """

    name: str
    terms: tuple[Term, ...]
    sampling: Sampling = field(default_factory=EpochSampling)
    comparison: Comparison | None = None
    anchor: bool = True

    def __post_init__(self) -> None:
        if not any(term.weight for term in self.terms):
            raise InvalidInput(f"every loss of {self.name} has weight 0; nothing would be learned")

    @property
    def is_anchored(self) -> bool:
        """Whether the level of the logits is open, and to be set."""
        terms = [term for term in self.terms if term.weight > 0]
        determined = any(not term.compared and term.loss.constrains_logits for term in terms)
        return self.anchor and not determined and any(term.compared for term in terms)

    def describe(self) -> dict[str, Any]:
        """Everything that makes this recipe what it is, in plain values."""
        losses = [
            {"loss": type(term.loss).__name__, **term.loss.settings, "weight": term.weight, "compared": term.compared}
            for term in self.terms
        ]
        return {
            "losses": losses,
            "sampling": {"kind": type(self.sampling).__name__, **asdict(self.sampling)},
            "comparison": None if self.comparison is None else type(self.comparison).__name__,
            "anchored": self.is_anchored,
        }

    @property
    def needs(self) -> frozenset[str]:
        """Teacher outputs that must be in the store; empty when no teacher is involved."""
        return frozenset().union(*(term.loss.needs for term in self.terms))

    @property
    def learned(self) -> nn.ModuleList:
        """Every loss as a module, for the optimizer and the checkpoint."""
        return nn.ModuleList(term.loss for term in self.terms)

    def loss(self, signals: Signals) -> Tensor:
        """The weighted sum of all terms, a float32 scalar."""
        compared: Signals | None = None
        total = torch.zeros((), device=signals.student.logits.device)
        for term in self.terms:
            if not term.compared:
                total = total + term.weight * term.loss(signals)
                continue
            assert self.comparison is not None
            closed = term.loss.over_all_pairs(signals) if isinstance(self.comparison, AllPairs) else None
            if closed is None:
                compared = self.comparison(signals) if compared is None else compared
                closed = term.loss(compared)
            total = total + term.weight * closed
        return total

    def logit_target(self, signals: Signals) -> Tensor | None:
        """Weighted mean of what the terms pull single samples' logits to, (B, K); None if none of them says."""
        said = [(term.weight, term.loss.logit_target(signals)) for term in self.terms]
        targets = [(weight, target) for weight, target in said if target is not None]
        total = sum(weight for weight, _ in targets)
        if not total:
            return None
        return torch.stack([weight * target for weight, target in targets]).sum(dim=0) / total


def sampled(positives: int = 1, negatives: int = 1, joint: bool = False, anchor: bool = True) -> Pairing:
    """Groups drawn afresh each step."""
    return Pairing(GroupSampling(positives, negatives, joint), GroupComparison(positives, negatives), anchor)


def all_pairs(anchor: bool = True) -> Pairing:
    """Every ordered pair of each batch."""
    return Pairing(EpochSampling(), AllPairs(), anchor)


PAIRINGS: dict[str, Callable[..., Pairing]] = {"sampled": sampled, "all": all_pairs}


def vanilla() -> Method:
    """Labels alone: cross-entropy."""
    return Method("vanilla", (Term(CrossEntropy()),))


def kd(temperature: float = 4.0, ce: float = 1.0, weight: float = 1.0) -> Method:
    """Cross-entropy + KD (Hinton et al. 2015), weights 1 and 1."""
    return Method("kd", (Term(CrossEntropy(), ce), Term(KD(temperature), weight)))


def ckd(
    pairs: str = "sampled",
    positives: int = 1,
    negatives: int = 1,
    joint: bool = False,
    logits: float = 1.0,
    labels: float = 1.0,
    anchor: bool = True,
) -> Method:
    """Compared logits + compared labels (Xu et al., WACV 2025).

    Args:
        pairs: "sampled" (the paper) or "all" (every pair of a batch, in closed form).
        positives, negatives: samples on each side of a sampled group.
        joint: both sides in one forward pass; apart, as in the paper, by default.
        logits, labels: weights.
        anchor: set the level of the logits, which differences leave open; false leaves it to chance.
    """
    if pairs not in PAIRINGS:
        raise UnknownName("kind of pairs", pairs, PAIRINGS)
    if pairs == "all" and (positives, negatives, joint) != (1, 1, False):
        raise InvalidInput("positives, negatives and joint belong to pairs=sampled; leave them out with pairs=all")
    pairing = sampled(positives, negatives, joint, anchor) if pairs == "sampled" else all_pairs(anchor)
    terms = (Term(MatchLogits(), logits, compared=True), Term(MatchLabels(), labels, compared=True))
    return Method("ckd", terms, pairing.sampling, pairing.comparison, pairing.anchor)


METHODS: dict[str, Callable[..., Method]] = {"vanilla": vanilla, "kd": kd, "ckd": ckd}


def parse_method(text: str) -> Method:
    """A named method with its settings, for instance "ckd:pairs=all"."""
    name, settings = split_spec(text)
    return build_from("method", name, settings, METHODS)


def parse_losses(specs: Sequence[str], pairing: str | None = None) -> Method:
    """The user's own sum of losses.

    Args:
        specs: as "kd:temperature=4,weight=0.9"; `weight` and `compared` are understood for every loss.
        pairing: how compared losses pair samples, as "sampled:positives=2" or "all"; None is "sampled".
    """
    terms = tuple(_parse_term(spec) for spec in specs)
    name = "+".join(specs)
    if not any(term.compared for term in terms):
        if pairing is not None:
            raise InvalidInput("--comparison is for losses with compared=true, and there is none; leave it out")
        return Method(name, terms)
    kind, settings = split_spec(pairing or "sampled")
    chosen = build_from("comparison", kind, settings, PAIRINGS)
    return Method(name, terms, chosen.sampling, chosen.comparison, chosen.anchor)


def _parse_term(spec: str) -> Term:
    name, settings = split_spec(spec)
    try:
        weight = to_float(settings.pop("weight", "1"))
        compared = to_bool(settings.pop("compared", "false"))
    except ValueError as error:
        raise InvalidInput(f"cannot read {spec!r}: {error}") from error
    loss = build_from("loss", name, settings, LOSSES)
    if compared and not loss.comparable:
        raise InvalidInput(f"{name} has no meaning on differences between samples; leave compared=true out of {spec!r}")
    return Term(loss, weight, compared)
