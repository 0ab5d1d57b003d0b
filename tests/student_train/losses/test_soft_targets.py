"""Soft cross-entropy, Jensen-Shannon divergence and reverse KL against sums over samples and classes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import softmax

from student_train.losses.soft_targets import (
    JensenShannon,
    ReverseKL,
    SoftCrossEntropy,
    jsd,
    reverse_kl,
    soft_cross_entropy,
)
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
FORMULAS = [soft_cross_entropy, jsd, reverse_kl]
DIVERGENCES = [jsd, reverse_kl]


def probabilities(logits, temperature):
    return softmax(logits.numpy() / temperature, axis=1)


def kl(p, q):
    return sum(float(a) * math.log(float(a) / float(b)) for a, b in zip(p, q, strict=True))


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_soft_cross_entropy_is_the_sum_over_classes_meaned_over_samples(shape, temperature):
    student, teacher = drawn(0, *shape), drawn(1, *shape)
    rows = zip(probabilities(student, temperature), probabilities(teacher, temperature), strict=True)
    wanted = sum(-float(t) * math.log(float(s)) for p_s, p_t in rows for s, t in zip(p_s, p_t, strict=True)) / shape[0]
    np.testing.assert_allclose(soft_cross_entropy(student, teacher, temperature).item(), wanted, rtol=1e-12)
    assert_gradient_is_right(lambda logits: soft_cross_entropy(logits, teacher, temperature), student)


@pytest.mark.parametrize(("temperature", "beta"), [(1.0, 0.5), (4.0, 0.5), (2.0, 0.1), (1.0, 0.8)])
@pytest.mark.parametrize("shape", SHAPES)
def test_jsd_is_the_mean_divergence_from_the_mixture(shape, temperature, beta):
    student, teacher = drawn(0, *shape), drawn(1, *shape)
    wanted = 0.0
    for p_s, p_t in zip(probabilities(student, temperature), probabilities(teacher, temperature), strict=True):
        mixture = beta * p_t + (1 - beta) * p_s
        wanted += temperature**2 * (beta * kl(p_t, mixture) + (1 - beta) * kl(p_s, mixture)) / shape[0]
    np.testing.assert_allclose(jsd(student, teacher, temperature, beta).item(), wanted, rtol=1e-10)
    assert_gradient_is_right(lambda logits: jsd(logits, teacher, temperature, beta), student)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_reverse_kl_is_the_divergence_of_the_student_from_the_teacher(shape, temperature):
    student, teacher = drawn(0, *shape), drawn(1, *shape)
    rows = zip(probabilities(student, temperature), probabilities(teacher, temperature), strict=True)
    wanted = temperature**2 * sum(kl(p_s, p_t) for p_s, p_t in rows) / shape[0]
    np.testing.assert_allclose(reverse_kl(student, teacher, temperature).item(), wanted, rtol=1e-12)
    assert_gradient_is_right(lambda logits: reverse_kl(logits, teacher, temperature), student)


def test_the_defaults_are_temperature_1_1_and_4_and_an_even_mixture():
    student, teacher = drawn(0, 6, 5), drawn(1, 6, 5)
    assert soft_cross_entropy(student, teacher) == soft_cross_entropy(student, teacher, temperature=1.0)
    assert jsd(student, teacher) == jsd(student, teacher, temperature=1.0, beta=0.5)
    assert reverse_kl(student, teacher) == reverse_kl(student, teacher, temperature=4.0)


@pytest.mark.parametrize("formula", DIVERGENCES)
@pytest.mark.parametrize("scale", [1.0, 30.0, 1e4])
def test_divergences_of_equal_logits_are_zero(formula, scale):
    logits = drawn(0, 8, 100).float() * scale
    assert formula(logits, logits.clone(), temperature=4.0).abs() <= 1e-6
    assert jsd(logits, logits.clone(), temperature=4.0, beta=0.1).abs() <= 1e-6


def test_soft_cross_entropy_of_equal_logits_is_the_entropy_and_has_no_gradient():
    logits = drawn(0, 4, 5).requires_grad_()
    value = soft_cross_entropy(logits, logits.detach())
    p = probabilities(logits.detach(), 1.0)
    np.testing.assert_allclose(value.item(), -(p * np.log(p)).sum() / 4, rtol=1e-12)
    np.testing.assert_allclose(torch.autograd.grad(value, logits)[0].numpy(), 0, atol=1e-15)


@given(scale=st.floats(0.0, 1e4), seed=st.integers(0, 1000))
def test_jsd_is_symmetric_and_at_most_ln_2(scale, seed):
    student, teacher = drawn(seed, 3, 7, scale=scale), drawn(seed + 1, 3, 7, scale=scale)
    value = jsd(student, teacher).item()
    assert -1e-12 <= value <= math.log(2) + 1e-12
    np.testing.assert_allclose(jsd(teacher, student).item(), value, rtol=1e-9, atol=1e-14)


def test_jsd_of_disjoint_probabilities_is_ln_2():
    one = torch.tensor([[1e4, 0.0, 0.0]])
    np.testing.assert_allclose(jsd(one, one.flip(1)).item(), math.log(2), rtol=1e-6)


def test_jsd_keeps_its_gradient_where_a_class_is_equally_likely_to_both():
    # The two rows agree on the first class exactly: there the gap is 0, where the formula changes branch.
    p_s, p_t = torch.tensor([[0.5, 0.25, 0.25]]).double(), torch.tensor([[0.5, 0.375, 0.125]]).double()
    assert (p_s.log().log_softmax(1) == p_t.log().log_softmax(1))[0, 0]
    assert_gradient_is_right(lambda logits: jsd(logits, p_t.log()), p_s.log())


@pytest.mark.parametrize("formula", FORMULAS)
@given(shift=st.floats(-20, 20))
def test_a_constant_added_to_all_logits_changes_nothing(formula, shift):
    student, teacher = drawn(0, 4, 5), drawn(1, 4, 5)
    np.testing.assert_allclose(formula(student + shift, teacher - shift).item(), formula(student, teacher).item())


def test_reverse_kl_forgives_a_class_the_student_leaves_out():
    teacher = torch.tensor([[4.0, 4.0, 0.0]])
    assert reverse_kl(torch.tensor([[4.0, -4.0, 0.0]]), teacher) < reverse_kl(torch.tensor([[4.0, 4.0, 8.0]]), teacher)


@pytest.mark.parametrize("formula", FORMULAS)
@pytest.mark.parametrize("case", logit_edges(), ids=lambda case: case[0])
def test_soft_targets_are_finite_at_the_edges(formula, case):
    _, student, teacher, _ = case
    assert_finite(lambda logits: formula(logits, teacher), student)


@pytest.mark.parametrize("formula", FORMULAS)
def test_soft_targets_refuse_other_shapes_and_temperatures(formula):
    with pytest.raises(ValueError, match=r"\(2, 3\).*\(2, 4\)"):
        formula(torch.zeros(2, 3), torch.zeros(2, 4))
    with pytest.raises(ValueError, match="temperature must be above 0"):
        formula(torch.zeros(2, 3), torch.zeros(2, 3), temperature=0.0)


@pytest.mark.parametrize("loss", [SoftCrossEntropy, JensenShannon, ReverseKL])
def test_classes_refuse_a_temperature_that_is_not_positive(loss):
    with pytest.raises(ValueError, match="temperature must be above 0"):
        loss(temperature=-1.0)


@pytest.mark.parametrize("beta", [0.0, 1.0, float("nan")])
def test_jsd_refuses_a_mixture_of_only_one_side(beta):
    with pytest.raises(ValueError, match="beta must be"):
        jsd(torch.zeros(2, 3), torch.zeros(2, 3), beta=beta)
    with pytest.raises(ValueError, match="beta must be"):
        JensenShannon(beta=beta)


@pytest.mark.parametrize(
    ("loss", "wanted"),
    [
        (SoftCrossEntropy(temperature=2.0), lambda s, t: soft_cross_entropy(s, t, 2.0)),
        (JensenShannon(temperature=2.0, beta=0.3), lambda s, t: jsd(s, t, 2.0, 0.3)),
        (ReverseKL(temperature=2.0), lambda s, t: reverse_kl(s, t, 2.0)),
    ],
    ids=lambda case: getattr(case, "name", ""),
)
def test_soft_targets_are_losses(loss, wanted):
    binding = binding_for({"layer1": (2, 8, 8)}, {"layer2": (4, 4, 4)}, classes=7)
    value = assert_is_a_loss(loss, binding)
    assert assert_is_a_loss(type(loss)(), binding) != value
    signals = signals_for(binding)
    assert loss(signals) == wanted(signals.student.logits, signals.teacher.logits)
    assert loss.logit_target(signals) is signals.teacher.logits
    assert loss.constrains_logits
