"""Methods: named recipes of losses, weights and sampling.

A method is data. The training loop asks it for batches and for a loss, and never which one it is. What the command
line offers is what `METHODS` holds, and the recipe of every loss.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from ground.errors import InvalidInput, UnknownName
from models import Network
from student_train.binding import Binding
from student_train.comparison import AllPairs, Comparison, GroupComparison
from student_train.losses import DistillationLoss
from student_train.losses.base import TeacherRows
from student_train.losses.correlation import CC
from student_train.losses.crd import CRD
from student_train.losses.cross_entropy import CrossEntropy
from student_train.losses.hint import Hint
from student_train.losses.kd import KD
from student_train.losses.match import MatchLabels, MatchLogits
from student_train.losses.soft_targets import SoftCrossEntropy
from student_train.losses.standardise import standardise
from student_train.losses.vid import VID
from student_train.mixing import CutMix, Mixing, Mixup, Part
from student_train.needs import LayerPair, Needs, Wanted
from student_train.registry import find_loss, loss_name, loss_names, own_code
from student_train.sampling import AllViews, ClassSampling, EpochSampling, GroupSampling, Sampling
from student_train.signals import Moment, Signals
from student_train.spec import Settings, argument_names, split_spec

# What every loss takes on the command line, beside its own settings.
TERM_SETTINGS = ("weight", "compared", "standardised")


@dataclass(frozen=True, slots=True)
class Term:
    """One summand of a method's loss.

    Args:
        compared: apply the loss to differences between samples.
        standardised: give it logits of mean 0 and deviation 1 in each row (LSKD), before any comparison.
    """

    loss: DistillationLoss
    weight: float = 1.0
    compared: bool = False
    standardised: bool = False

    def __post_init__(self) -> None:
        if not (math.isfinite(self.weight) and self.weight >= 0):
            raise InvalidInput(f"the weight of a loss must be a finite number of at least 0, got {self.weight}")
        if self.compared and not self.loss.needs.comparable:
            raise InvalidInput(
                f"{loss_name(self.loss)} has no meaning on differences between samples (it needs "
                f"{self.loss.needs.describe()}); leave compared=true out"
            )
        self.describe()  # refuses a loss whose settings cannot be recorded

    @property
    def constrains_logits(self) -> bool:
        """Whether it determines the level of the logits by itself."""
        return not self.compared and self.weight > 0 and self.loss.constrains_logits

    def logit_target(self, signals: Signals) -> Tensor | None:
        """See `DistillationLoss.logit_target`; standardised logits pull to no level."""
        return None if self.standardised else self.loss.logit_target(signals)

    def describe(self) -> dict[str, Any]:
        """Everything that makes it what it is, in plain values."""
        flags = {name: getattr(self, name) for name in TERM_SETTINGS}
        return {"loss": loss_name(self.loss), **own_code(type(self.loss)), **self.loss.settings, **flags}


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
        terms: summands; those with weight 0 are not computed.
        sampling: draws the batches.
        comparison: applied for compared terms; None where there are none.
        mixing: makes inputs of several images; None for plain ones.
        anchor: where comparisons leave the level of the logits open, set it (`student_train/anchor.py`).
    """

    name: str
    terms: tuple[Term, ...]
    sampling: Sampling = field(default_factory=EpochSampling)
    comparison: Comparison | None = None
    mixing: Mixing | None = None
    anchor: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "terms", tuple(term for term in self.terms if term.weight))
        if not self.terms:
            raise InvalidInput(f"every loss of {self.name} has weight 0; nothing would be learned")
        if any(term.compared for term in self.terms) and (self.comparison is None or self.mixing is not None):
            raise InvalidInput(f"{self.name} compares single images of a batch, so it cannot mix them")
        alone = [loss_name(term.loss) for term in self.terms if term.loss.needs.index or term.loss.needs.views]
        if alone and self.mixing is not None:
            raise InvalidInput(f"{alone[0]} follows single images through the training, so they cannot be mixed")

    @property
    def needs(self) -> tuple[Needs, ...]:
        """What every loss needs."""
        return tuple(term.loss.needs for term in self.terms)

    @property
    def asks_teacher(self) -> bool:
        """Whether any answer of the teacher is used."""
        return any(needs.teacher for needs in self.needs)

    @property
    def is_anchored(self) -> bool:
        """Whether the level of the logits is open, and to be set."""
        opened = self.comparison is not None and self.comparison.opens_level
        return self.anchor and opened and not any(term.constrains_logits for term in self.terms)

    def wanted(self, student: Sequence[str], teacher: Sequence[str]) -> Wanted:
        """What is to be loaded and computed, for the layer names that student and teacher have.

        Raises:
            UnknownName, InvalidInput: a loss asks for layers that one of them lacks.
        """
        pairs = [pair for needs in self.needs for pair in needs.pairs(student, teacher)]
        return Wanted(
            student=tuple(dict.fromkeys(ours for ours, _ in pairs if ours != "logits")),
            teacher=tuple(dict.fromkeys(["logits", *(theirs for _, theirs in pairs)])) if pairs else (),
            parameters=any(needs.head or needs.norms for needs in self.needs),
        )

    def bind(self, student: Network, describe: Callable[[Network], Binding], seed: int) -> Network:
        """Bind every loss to this training; returns the student to train.

        Args:
            describe: what there is to bind to, for a student.
            seed: of the learned parts.

        Raises:
            InvalidInput: shapes do not fit, or two losses would change what the student is.
        """
        losses = [term.loss for term in self.terms]
        dressing = [loss for loss in losses if loss.dresses]
        if len(dressing) > 1:
            names = " and ".join(map(loss_name, dressing))
            raise InvalidInput(f"{names} would each change what the student is; give one of them")
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(Moment(seed=seed).generator("learned parts").initial_seed())
            for loss in dressing:
                loss.bind(describe(student))
                student = loss.dress(student)
            binding = describe(student)
            for loss in losses:
                if not loss.dresses:
                    loss.bind(binding)
        return student

    def require_room(self, binding: Binding, batch_size: int, free_bytes: float) -> None:
        """Raise `InvalidInput` if the differences of all pairs of a batch do not fit into memory."""
        if not isinstance(self.comparison, AllPairs):
            return
        made = [term for term in self.terms if term.compared and not term.loss.has_closed_form]
        shapes = [shape for term in made for pair in binding.shapes(term.loss.pairs) for shape in pair]
        # Float32, and as much again for each of: gradient, what the loss keeps, its gradient.
        needed = batch_size**2 * 16 * sum(map(math.prod, shapes))
        if needed > free_bytes / 2:
            names = ", ".join(loss_name(term.loss) for term in made)
            raise InvalidInput(
                f"{names} of all {batch_size}^2 pairs of a batch would take {needed / 1e9:.1f} GB, and "
                f"{free_bytes / 1e9:.1f} GB are free; compare sampled pairs, or lower --batch-size"
            )

    def prepare(self, teacher: TeacherRows, moment: Moment) -> None:
        """Train what losses learn from stored answers alone, before the first step."""
        for term in self.terms:
            term.loss.prepare(teacher, moment)

    def sampling_of(self, num_views: int) -> Sampling:
        """How batches are drawn from a store with so many views of each image."""
        if not any(needs.views for needs in self.needs):
            return self.sampling
        if not isinstance(self.sampling, (EpochSampling, ClassSampling)):
            raise InvalidInput(f"{self.name} needs all views of single images, which compared batches do not have")
        return AllViews(self.sampling, num_views)

    def describe(self) -> dict[str, Any]:
        """Everything that makes this recipe what it is, in plain values."""
        return {
            "losses": [term.describe() for term in self.terms],
            "sampling": _described(self.sampling),
            "comparison": _described(self.comparison),
            "mixing": _described(self.mixing),
            "anchored": self.is_anchored,
        }

    @property
    def learned(self) -> nn.ModuleList:
        """Every loss as a module, for the optimizer and the checkpoint."""
        return nn.ModuleList(term.loss for term in self.terms)

    def loss(self, signals: Signals, parts: Sequence[Part] = ()) -> Tensor:
        """The weighted sum of all terms, a float32 scalar.

        Args:
            parts: what mixed inputs are made of; empty for plain ones.
        """
        if not parts:
            return self._loss(signals)
        device = signals.labels.device
        losses = [part.share * self._loss(signals.reordered(part.order.to(device))) for part in parts]
        return torch.stack(losses).sum()

    def _loss(self, signals: Signals) -> Tensor:
        total = torch.zeros((), device=signals.student.logits.device)
        compared: dict[bool, Signals] = {}
        for term in self.terms:
            given = standardised(signals) if term.standardised else signals
            if not term.compared:
                total = total + term.weight * _scalar(term.loss, term.loss(given))
                continue
            assert self.comparison is not None
            value = term.loss.over_all_pairs(given) if isinstance(self.comparison, AllPairs) else None
            if value is None:
                if term.standardised not in compared:
                    compared[term.standardised] = self.comparison(given.only(self._compared_pairs))
                value = term.loss(compared[term.standardised])
            total = total + term.weight * _scalar(term.loss, value)
        return total

    @property
    def _compared_pairs(self) -> list[LayerPair]:
        """Outputs that compared terms read: differences of others would be made for nothing."""
        return [pair for term in self.terms if term.compared for pair in term.loss.pairs]

    def logit_target(self, signals: Signals) -> Tensor | None:
        """Weighted mean of what the terms pull single samples' logits to, (B, K); None if none of them says."""
        said = [(term.weight, term.logit_target(signals)) for term in self.terms]
        targets = [(weight, target) for weight, target in said if target is not None]
        total = sum(weight for weight, _ in targets)
        if not total:
            return None
        return torch.stack([weight * target for weight, target in targets]).sum(dim=0) / total


