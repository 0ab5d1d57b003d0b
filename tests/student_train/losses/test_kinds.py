"""What every loss of the catalogue makes of every kind of answers, held against what it makes of full logits."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models import Representation
from storage.answers import AnswerForm, Kind, MissingMass
from student_train.bound_method import BoundMethod
from student_train.comparison import AllPairs, Comparison, GroupComparison
from student_train.dense_answers import dense_answers, output_of_ids
from student_train.losses import LOSSES, DistillationLoss
from student_train.losses.kinds import ORDER, Kinds, kind_of, why_not
from student_train.method_spec import MethodSpec
from student_train.methods import parse_losses
from student_train.reading import centred
from student_train.signals import Signals
from tests.student_train.losses.checks import binding_for, drawn, signals_for

CLASSES, BATCH = 5, 6
LOG_PROBS, PROBABILITIES, LABEL = (AnswerForm(kind=kind) for kind in (Kind.LOG_PROBS, Kind.PROBABILITIES, Kind.LABEL))
# With which settings they read answers over the classes, where that is not what they do anyway.
ON_LOGITS = {
    "cc": "cc:on=logits,dims=4",
    "pkt": "pkt:on=logits",
    "srd": "srd:on=logits",
    "vkd": "vkd:on=logits,norm=batch",  # the other norm is of each row, and takes its mean off by itself
    "sp": "sp:layers=logits",
    "dist_plus": "dist_plus:layers=logits",
    "reviewkd": "reviewkd:layers=logits,mid_channels=4",
    "crd": "crd:negatives=8,embedding=4",
}
READERS = [name for name, kind in LOSSES.items() if kind.kinds.uses]
LEVEL_FREE = [name for name in READERS if LOSSES[name].kinds.uses[Kind.LOG_PROBS].meaning == "as logits"]


def top_k(kept: int, rule: MissingMass = MissingMass.SPREAD) -> AnswerForm:
    return AnswerForm(kind=Kind.TOP_K, k=kept, missing=rule)


def said(form: AnswerForm, logits: Tensor) -> dict[str, Tensor]:
    """What a store of this form keeps of some logits (B, K)."""
    log_probs = logits.log_softmax(dim=1)
    if form.kind is Kind.TOP_K:
        values, ids = log_probs.topk(form.k, dim=1)
        return {"top_k.ids": ids, "top_k.values": values}
    if form.kind is Kind.SAMPLED:
        ids = torch.multinomial(log_probs.exp(), form.k, replacement=True, generator=torch.Generator().manual_seed(0))
        return {"sampled.ids": ids, "sampled.weights": torch.full_like(ids, 1 / form.k, dtype=logits.dtype)}
    return {
        Kind.LOGITS: {"logits": logits},
        Kind.LOG_PROBS: {"log_probs": log_probs},
        Kind.PROBABILITIES: {"probabilities": log_probs.exp()},
        Kind.LABEL: {"label": logits.argmax(dim=1)},
    }[form.kind]


def answered(signals: Signals, form: AnswerForm) -> Signals:
    """The same with the teacher's logits as a store of this form gives them."""
    kept = said(form, signals.teacher.logits)
    teacher = replace(signals.teacher, logits=dense_answers(form, kept, CLASSES).to(signals.teacher.logits))
    return replace(signals, teacher=teacher, ids=kept.get(output_of_ids(form)))


def with_teacher(signals: Signals, logits: Tensor) -> Signals:
    return replace(signals, teacher=replace(signals.teacher, logits=logits))


