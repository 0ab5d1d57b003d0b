"""NKD against its two cross-entropies written out."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.special import softmax

from ground.errors import InvalidInput
from student_train.losses.nkd import NKD, nkd
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


def written_out(student, teacher, labels, gamma, temperature):
    total = 0.0
    for s, t, y in zip(student.tolist(), teacher.tolist(), labels.tolist(), strict=True):
        total -= softmax(t)[y] * math.log(softmax(s)[y])
        others = [i for i in range(len(s)) if i != y]
        n_s, n_t = (softmax([row[i] / temperature for i in others]) for row in (s, t))
        total -= gamma * temperature**2 * sum(b * math.log(a) for a, b in zip(n_s, n_t, strict=True))
    return total / len(labels)


@pytest.mark.parametrize(("gamma", "temperature"), [(1.5, 1.0), (3.5, 3.0), (0.0, 1.0)])
@pytest.mark.parametrize("shape", SHAPES)
def test_nkd_is_the_sum_of_its_two_cross_entropies(shape, gamma, temperature):
    student, teacher, labels = drawn(0, *shape), drawn(1, *shape), labels_for(shape)
    wanted = written_out(student, teacher, labels, gamma, temperature)
    np.testing.assert_allclose(nkd(student, teacher, labels, gamma, temperature).item(), wanted, rtol=1e-12)
    assert_gradient_is_right(lambda logits: nkd(logits, teacher, labels, gamma, temperature), student)


def test_the_defaults_are_gamma_1_5_and_temperature_1():
    student, teacher, labels = drawn(0, 6, 5), drawn(1, 6, 5), labels_for((6, 5))
    assert nkd(student, teacher, labels) == nkd(student, teacher, labels, gamma=1.5, temperature=1.0)


def test_the_part_of_the_other_classes_ignores_the_targets_logits():
    student, teacher, labels = drawn(0, 6, 5), drawn(1, 6, 5), labels_for((6, 5))
    raised = teacher + 3 * torch.eye(5)[labels]
    difference = nkd(student, raised, labels, gamma=2.0) - nkd(student, raised, labels, gamma=0.0)
    wanted = nkd(student, teacher, labels, gamma=2.0) - nkd(student, teacher, labels, gamma=0.0)
    np.testing.assert_allclose(difference.item(), wanted.item(), rtol=1e-10)


def test_other_classes_in_the_teachers_proportions_are_at_their_minimum():
    teacher, labels = drawn(1, 6, 5), labels_for((6, 5))
    matched = (teacher + 3 * torch.eye(5)[labels]).requires_grad_()
    gap = nkd(matched, teacher, labels, gamma=2.0) - nkd(matched, teacher, labels, gamma=0.0)
    np.testing.assert_allclose(torch.autograd.grad(gap, matched)[0].numpy(), 0, atol=1e-14)


@pytest.mark.parametrize("case", logit_edges(), ids=lambda case: case[0])
def test_nkd_is_finite_at_the_edges(case):
    _, student, teacher, labels = case
    assert_finite(lambda logits: nkd(logits, teacher, labels), student)


def test_nkd_refuses_what_does_not_fit():
    logits, labels = torch.zeros(2, 3), torch.tensor([0, 1])
    with pytest.raises(ValueError, match=r"\(2, 3\).*\(2, 4\)"):
        nkd(logits, torch.zeros(2, 4), labels)
    with pytest.raises(ValueError, match="temperature must be above 0"):
        nkd(logits, logits, labels, temperature=0.0)
    with pytest.raises(ValueError, match=r"labels are .* of shape \(3,\), .* give the class of each sample"):
        nkd(logits, logits, torch.tensor([0, 1, 2]))
    with pytest.raises(ValueError, match="another class"):
        nkd(torch.zeros(2, 1), torch.zeros(2, 1), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(ValueError, match="temperature must be above 0"):
        NKD(temperature=0.0)


def test_nkd_is_a_loss_of_single_samples():
    binding = binding_for({"layer1": (2, 8, 8)}, {"layer2": (4, 4, 4)}, classes=7)
    assert_is_a_loss(NKD(), binding)
    loss = NKD(gamma=2.0, temperature=1.5)
    assert_is_a_loss(loss, binding)
    assert not loss.needs.comparable
    signals = signals_for(binding)
    assert loss(signals) == nkd(signals.student.logits, signals.teacher.logits, signals.labels, 2.0, 1.5)


def test_a_single_class_is_refused_with_a_table():
    with pytest.raises(InvalidInput, match=r"nkd: .*another class.*\n.*student layer .*\n.*logits +1 +logits +1"):
        NKD().bind(binding_for({}, {}, classes=1))