def _scalar(loss: DistillationLoss, value: Tensor) -> Tensor:
    if not isinstance(value, Tensor) or value.dim():
        found = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise InvalidInput(f"{loss_name(loss)} gave {found} where a scalar tensor is needed; take its mean or sum")
    return value


def standardised(signals: Signals) -> Signals:
    """The same with both sides' logits of mean 0 and deviation 1 in each row."""
    teacher = signals.teacher
    return replace(
        signals,
        student=replace(signals.student, logits=standardise(signals.student.logits)),
        teacher=None if teacher is None else replace(teacher, logits=standardise(teacher.logits)),
    )


def _described(part: Sampling | Comparison | Mixing | None) -> dict[str, Any] | None:
    # Each is a dataclass; asdict cannot know that from the abstract class.
    return None if part is None else {"kind": type(part).__name__, **asdict(part)}  # type: ignore[arg-type]


# Ways to pair samples


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


def _pairing(settings: Settings) -> Pairing:
    pairing = settings.build(PAIRINGS[settings.take_choice("pairs", "kind of pairs", PAIRINGS, "sampled")])
    settings.refuse(argument_names(sampled), "belongs to pairs=sampled; leave it out with pairs=all")
    return pairing


# The methods of the paper


@dataclass(frozen=True, slots=True, kw_only=True)
class _Weights:
    """What the losses of a recipe are multiplied by."""

    weight: float
    ce: float
    kd: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _CKDWeights:
    logits: float = 1.0
    labels: float = 1.0


