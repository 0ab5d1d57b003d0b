"""DKD against its two divergences written out, and against KD, of which it is a reweighting."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import softmax

from ground.errors import InvalidInput
from student_train.losses.dkd import DKD, dkd, without_target
from student_train.losses.kd import kd
from student_train.signals import Moment
from tests.student_train.losses.checks import (
    assert_finite,
    assert_gradient_is_right,
    assert_is_a_loss,
    binding_for,
    drawn,
    logit_edges,
    signals_for,
)

SHAPES = [(6, 5), (1, 3), (4, 2), (3, 100)]


def labels_for(shape):
    return torch.arange(shape[0]) * 7 % shape[1]


def kl(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def parts(student, teacher, labels, temperature):
    """(target-class KL, KL among the others), sums over the batch divided by its size, without T**2."""
    p_s, p_t = (softmax(logits.numpy() / temperature, axis=1).tolist() for logits in (student, teacher))
    target, others = 0.0, 0.0
    for s, t, y in zip(p_s, p_t, labels.tolist(), strict=True):
        rest_s, rest_t = (sum(row[:y] + row[y + 1 :]) for row in (s, t))
        target += kl([t[y], rest_t], [s[y], rest_s]) / len(labels)
        others += kl([p / rest_t for p in t[:y] + t[y + 1 :]], [p / rest_s for p in s[:y] + s[y + 1 :]]) / len(labels)
    return target, others


@pytest.mark.parametrize(("alpha", "beta", "temperature"), [(1, 8, 4), (1, 0, 1), (0, 1, 4), (2, 3, 2)])
@pytest.mark.parametrize("shape", SHAPES)
def test_dkd_is_the_weighted_sum_of_its_two_divergences(shape, alpha, beta, temperature):
    student, teacher, labels = drawn(0, *shape), drawn(1, *shape), labels_for(shape)
    target, others = parts(student, teacher, labels, temperature)
    wanted = temperature**2 * (alpha * target + beta * others)
    value = dkd(student, teacher, labels, alpha, beta, temperature).item()
    np.testing.assert_allclose(value, wanted, rtol=1e-10, atol=1e-14)
    assert_gradient_is_right(lambda logits: dkd(logits, teacher, labels, alpha, beta, temperature), student)


def test_the_defaults_are_alpha_1_beta_8_temperature_4():
    student, teacher, labels = drawn(0, 6, 5), drawn(1, 6, 5), labels_for((6, 5))
    assert dkd(student, teacher, labels) == dkd(student, teacher, labels, alpha=1.0, beta=8.0, temperature=4.0)


@given(seed=st.integers(0, 1000), temperature=st.floats(0.5, 8.0))
def test_kd_is_dkd_with_the_others_weighted_by_what_the_teacher_gives_them(seed, temperature):
    student, teacher, labels = drawn(seed, 1, 5), drawn(seed + 1, 1, 5), torch.tensor([seed % 5])
    rest = 1 - torch.softmax(teacher / temperature, dim=1)[0, labels].item()
    coupled = dkd(student, teacher, labels, alpha=1, beta=rest, temperature=temperature)
    np.testing.assert_allclose(coupled.item(), kd(student, teacher, temperature).item(), rtol=1e-8, atol=1e-14)


def test_the_released_form_which_lowers_the_target_by_1000_gives_the_same_number():
    student, teacher, labels = drawn(0, 6, 5, scale=5), drawn(1, 6, 5, scale=5), labels_for((6, 5))
    lowered = [logits.numpy() / 4 - 1000 * np.eye(5)[labels] for logits in (student, teacher)]
    n_s, n_t = (softmax(logits, axis=1) for logits in lowered)
    wanted = sum(t * math.log(t / s) for t, s in zip(n_t.ravel(), n_s.ravel(), strict=True) if t > 0) / 6
    np.testing.assert_allclose(dkd(student, teacher, labels, alpha=0, beta=1).item(), 16 * wanted, rtol=1e-10)


@pytest.mark.parametrize("scale", [1.0, 30.0, 1e4])
def test_dkd_of_equal_logits_is_zero(scale):
    logits = drawn(0, 8, 100).float() * scale
    assert dkd(logits, logits.clone(), labels_for((8, 100))).abs() <= 1e-6


@pytest.mark.parametrize("label", [0, 2, 4])
def test_without_target_keeps_the_other_classes_in_order(label):
    row = [10.0, 11.0, 12.0, 13.0, 14.0]
    kept = without_target(torch.tensor([row]), torch.tensor([label]))[0].tolist()
    assert kept == row[:label] + row[label + 1 :]


@pytest.mark.parametrize("case", logit_edges(), ids=lambda case: case[0])
def test_dkd_is_finite_at_the_edges(case):
    _, student, teacher, labels = case
    assert_finite(lambda logits: dkd(logits, teacher, labels), student)


def test_dkd_refuses_what_does_not_fit():
    logits, labels = torch.zeros(2, 3), torch.tensor([0, 1])
    with pytest.raises(ValueError, match=r"\(2, 3\).*\(2, 4\)"):
        dkd(logits, torch.zeros(2, 4), labels)
    with pytest.raises(ValueError, match="temperature must be above 0"):
        dkd(logits, logits, labels, temperature=0.0)
    with pytest.raises(ValueError, match=r"labels are .* of shape \(3,\), .* give the class of each sample"):
        dkd(logits, logits, torch.tensor([0, 1, 2]))
    with pytest.raises(ValueError, match=r"labels are torch.float32 of shape \(2,\)"):
        dkd(logits, logits, labels.float())
    with pytest.raises(ValueError, match="another class"):
        dkd(torch.zeros(2, 1), torch.zeros(2, 1), torch.zeros(2, dtype=torch.int64))


def test_dkd_is_a_loss_of_single_samples():
    binding = binding_for({"layer1": (2, 8, 8)}, {"layer2": (4, 4, 4)}, classes=7)
    assert_is_a_loss(DKD(), binding)
    loss = DKD(alpha=2.0, beta=3.0, temperature=1.5)
    assert_is_a_loss(loss, binding)
    assert not loss.needs.comparable
    signals = signals_for(binding)
    assert loss(signals) == dkd(signals.student.logits, signals.teacher.logits, signals.labels, 2.0, 3.0, 1.5)
    assert loss.logit_target(signals) is signals.teacher.logits


@pytest.mark.parametrize(
    ("warmup", "epoch", "share"),
    [
        (20, 0.0, 1 / 20),
        (20, 0.99, 1 / 20),
        (20, 1.0, 2 / 20),
        (20, 18.5, 19 / 20),
        (20, 19.0, 1),
        (20, 200.0, 1),
        (0, 0.0, 1),
        (1, 0.0, 1),
    ],
)
def test_the_weight_grows_epoch_by_epoch_as_in_the_released_recipe(warmup, epoch, share):
    binding = binding_for({}, {})
    signals = signals_for(binding, moment=Moment(epoch=epoch))
    loss = DKD(warmup=warmup)
    np.testing.assert_allclose(loss(signals).item(), share * DKD()(signals).item(), rtol=1e-6)


def test_dkd_with_warmup_is_a_loss_from_the_first_step():
    assert_is_a_loss(DKD(warmup=20), binding_for({}, {}))


def test_the_class_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="temperature must be above 0"):
        DKD(temperature=0.0)
    with pytest.raises(ValueError, match="warmup must be 0 or more"):
        DKD(warmup=-1)
    with pytest.raises(InvalidInput, match=r"dkd: .*another class.*\n.*student layer .*\n.*logits +1 +logits +1"):
        DKD().bind(binding_for({}, {}, classes=1))
