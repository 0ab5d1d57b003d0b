"""Methods: named recipes of losses, weights and sampling.

A method is data. The training loop asks it for batches and for a loss, and never which one it is; what the command
line offers is what `METHODS` holds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from storage.errors import InvalidInput, UnknownName
from student_train.comparison import AllPairs, Comparison, GroupComparison
from student_train.losses import KD, LOSSES, CrossEntropy, DistillationLoss, MatchLabels, MatchLogits
from student_train.sampling import EpochSampling, GroupSampling, Sampling
from student_train.signals import Signals
from student_train.spec import build_from, split_spec, to_bool


@dataclass(frozen=True, slots=True)
class Term:
    """One summand of a method's loss.

    Args:
        compared: apply the loss to differences between samples.
    """

    loss: DistillationLoss
    weight: float = 1.0
    compared: bool = False


@dataclass(frozen=True, slots=True)
class Pairing:
    """How samples are compared: the rows to draw, and what to make of them."""

    sampling: Sampling
    comparison: Comparison


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

    @property
    def is_anchored(self) -> bool:
        """Whether the level of the logits is open, and to be set."""
        return self.anchor and all(term.compared for term in self.terms)

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


def sampled(positives: int = 1, negatives: int = 1, joint: bool = False) -> Pairing:
    """Groups drawn afresh each step."""
    return Pairing(GroupSampling(positives, negatives, joint), GroupComparison(positives, negatives))


def all_pairs() -> Pairing:
    """Every ordered pair of each batch."""
    return Pairing(EpochSampling(), AllPairs())


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
    pairing = sampled(positives, negatives, joint) if pairs == "sampled" else all_pairs()
    terms = (Term(MatchLogits(), logits, compared=True), Term(MatchLabels(), labels, compared=True))
    return Method("ckd", terms, pairing.sampling, pairing.comparison, anchor)


METHODS: dict[str, Callable[..., Method]] = {"vanilla": vanilla, "kd": kd, "ckd": ckd}


def parse_method(text: str) -> Method:
    """A named method with its settings, for instance "ckd:pairs=all"."""
    name, settings = split_spec(text)
    return build_from("method", name, settings, METHODS)


def parse_losses(specs: Sequence[str], pairing: str) -> Method:
    """The user's own sum of losses.

    Args:
        specs: as "kd:temperature=4,weight=0.9"; `weight` and `compared` are understood for every loss.
        pairing: how compared losses pair samples, as "sampled:positives=2" or "all".
    """
    terms = tuple(_parse_term(spec) for spec in specs)
    name = "+".join(specs)
    if not any(term.compared for term in terms):
        return Method(name, terms)
    kind, settings = split_spec(pairing)
    chosen = build_from("comparison", kind, settings, PAIRINGS)
    return Method(name, terms, chosen.sampling, chosen.comparison)


def _parse_term(spec: str) -> Term:
    name, settings = split_spec(spec)
    try:
        weight = float(settings.pop("weight", "1"))
        compared = to_bool(settings.pop("compared", "false"))
    except ValueError as error:
        raise InvalidInput(f"cannot read {spec!r}: {error}") from error
    loss = build_from("loss", name, settings, LOSSES)
    if compared and not loss.comparable:
        raise InvalidInput(f"{name} has no meaning on differences between samples; leave compared=true out of {spec!r}")
    return Term(loss, weight, compared)