def _vanilla(_: Settings) -> Method:
    return Method("vanilla", (Term(CrossEntropy()),))


def _recipe(name: str, loss_class: type[DistillationLoss]) -> Callable[[Settings], Method]:
    """Cross-entropy, KD and a loss, by the weights of its published results."""

    def make(settings: Settings) -> Method:
        recipe = loss_class.recipe
        weights = settings.build(_Weights, weight=recipe.weight, ce=recipe.ce, kd=recipe.kd)
        terms = (*_baseline(weights), Term(settings.build(loss_class), weights.weight))
        if recipe.per_class:
            return Method(name, terms, settings.build(ClassSampling, per_class=recipe.per_class))
        return Method(name, terms)

    return make


def _baseline(weights: _Weights) -> tuple[Term, ...]:
    return Term(CrossEntropy(), weights.ce), Term(KD(), weights.kd)


def _with_crd(name: str, loss_class: type[DistillationLoss]) -> Callable[[Settings], Method]:
    """A white-box loss and CRD, added."""

    def make(settings: Settings) -> Method:
        recipe = loss_class.recipe
        weights = settings.build(_Weights, weight=recipe.weight, ce=recipe.ce, kd=recipe.kd)
        crd = Term(settings.build(CRD), settings.take("crd", CRD.recipe.weight))
        return Method(name, (*_baseline(weights), Term(settings.build(loss_class), weights.weight), crd))

    return make


def _ckd(name: str, loss_class: type[DistillationLoss] | None = None) -> Callable[[Settings], Method]:
    """Compared logits and compared labels; with a white-box loss, that one on compared maps (eq. 5)."""

    def make(settings: Settings) -> Method:
        pairing, weights = _pairing(settings), settings.build(_CKDWeights)
        terms = [Term(MatchLogits(), weights.logits, compared=True), Term(MatchLabels(), weights.labels, compared=True)]
        if loss_class is not None:
            weight = settings.take("weight", loss_class.recipe.weight)
            terms.append(Term(settings.build(loss_class), weight, compared=True))
        return Method(name, tuple(terms), pairing.sampling, pairing.comparison, anchor=pairing.anchor)

    return make