class Case:
    """A loss, bound, with signals in float64."""

    def __init__(self, spec: str, comparison: Comparison | None = None, seed: int = 0) -> None:
        (term,) = parse_losses([spec]).losses if comparison is None else parse_losses([f"{spec}"], "sampled").losses
        self.spec = MethodSpec(spec, (term,), comparison=comparison)
        self.loss: DistillationLoss = term.make()
        views = 2 if self.loss.needs.views else 1
        binding = binding_for({}, {}, classes=CLASSES, views=views)
        torch.manual_seed(0)
        self.loss.bind(binding)
        self.loss.double()
        self.signals = signals_for(binding, BATCH, seed)
        double = (
            side.map(lambda tensor: tensor.detach().double()) for side in (self.signals.student, self.signals.teacher)
        )
        student, teacher = double
        self.signals = replace(self.signals, student=student, teacher=teacher)

    def cost(self, signals: Signals, form: AnswerForm | None = None) -> tuple[Tensor, Tensor]:
        """What the method costs, and the gradient towards the student's logits; the loss remembers nothing of it."""
        logits = signals.student.logits.clone().requires_grad_()
        given = replace(signals, student=Representation(logits, signals.student.features))
        bound = BoundMethod(self.spec, [deepcopy(self.loss)], form)
        bound.learned.double()
        total = bound.losses(given).total
        (gradient,) = torch.autograd.grad(total, logits)
        return total.detach(), gradient


def assert_same(found: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor], atol: float = 1e-6) -> None:
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=atol)


def read_as(name: str) -> str:
    return ON_LOGITS.get(name, name)


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_says_of_every_kind_what_it_makes_of_it_or_why_not(name):
    assert any("kinds" in vars(kind) for kind in LOSSES[name].__mro__[:2]), "declared by nobody but the base"
    assert isinstance(LOSSES[name].kinds, Kinds)
    loss = LOSSES[name]()
    for kind in ORDER:
        form = AnswerForm(
            kind=Kind.TOP_K if isinstance(kind, MissingMass) else kind,
            k=2 if isinstance(kind, MissingMass) or kind is Kind.SAMPLED else None,
            missing=kind if isinstance(kind, MissingMass) else None,
        )
        assert kind_of(form) is kind
        reason = why_not(loss, form, compared=False, standardised=False)
        assert (reason is None) == (kind in loss.kinds.uses and loss.kinds.uses[kind].fits(loss))
        assert reason != "its class does not say how"


def test_what_reads_logits_by_default_declares_uses():
    asking = {name for name, kind in LOSSES.items() if kind().needs.answers}
    assert asking <= set(READERS)
    assert set(READERS) - asking == set(ON_LOGITS) - {"crd"}


@pytest.mark.parametrize("name", LEVEL_FREE)
@pytest.mark.parametrize("seed", [0, 1])
def test_a_number_added_to_a_row_of_the_teacher_changes_nothing(name, seed):
    """The reason why log-probabilities are as good as logits; of the formula itself, before anything is centred."""
    case = Case(read_as(name), seed=seed)
    teacher = case.signals.teacher.logits
    moved = with_teacher(case.signals, teacher + 10 * drawn(seed + 7, len(teacher), 1))
    assert_same(case.cost(moved), case.cost(case.signals))


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("form", [LOG_PROBS, PROBABILITIES], ids=lambda form: form.kind)
def test_log_probabilities_give_what_logits_do_or_centred_ones(name, form):
    case = Case(read_as(name))
    expected = case.signals
    if name not in LEVEL_FREE:
        sides = (replace(side, logits=centred(side.logits)) for side in (expected.student, expected.teacher))
        expected = replace(expected, **dict(zip(("student", "teacher"), sides, strict=True)))
    value, gradient = case.cost(expected)
    # Towards what the student says, whose rows are centred on the way.
    gradient = gradient if name in LEVEL_FREE else centred(gradient)
    assert_same(case.cost(answered(case.signals, form), form), (value, gradient))


@pytest.mark.parametrize("name", [name for name in READERS if name not in LEVEL_FREE])
def test_what_is_centred_would_change_with_the_level(name):
    """Else it should say that it gives what logits do."""
    case = Case(read_as(name))
    teacher = case.signals.teacher.logits
    moved = with_teacher(case.signals, teacher + 10 * drawn(7, len(teacher), 1))
    assert not torch.allclose(case.cost(moved)[0], case.cost(case.signals)[0], rtol=1e-3, atol=1e-6)


COMPARABLE = [name for name in READERS if LOSSES[name]().needs.comparable]


