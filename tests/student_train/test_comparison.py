"""Comparison as a transformation: any loss on differences, the fast path equal to the plain one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ground.errors import InvalidInput, UnknownName
from models import Representation
from student_train.bound_method import BoundMethod
from student_train.comparison import AllPairs, GroupComparison
from student_train.losses.kd import KD
from student_train.losses.match import MatchLabels, MatchLogits
from student_train.method_spec import LossSpec, MethodSpec
from student_train.methods import parse_losses, parse_method
from student_train.needs import Wanted
from student_train.sampling import EpochSampling, GroupSampling
from student_train.signals import Moment, Signals

CLASSES = 4


def unbound(spec: MethodSpec) -> BoundMethod:
    """A method whose losses need nothing but logits and labels."""
    return BoundMethod(spec, [loss.make() for loss in spec.losses])


def loss_of(spec: MethodSpec, given_signals: Signals) -> torch.Tensor:
    return unbound(spec).losses(given_signals).total


def signals(seed: int, samples: int) -> Signals:
    generator = torch.Generator().manual_seed(seed)

    def representation() -> Representation:
        logits = torch.randn(samples, CLASSES, generator=generator, dtype=torch.float64)
        layer = torch.randn(samples, 3, 2, 2, generator=generator, dtype=torch.float64)
        return Representation(logits=logits, features={"layer1": layer})

    labels = torch.randint(0, CLASSES, (samples,), generator=generator)
    return Signals(representation(), representation(), labels, torch.arange(samples))


def test_the_difference_of_two_maps_stays_in_their_layout():
    maps = torch.randn(6, 3, 4, 4).contiguous(memory_format=torch.channels_last)
    found = GroupComparison().compare(maps, Moment())
    assert torch.equal(found, maps[:3] - maps[3:])
    # A regressor after it, as that of fitnets, works on it as it is.
    assert found.is_contiguous(memory_format=torch.channels_last)


@given(
    seed=st.integers(0, 1000),
    groups=st.integers(1, 4),
    positives=st.integers(1, 3),
    negatives=st.integers(1, 3),
)
def test_a_group_is_mean_of_positives_minus_mean_of_negatives(seed, groups, positives, negatives):
    given_signals = signals(seed, groups * (positives + negatives))
    compared = GroupComparison(positives, negatives)(given_signals)
    one_hot = np.eye(CLASSES)[given_signals.labels]
    for group in range(groups):
        ours = [group * positives + place for place in range(positives)]
        theirs = [groups * positives + group * negatives + place for place in range(negatives)]
        for before, after in [
            (given_signals.student.logits, compared.student.logits),
            (given_signals.teacher.logits, compared.teacher.logits),
            (given_signals.student.features["layer1"], compared.student.features["layer1"]),
            (torch.from_numpy(one_hot), compared.labels),
        ]:
            expected = before[ours].numpy().mean(axis=0) - before[theirs].numpy().mean(axis=0)
            np.testing.assert_allclose(after[group].numpy(), expected, atol=1e-12)


@given(seed=st.integers(0, 1000), samples=st.integers(1, 6))
def test_all_pairs_lists_every_ordered_pair(seed, samples):
    given_signals = signals(seed, samples)
    compared = AllPairs()(given_signals)
    logits = given_signals.student.logits
    expected = [logits[i] - logits[j] for i in range(samples) for j in range(samples)]
    torch.testing.assert_close(compared.student.logits, torch.stack(expected))


@given(seed=st.integers(0, 1000), samples=st.integers(1, 8))
def test_ckd_over_all_pairs_equals_the_plain_path(seed, samples):
    """The closed form against the B * B differences themselves."""
    given_signals = signals(seed, samples)
    fast = loss_of(parse_method("ckd:pairs=all,logits=0.7,labels=1.3"), given_signals)
    compared = AllPairs()(given_signals)
    plain = 0.7 * MatchLogits()(compared) + 1.3 * MatchLabels()(compared)
    torch.testing.assert_close(fast, plain, rtol=1e-9, atol=1e-12)


def test_any_loss_can_be_put_on_comparisons():
    given_signals = signals(0, 6)
    compared = GroupComparison(2, 1)(given_signals)
    method = parse_losses(["kd:temperature=2,weight=0.5,compared=true"], "sampled:positives=2,negatives=1")
    torch.testing.assert_close(loss_of(method, given_signals), 0.5 * KD(2.0)(compared))
    assert method.sampling == GroupSampling(2, 1)
    # A loss without a closed form sees the pairs themselves.
    paired = parse_losses(["kd:compared=true"], "all")
    torch.testing.assert_close(loss_of(paired, given_signals), KD()(AllPairs()(given_signals)))


def test_the_named_methods_are_their_recipes():
    given_signals = signals(3, 6)
    logits, labels = given_signals.student.logits, given_signals.labels
    cross_entropy = torch.nn.functional.cross_entropy(logits, labels)
    torch.testing.assert_close(loss_of(parse_method("vanilla"), given_signals), cross_entropy)
    expected = cross_entropy + KD(4.0)(given_signals)
    torch.testing.assert_close(loss_of(parse_method("kd"), given_signals), expected)
    ckd = parse_method("ckd")
    assert ckd.sampling == GroupSampling(1, 1, joint=False)
    compared = GroupComparison(1, 1)(given_signals)
    torch.testing.assert_close(loss_of(ckd, given_signals), MatchLogits()(compared) + MatchLabels()(compared))
    assert not parse_method("vanilla").asks_teacher
    for name in ("kd", "ckd"):
        assert parse_method(name).wanted(["pooled"], ["pooled"]) == Wanted((), ("logits",), parameters=False)
    assert parse_method("ckd:pairs=all").sampling == EpochSampling()


def test_kd_and_standardised_comparison_are_added_over_all_pairs_of_a_batch():
    given_signals = signals(5, 7)
    student, teacher = (part.logits.numpy() for part in (given_signals.student, given_signals.teacher))

    def log_softmax(logits: np.ndarray) -> np.ndarray:
        return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))

    cross_entropy = -log_softmax(student)[np.arange(7), given_signals.labels.numpy()].mean()
    ours, theirs = log_softmax(student / 4), log_softmax(teacher / 4)
    kd = 16 * (np.exp(theirs) * (theirs - ours)).sum(axis=1).mean()
    z_ours, z_theirs = (
        (x - x.mean(axis=1, keepdims=True)) / x.std(axis=1, ddof=1, keepdims=True) for x in (student, teacher)
    )
    wrong = z_ours - z_theirs
    compared = ((wrong[:, None] - wrong[None, :]) ** 2).mean()
    method = parse_method("kd+ckd")
    found = loss_of(method, given_signals).item()
    np.testing.assert_allclose(found, cross_entropy + kd + 4 * compared, rtol=1e-5)
    assert (method.sampling, method.is_anchored) == (EpochSampling(), False)
    paired = parse_method("kd+ckd:pairs=sampled,weight=2")
    assert paired.sampling == GroupSampling(1, 1)
    assert [loss.weight for loss in paired.losses] == [1.0, 1.0, 2.0]


def test_what_comparisons_leave_open_is_recognised():
    assert parse_method("ckd").is_anchored
    assert parse_method("ckd:pairs=all").is_anchored
    assert not parse_method("ckd:anchor=false").is_anchored
    assert not parse_method("kd").is_anchored
    assert not parse_losses(["ce", "match_logits:compared=true"], "sampled").is_anchored


@given(seed=st.integers(0, 1000))
def test_the_level_of_the_logits_changes_no_comparison(seed):
    given_signals = signals(seed, 8)
    student = given_signals.student
    moved = Representation(logits=student.logits + torch.arange(CLASSES) * 10.0, features=student.features)
    shifted = Signals(moved, given_signals.teacher, given_signals.labels, given_signals.index)
    for spec in ("ckd", "ckd:positives=3", "ckd:pairs=all"):
        method = parse_method(spec)
        torch.testing.assert_close(loss_of(method, shifted), loss_of(method, given_signals), rtol=1e-9, atol=1e-9)


def test_the_level_comes_from_the_weighted_targets():
    given_signals = signals(5, 7)
    target = unbound(parse_method("ckd:logits=3,labels=1")).logit_target(given_signals)
    expected = (3 * given_signals.teacher.logits + given_signals.label_targets) / 4
    torch.testing.assert_close(target, expected)


@pytest.mark.parametrize(
    ("spec", "error", "message"),
    [
        ("ckdd", UnknownName, "no method is called 'ckdd'; did you mean ckd"),
        ("ckd:pear=all", UnknownName, "no setting of method ckd is called 'pear'"),
        ("ckd:pairs=som", UnknownName, "no kind of pairs is called 'som'"),
        ("ckd:pairs=all,positives=2", InvalidInput, "positives belongs to pairs=sampled; leave it out"),
        ("ckd:positives=0", InvalidInput, "at least 1 sample on each side"),
        ("ckd:positives=two", InvalidInput, "takes positives as int, got 'two'"),
        ("kd:temperature=inf", InvalidInput, "takes temperature as float"),
        ("ckd:logits=nan", InvalidInput, "takes logits as float"),
        ("ckd:logits=-1", InvalidInput, "finite number of at least 0"),
        ("ckd:logits=0,labels=0", InvalidInput, "has weight 0; nothing would be learned"),
        ("kd:temperature=0", InvalidInput, "temperature must be above 0"),
        ("kd:temperature", InvalidInput, "cannot read 'temperature'"),
        ("kd:temperature=1,temperature=2", InvalidInput, "each key once"),
        ("vanilla:x=1", UnknownName, "it has none"),
    ],
)
def test_a_method_that_cannot_be_understood_is_a_sentence(spec, error, message):
    with pytest.raises(error, match=message):
        parse_method(spec)


@pytest.mark.parametrize(
    ("spec", "error", "message"),
    [
        ("kdd", UnknownName, "no loss is called 'kdd'; did you mean kd"),
        ("kd:weight=heavy", InvalidInput, "takes weight as float, got 'heavy'"),
        ("kd:compared=perhaps", InvalidInput, "takes compared as bool, got 'perhaps'"),
        ("ce:compared=true", InvalidInput, "ce has no meaning on differences"),
    ],
)
def test_a_loss_that_cannot_be_understood_is_a_sentence(spec, error, message):
    with pytest.raises(error, match=message):
        parse_losses([spec])


def test_a_pairing_that_nothing_uses_is_refused():
    with pytest.raises(InvalidInput, match="there is none; leave it out"):
        parse_losses(["kd"], "all")


def test_a_recipe_tells_settings_apart_and_spellings_not():
    assert parse_method("ckd").describe() == parse_method("ckd:positives=1,pairs=sampled").describe()
    specs = ("kd", "kd:temperature=2", "ckd", "ckd:pairs=all", "ckd:anchor=false", "ckd:joint=true", "ckd:labels=2")
    assert len({str(parse_method(spec).describe()) for spec in specs}) == len(specs)
    one, other = (parse_losses(["kd:compared=true"], pairing) for pairing in ("all", "sampled:positives=2"))
    assert one.describe() != other.describe()


def test_terms_without_a_teacher_need_none():
    method = MethodSpec("labels", (LossSpec("match_labels", compared=True),), GroupSampling(), GroupComparison())
    alone = signals(1, 4)
    alone = Signals(alone.student, None, alone.labels, alone.index)
    assert loss_of(method, alone).isfinite()
    assert not method.asks_teacher
