"""Recipes: the methods of the paper, one of ours, and any loss added to cross-entropy and KD by its usual weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ground.spec import Settings
from student_train.losses import DistillationLoss
from student_train.losses.correlation import CC
from student_train.losses.crd import CRD
from student_train.losses.hint import Hint
from student_train.losses.soft_targets import SoftCrossEntropy
from student_train.losses.vid import VID
from student_train.method_spec import LossSpec, MethodSpec
from student_train.mixing import CutMix, Mixing, Mixup
from student_train.pairing import chosen_pairing
from student_train.sampling import ClassSampling

Recipe = Callable[[Settings], MethodSpec]


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


def _vanilla(_: Settings) -> MethodSpec:
    return MethodSpec("vanilla", (LossSpec("ce"),))


def published(name: str, kind: type[DistillationLoss]) -> Recipe:
    """Cross-entropy, KD and a loss, by the weights of its published results."""

    def make(settings: Settings) -> MethodSpec:
        weights = _published_weights(settings, kind)
        losses = (*_baseline(weights), LossSpec.from_settings(kind, settings, weights.weight))
        if kind.recipe.per_class:
            return MethodSpec(name, losses, settings.build(ClassSampling, per_class=kind.recipe.per_class))
        return MethodSpec(name, losses)

    return make


def _published_weights(settings: Settings, kind: type[DistillationLoss]) -> _Weights:
    return settings.build(_Weights, weight=kind.recipe.weight, ce=kind.recipe.ce, kd=kind.recipe.kd)


def _baseline(weights: _Weights) -> tuple[LossSpec, ...]:
    return LossSpec("ce", weight=weights.ce), LossSpec("kd", weight=weights.kd)


def _with_crd(name: str, kind: type[DistillationLoss]) -> Recipe:
    """A white-box loss and CRD, added."""

    def make(settings: Settings) -> MethodSpec:
        weights = _published_weights(settings, kind)
        crd = LossSpec.from_settings(CRD, settings, settings.take("crd", CRD.recipe.weight))
        return MethodSpec(name, (*_baseline(weights), LossSpec.from_settings(kind, settings, weights.weight), crd))

    return make


def _ckd(name: str, kind: type[DistillationLoss] | None = None, *, anchored: bool = True) -> Recipe:
    """Compared logits and compared labels; with a white-box loss, that one on compared maps (eq. 5).

    Args:
        anchored: false for the published form, which leaves the level of the logits to chance.
    """

    def make(settings: Settings) -> MethodSpec:
        if not anchored:
            settings.refuse(["anchor"], "is what it does without; take ckd for the anchored form")
        pairing, weights = chosen_pairing(settings), settings.build(_CKDWeights)
        losses = [
            LossSpec("match_logits", weight=weights.logits, compared=True),
            LossSpec("match_labels", weight=weights.labels, compared=True),
        ]
        if kind is not None:
            weight = settings.take("weight", kind.recipe.weight)
            losses.append(LossSpec.from_settings(kind, settings, weight, compared=True))
        return MethodSpec(name, tuple(losses), pairing.sampling, pairing.comparison, anchor=anchored and pairing.anchor)

    return make


def _kd_ckd(settings: Settings) -> MethodSpec:
    """Cross-entropy, KD, and the comparison of logits that are standardised first (docs/study.md, "One that holds on
    both").
    """
    pairing, weights = chosen_pairing(settings, "all"), settings.build(_Weights, weight=4.0, ce=1.0, kd=1.0)
    matched = LossSpec("match_logits", weight=weights.weight, compared=True, standardised=True)
    losses = (*_baseline(weights), matched)
    return MethodSpec("kd+ckd", losses, pairing.sampling, pairing.comparison, anchor=pairing.anchor)


def _rkd_d(settings: Settings) -> MethodSpec:
    """Cross-entropy and the comparison of pooled logit differences."""
    dims, pairing = settings.take("dims", 10), chosen_pairing(settings)
    weights = settings.build(_Weights, weight=1.0, ce=1.0, kd=0.0)
    matched = LossSpec("match_logits", (("dims", dims),), weights.weight, compared=True)
    losses = (*_baseline(weights), matched)
    return MethodSpec("rkd_d", losses, pairing.sampling, pairing.comparison, anchor=pairing.anchor)


def _mixed(name: str, mixing: type[Mixing], **defaults: Any) -> Recipe:
    """Cross-entropy of mixed inputs with the mixed labels, and with the mixed teacher probabilities."""

    def make(settings: Settings) -> MethodSpec:
        weights = settings.build(_Weights, weight=1.0, ce=1.0, kd=0.0)
        chosen = settings.build(mixing, **defaults)
        losses = (*_baseline(weights), LossSpec.from_settings(SoftCrossEntropy, settings, weights.weight))
        return MethodSpec(name, losses, mixing=chosen)

    return make


METHODS: dict[str, Recipe] = {
    "vanilla": _vanilla,
    "mixup": _mixed("mixup", Mixup),
    "mixup3": _mixed("mixup3", Mixup, images=3),
    "cutmix": _mixed("cutmix", CutMix),
    "ckd": _ckd("ckd"),
    "ckd_paper": _ckd("ckd_paper", anchored=False),
    "rkd_d": _rkd_d,
    "fitnets": published("fitnets", Hint),
    "fitnets+crd": _with_crd("fitnets+crd", Hint),
    "vid+crd": _with_crd("vid+crd", VID),
    "fitnets+ckd": _ckd("fitnets+ckd", Hint),
    "vid+ckd": _ckd("vid+ckd", VID),
    "cc+ckd": _ckd("cc+ckd", CC),
    "kd+ckd": _kd_ckd,
}