@pytest.mark.parametrize("name", COMPARABLE)
@pytest.mark.parametrize(
    "comparison", [GroupComparison(), GroupComparison(2, 1), AllPairs()], ids=["1+1", "2+1", "all"]
)
def test_comparisons_of_log_probabilities_are_those_of_centred_logits(name, comparison):
    case = Case(f"{read_as(name)}{',' if ':' in read_as(name) else ':'}compared=true", comparison)
    sides = (replace(side, logits=centred(side.logits)) for side in (case.signals.student, case.signals.teacher))
    expected = replace(case.signals, **dict(zip(("student", "teacher"), sides, strict=True)))
    value, gradient = case.cost(expected)
    found = case.cost(answered(case.signals, LOG_PROBS), LOG_PROBS)
    assert_same(found, (value, centred(gradient)))


def test_ckd_of_log_probabilities_is_ckd_with_centred_logits_and_labels_as_they_are():
    losses = ["match_logits:compared=true", "match_labels:compared=true"]
    spec = replace(parse_losses(losses, "sampled"), comparison=GroupComparison())
    signals = Case("match_logits").signals

    def total(given: Signals, form: AnswerForm | None = None) -> Tensor:
        return BoundMethod(spec, [term.make() for term in spec.losses], form).losses(given).terms

    found = total(answered(signals, LOG_PROBS), LOG_PROBS)
    plus, minus = slice(0, 3), slice(3, 6)
    ours, theirs = (centred(side.logits) for side in (signals.student, signals.teacher))
    labels = F.one_hot(signals.labels, CLASSES).double()
    logits = signals.student.logits
    first = ((ours[plus] - ours[minus]) - (theirs[plus] - theirs[minus])).square().mean()
    second = ((logits[plus] - logits[minus]) - (labels[plus] - labels[minus])).square().mean()
    torch.testing.assert_close(found, torch.stack([first, second]))


@pytest.mark.parametrize("name", READERS)
def test_a_top_k_of_all_classes_is_their_log_probabilities(name):
    case = Case(read_as(name))
    expected = case.cost(answered(case.signals, LOG_PROBS), LOG_PROBS)
    form = top_k(CLASSES)
    assert_same(case.cost(answered(case.signals, form), form), expected, atol=0)


AMONG_NAMED = [name for name in READERS if MissingMass.RENORMALISE in LOSSES[name].kinds.uses]


@pytest.mark.parametrize("name", AMONG_NAMED)
def test_among_all_classes_nothing_is_left_to_normalise(name):
    """In another order of the classes, which no such loss sees."""
    case = Case({"dist": "dist:gamma=0"}.get(name, name))
    form = top_k(CLASSES, MissingMass.RENORMALISE)
    expected = case.cost(answered(case.signals, LOG_PROBS), LOG_PROBS)
    assert_same(case.cost(answered(case.signals, form), form), expected)


@pytest.mark.parametrize("name", AMONG_NAMED)
def test_renormalised_is_the_loss_of_the_named_classes(name):
    case = Case({"dist": "dist:gamma=0"}.get(name, name))
    form = top_k(3, MissingMass.RENORMALISE)
    given = answered(case.signals, form)
    named = [centred(side.logits.gather(1, given.ids)) for side in (case.signals.student, case.signals.teacher)]
    signals = replace(case.signals, student=Representation(named[0], {}), teacher=Representation(named[1], {}))
    assert_same((case.cost(given, form)[0],), (case.cost(signals)[0],))


@pytest.mark.parametrize("rule", [MissingMass.ZERO, None])
def test_the_sum_over_few_classes_is_that_of_weights(rule):
    form = AnswerForm(kind=Kind.SAMPLED, k=12) if rule is None else top_k(2, rule)
    for name, own in (("kd:temperature=1", True), ("soft_ce", False)):
        case = Case(name)
        kept = said(form, case.signals.teacher.logits)
        ids, weights = kept.get("top_k.ids", kept.get("sampled.ids")), kept.get("sampled.weights")
        weights = kept["top_k.values"].exp() if weights is None else weights
        ours = case.signals.student.logits.log_softmax(dim=1).gather(1, ids)
        expected = -(weights * ours).sum(dim=1).mean()
        if own:
            dense = torch.zeros(BATCH, CLASSES, dtype=torch.float64).scatter_add(1, ids, weights)
            expected = expected + torch.special.xlogy(dense, dense).sum(dim=1).mean()
        torch.testing.assert_close(case.cost(answered(case.signals, form), form)[0], expected)