def _rkd_d(settings: Settings) -> Method:
    """Cross-entropy and the comparison of pooled logit differences."""
    dims, pairing = settings.take("dims", 10), _pairing(settings)
    weights = settings.build(_Weights, weight=1.0, ce=1.0, kd=0.0)
    terms = (*_baseline(weights), Term(MatchLogits(dims), weights.weight, compared=True))
    return Method("rkd_d", terms, pairing.sampling, pairing.comparison, anchor=pairing.anchor)


def _mixed(name: str, mixing: type[Mixing], **defaults: Any) -> Callable[[Settings], Method]:
    """Cross-entropy of mixed inputs with the mixed labels, and with the mixed teacher probabilities."""

    def make(settings: Settings) -> Method:
        weights = settings.build(_Weights, weight=1.0, ce=1.0, kd=0.0)
        chosen = settings.build(mixing, **defaults)
        terms = (*_baseline(weights), Term(settings.build(SoftCrossEntropy), weights.weight))
        return Method(name, terms, mixing=chosen)

    return make


METHODS: dict[str, Callable[[Settings], Method]] = {
    "vanilla": _vanilla,
    "mixup": _mixed("mixup", Mixup),
    "mixup3": _mixed("mixup3", Mixup, images=3),
    "cutmix": _mixed("cutmix", CutMix),
    "ckd": _ckd("ckd"),
    "rkd_d": _rkd_d,
    "fitnets": _recipe("fitnets", Hint),
    "fitnets+crd": _with_crd("fitnets+crd", Hint),
    "vid+crd": _with_crd("vid+crd", VID),
    "fitnets+ckd": _ckd("fitnets+ckd", Hint),
    "vid+ckd": _ckd("vid+ckd", VID),
    "cc+ckd": _ckd("cc+ckd", CC),
}


def method_names() -> list[str]:
    """What `--method` takes: the paper's methods, and every loss by its recipe."""
    return list(dict.fromkeys([*METHODS, *loss_names()]))


def parse_method(text: str) -> Method:
    """A named method with its settings, for instance "ckd:pairs=all".

    Raises:
        UnknownName, InvalidInput: there is no such method or setting, or a value is refused.
    """
    name, values = split_spec(text)
    settings = Settings("method", name, values)
    if name in METHODS:
        make = METHODS[name]
    elif name in loss_names():
        make = _recipe(name, find_loss(name))
    else:
        raise UnknownName("method", name, method_names())
    method = make(settings)
    settings.finish()
    return method


def parse_losses(specs: Sequence[str], pairing: str | None = None) -> Method:
    """The user's own sum of losses.

    Args:
        specs: as "kd:temperature=4,weight=0.9"; `weight`, `compared` and `standardised` are understood for every loss,
            and "package.module:Class:key=value" is a loss of the user's own.
        pairing: how compared losses pair samples, as "sampled:positives=2" or "all"; None is "sampled".
    """
    terms = tuple(_parse_term(spec) for spec in specs)
    name = "+".join(specs)
    if not any(term.compared for term in terms):
        if pairing is not None:
            raise InvalidInput("--comparison is for losses with compared=true, and there is none; leave it out")
        return Method(name, terms)
    kind, values = split_spec(pairing or "sampled")
    if kind not in PAIRINGS:
        raise UnknownName("comparison", kind, PAIRINGS)
    settings = Settings("comparison", kind, values)
    chosen = settings.build(PAIRINGS[kind])
    settings.finish()
    return Method(name, terms, chosen.sampling, chosen.comparison, anchor=chosen.anchor)


def _parse_term(spec: str) -> Term:
    name, values = split_spec(spec)
    settings = Settings("loss", name, values)
    weight = settings.take("weight", 1.0)
    flags = {flag: settings.take(flag, False) for flag in ("compared", "standardised")}
    loss_class = find_loss(name)
    taken = set(TERM_SETTINGS).intersection(argument_names(loss_class))
    if taken:
        raise InvalidInput(
            f"the loss {name} has an argument {taken.pop()}, which every loss takes with another meaning; rename it"
        )
    loss = settings.build(loss_class)
    settings.finish()
    return Term(loss, weight, **flags)
