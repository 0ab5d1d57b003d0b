"""WSLD against its weights and cross-entropies written out; its gradient, which leaves the weights out, likewise."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.special import softmax

from student_train.losses.wsld import WSLD, wsld
from tests.student_train.losses.checks import (
    assert_finite,
    assert_is_a_loss,
    binding_for,
    drawn,
    logit_edges,
    signals_for,
)

SHAPES = [(6, 5), (1, 3), (4, 2), (3, 100)]


def labels_for(shape):
    return torch.arange(shape[0]) * 7 % shape[1]


def weight(student, teacher, label):
    return 1 - math.exp(-math.log(softmax(student)[label]) / (math.log(softmax(teacher)[label]) - 1e-7))


@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_wsld_is_the_weighted_mean_of_cross_entropies(shape, temperature):
    student, teacher, labels = drawn(0, *shape), drawn(1, *shape), labels_for(shape)
    total = 0.0
    for s, t, y in zip(student.numpy(), teacher.numpy(), labels.tolist(), strict=True):
        p_s, p_t = softmax(s / temperature), softmax(t / temperature)
        total += weight(s, t, y) * sum(-b * math.log(a) for a, b in zip(p_s, p_t, strict=True))
    wanted = temperature**2 * total / len(labels)
    np.testing.assert_allclose(wsld(student, teacher, labels, temperature).item(), wanted, rtol=1e-12)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_no_gradient_goes_through_the_weights(shape, temperature):
    student, teacher, labels = drawn(0, *shape), drawn(1, *shape), labels_for(shape)
    logits = student.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(wsld(logits, teacher, labels, temperature), logits)
    for i, (s, t, y) in enumerate(zip(student.numpy(), teacher.numpy(), labels.tolist(), strict=True)):
        pull = softmax(s / temperature) - softmax(t / temperature)
        wanted = temperature * weight(s, t, y) * pull / len(labels)
        np.testing.assert_allclose(gradient[i].numpy(), wanted, rtol=1e-10, atol=1e-14)


def test_the_default_temperature_is_2_and_the_published_weight_2_5():
    student, teacher, labels = drawn(0, 6, 5), drawn(1, 6, 5), labels_for((6, 5))
    assert wsld(student, teacher, labels) == wsld(student, teacher, labels, temperature=2.0)
    assert (WSLD.recipe.weight, WSLD.recipe.ce, WSLD.recipe.kd) == (2.5, 1.0, 0.0)


def test_a_sample_the_student_has_learned_better_than_the_teacher_weighs_less():
    teacher, label = torch.tensor([[1.0, 0.0, 0.0]]), torch.tensor([0])
    weights = [wsld(torch.tensor([[s, 0.0, 0.0]]), teacher, label).item() for s in (0.0, 3.0, 8.0, 16.0)]
    entropies = [wsld(torch.tensor([[s, 0.0, 0.0]]), teacher, torch.tensor([1])).item() for s in (0.0, 3.0, 8.0, 16.0)]
    assert weights[0] > weights[1] > weights[2] > weights[3]
    assert entropies == sorted(entropies)


def test_a_teacher_without_any_loss_gives_the_full_weight_and_a_student_without_any_none():
    sure, unsure, label = torch.tensor([[1e4, 0.0, 0.0]]), torch.zeros(1, 3), torch.tensor([0])
    np.testing.assert_allclose(wsld(unsure, sure, label).item(), 4 * math.log(3), rtol=1e-6)
    assert wsld(sure, sure, label) == 0
    assert wsld(sure, unsure, label) == 0


@pytest.mark.parametrize("case", logit_edges(), ids=lambda case: case[0])
def test_wsld_is_finite_at_the_edges(case):
    _, student, teacher, labels = case
    assert_finite(lambda logits: wsld(logits, teacher, labels), student)


def test_wsld_refuses_what_does_not_fit():
    logits, labels = torch.zeros(2, 3), torch.tensor([0, 1])
    with pytest.raises(ValueError, match=r"\(2, 3\).*\(2, 4\)"):
        wsld(logits, torch.zeros(2, 4), labels)
    with pytest.raises(ValueError, match="temperature must be above 0"):
        wsld(logits, logits, labels, temperature=0.0)
    with pytest.raises(ValueError, match=r"labels are .* of shape \(3,\), .* give the class of each sample"):
        wsld(logits, logits, torch.tensor([0, 1, 2]))
    with pytest.raises(ValueError, match=r"labels are torch.float32 of shape \(2,\)"):
        wsld(logits, logits, labels.float())
    with pytest.raises(ValueError, match="temperature must be above 0"):
        WSLD(temperature=0.0)


def test_wsld_is_a_loss_of_single_samples():
    binding = binding_for({"layer1": (2, 8, 8)}, {"layer2": (4, 4, 4)}, classes=7)
    assert_is_a_loss(WSLD(), binding)
    loss = WSLD(temperature=1.5)
    assert_is_a_loss(loss, binding)
    assert not loss.needs.comparable
    signals = signals_for(binding)
    assert loss(signals) == wsld(signals.student.logits, signals.teacher.logits, signals.labels, 1.5)
    assert loss.logit_target(signals) is signals.teacher.logits