CERTAIN = [name for name in READERS if name != "match_logits" and Kind.LABEL in LOSSES[name].kinds.uses]


@pytest.mark.parametrize("name", CERTAIN)
def test_a_label_is_what_a_teacher_says_that_is_sure(name):
    case = Case(name)
    sure = with_teacher(case.signals, 1e6 * F.one_hot(case.signals.teacher.logits.argmax(dim=1), CLASSES).double())
    assert_same(case.cost(answered(case.signals, LABEL), LABEL), case.cost(sure))


def test_kd_of_a_label_is_its_cross_entropy():
    case = Case("kd:temperature=4")
    labels = case.signals.teacher.logits.argmax(dim=1)
    expected = 16 * F.cross_entropy(case.signals.student.logits / 4, labels)
    torch.testing.assert_close(case.cost(answered(case.signals, LABEL), LABEL)[0], expected)


@pytest.mark.parametrize("comparison", [None, GroupComparison(), AllPairs()], ids=["alone", "pairs", "all"])
def test_matched_with_labels_of_the_teacher_logits_are_matched_as_with_those_of_the_data(comparison):
    suffix = "" if comparison is None else ":compared=true"
    case = Case(f"match_logits{suffix}", comparison)
    of_the_data = replace(case.signals, labels=case.signals.teacher.logits.argmax(dim=1))
    expected = Case(f"match_labels{suffix}", comparison).cost(of_the_data)
    assert_same(case.cost(answered(case.signals, LABEL), LABEL), expected)


@pytest.mark.parametrize(
    ("spec", "form", "reason"),
    [
        ("kd", AnswerForm(kind=Kind.SAMPLED, k=4), "it can with temperature=1 only"),
        ("kd", top_k(2, MissingMass.ZERO), "it can with temperature=1 only"),
        ("dist", top_k(2, MissingMass.RENORMALISE), "it can with gamma=0 only"),
        ("dist", AnswerForm(kind=Kind.SAMPLED, k=4), "it is not linear in the teacher's probabilities"),
        ("dkd", top_k(2, MissingMass.RENORMALISE), "it asks for the class of the label"),
        ("rkd", LABEL, "it reads a logit of every class"),
        ("mlkd", top_k(2, MissingMass.RENORMALISE), "it needs the same classes of every sample"),
        ("jsd", top_k(2, MissingMass.ZERO), "it needs probabilities that sum to 1"),
        ("dkd", LABEL, "it learns from what the teacher says of the other classes"),
        ("hint", LOG_PROBS, "it is made for layers"),
    ],
)
def test_the_reason_for_a_refusal_is_the_theory(spec, form, reason):
    loss = parse_losses([spec]).losses[0].make()
    assert why_not(loss, form, compared=False, standardised=False).startswith(reason)


def test_comparing_and_standardising_need_numbers_of_every_class():
    (kd,) = (term.make() for term in parse_losses(["kd:temperature=1"]).losses)
    for form in (top_k(2, MissingMass.RENORMALISE), top_k(2, MissingMass.ZERO), LABEL):
        assert why_not(kd, form, compared=True, standardised=False).startswith("differences between samples need")
    for form in (top_k(2, MissingMass.ZERO), AnswerForm(kind=Kind.SAMPLED, k=2), LABEL):
        assert why_not(kd, form, compared=False, standardised=True).startswith("rows of zeros")
    for form in (LOG_PROBS, top_k(2)):
        assert why_not(kd, form, compared=True, standardised=True) is None


def test_a_users_loss_of_logits_is_given_centred_rows():
    class Own(DistillationLoss):
        """Squared."""

        name = "own"

        def forward(self, signals: Signals) -> Tensor:
            student, teacher = self.logits(signals)
            return (student - teacher).square().mean()

    assert why_not(Own(), LOG_PROBS, compared=True, standardised=False) is None
    assert why_not(Own(), LABEL, compared=False, standardised=False) is not None
