"""OFA's adaptive target against the sum written out."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from student_train.losses.kd import kd
from student_train.losses.ofa import OFA, ofa
from tests.student_train.losses.checks import (
    assert_finite,
    assert_gradient_is_right,
    assert_is_a_loss,
    binding_for,
    drawn,
    logit_edges,
    signals_for,
)

LABELS = torch.tensor([2, 0, 1, 2])
CASES = [(1.0, 1.0, False), (1.5, 1.0, False), (1.5, 1.0, True), (0.7, 3.0, False), (2.0, 3.0, True)]


def softmax(row: list[float], temperature: float) -> list[float]:
    top = max(row)
    powers = [math.exp((z - top) / temperature) for z in row]
    return [power / sum(powers) for power in powers]


def by_formula(student, teacher, labels, eps, temperature, target_only) -> float:
    total = 0.0
    for ours, theirs, label in zip(student.tolist(), teacher.tolist(), labels.tolist(), strict=True):
        p_s, p_t = softmax(ours, temperature), softmax(theirs, temperature)
        for k, p in enumerate(p_t):
            y = 1 if k == label else 0
            weight = p if target_only and not y else (p + y) ** eps - y
            total -= weight * math.log(p_s[k])
    return total / len(labels)


@pytest.mark.parametrize(("eps", "temperature", "target_only"), CASES)
@pytest.mark.parametrize("classes", [3, 10])
def test_ofa_is_the_sum_written_out(eps, temperature, target_only, classes):
    student, teacher = drawn(0, 4, classes, scale=2), drawn(1, 4, classes, scale=2)
    found = ofa(student, teacher, LABELS, eps, temperature, target_only)
    wanted = by_formula(student, teacher, LABELS, eps, temperature, target_only)
    np.testing.assert_allclose(found.item(), wanted, rtol=1e-12)


@pytest.mark.parametrize(("eps", "temperature", "target_only"), CASES)
def test_its_gradient_is_right(eps, temperature, target_only):
    teacher = drawn(1, 4, 5)
    assert_gradient_is_right(lambda logits: ofa(logits, teacher, LABELS, eps, temperature, target_only), drawn(0, 4, 5))


def test_with_eps_one_it_is_cross_entropy_with_the_teachers_probabilities():
    student, teacher = drawn(0, 4, 5), drawn(1, 4, 5)
    wanted = F.cross_entropy(student, teacher.softmax(dim=1))
    torch.testing.assert_close(ofa(student, teacher, LABELS), wanted)
    entropy = F.cross_entropy(teacher, teacher.softmax(dim=1))
    torch.testing.assert_close(ofa(student, teacher, LABELS) - entropy, kd(student, teacher, temperature=1.0))


def test_a_larger_eps_enhances_the_true_class_against_the_others():
    student, teacher = drawn(0, 4, 5).requires_grad_(), drawn(1, 4, 5)
    pulls = []
    for eps in (1.0, 1.5, 2.0):
        (gradient,) = torch.autograd.grad(ofa(student, teacher, LABELS, eps), student)
        pulls.append(-gradient.gather(1, LABELS[:, None]))
    assert (pulls[0] < pulls[1]).all()
    assert (pulls[1] < pulls[2]).all()


def test_constants_added_to_the_logits_are_ignored():
    student, teacher = drawn(0, 4, 5), drawn(1, 4, 5)
    torch.testing.assert_close(ofa(student + 7, teacher - 3, LABELS, 1.5), ofa(student, teacher, LABELS, 1.5))


def test_small_probabilities_of_the_true_class_keep_their_digits():
    teacher = torch.tensor([[20.0, 0.0]])
    # p of class 1 is 2.06e-9, below what 1 + p - 1 can hold; the weight of class 0 is 1.
    found = ofa(torch.tensor([[0.0, -1e9]]), teacher, torch.tensor([1]))
    torch.testing.assert_close(found, torch.tensor(1e9 * 2.0611537e-9), rtol=1e-4, atol=0)


@pytest.mark.parametrize("eps", [0.5, 1.0, 1.5])
@pytest.mark.parametrize("case", logit_edges(), ids=lambda case: case[0])
def test_ofa_is_finite_at_the_edges(case, eps):
    _, student, teacher, labels = case
    assert_finite(lambda logits: ofa(logits, teacher, labels, eps), student)


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match=r"\(3, 4\).*\(3, 6\)"):
        ofa(torch.zeros(3, 4), torch.zeros(3, 6), torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"labels are .*\(1,\), logits \(3, 4\)"):
        ofa(torch.zeros(3, 4), torch.zeros(3, 4), torch.zeros(1, dtype=torch.int64))
    with pytest.raises(ValueError, match="eps must be above 0, got 0"):
        OFA(eps=0)
    with pytest.raises(ValueError, match="temperature must be above 0"):
        OFA(temperature=-1)


def test_ofa_is_a_loss_on_single_samples_alone():
    binding = binding_for({}, {})
    loss = OFA(eps=1.5, temperature=2.0, target_only=True)
    assert_is_a_loss(loss, binding)
    assert not loss.needs.comparable
    signals = signals_for(binding)
    wanted = by_formula(signals.student.logits, signals.teacher.logits, signals.labels, 1.5, 2.0, True)
    np.testing.assert_allclose(loss(signals).item(), wanted, rtol=1e-5)
