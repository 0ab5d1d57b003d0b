"""IKL: the double sum over classes written out, the theorem that DKL has KL's gradients, and the class means."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from ground.errors import InvalidInput
from models import Representation
from student_train.losses.ikl import IKL, dkl, ikl, pairwise_difference
from student_train.losses.kd import kd
from student_train.signals import Moment
from tests.student_train.losses.checks import (
    Largest,
    assert_finite,
    assert_gradient_is_right,
    assert_is_a_loss,
    binding_for,
    drawn,
    logit_edges,
    signals_for,
)

SHAPES = [(1, 2), (3, 5), (4, 10)]


def softmax(row: list[float], temperature: float = 1.0) -> list[float]:
    powers = [math.exp(z / temperature) for z in row]
    return [power / sum(powers) for power in powers]


def pairs_by_formula(student, teacher, weights) -> float:
    total = 0.0
    for s, t, w in zip(student.tolist(), teacher.tolist(), weights.tolist(), strict=True):
        for j in range(len(s)):
            for k in range(len(s)):
                total += w[j] * w[k] * ((t[j] - t[k]) - (s[j] - s[k])) ** 2 / 4
    return total / len(student)


def kl_by_formula(student, teacher, temperature: float) -> float:
    total = 0.0
    for ours, theirs in zip(student.tolist(), teacher.tolist(), strict=True):
        for q, p in zip(softmax(ours, temperature), softmax(theirs, temperature), strict=True):
            total += p * math.log(p / q)
    return total / len(student)


def case(shape: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return drawn(0, *shape, scale=2), drawn(1, *shape, scale=2), drawn(2, *shape).softmax(dim=1)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_difference_of_pairs_is_the_double_sum_over_classes(shape):
    student, teacher, weights = case(shape)
    for any_weights in (weights, 3 * weights, torch.ones_like(weights)):
        found = pairwise_difference(student, teacher, any_weights).item()
        np.testing.assert_allclose(found, pairs_by_formula(student, teacher, any_weights), rtol=1e-10)


@pytest.mark.parametrize("shape", SHAPES)
def test_ikl_is_its_two_parts(shape):
    student, teacher, weights = case(shape)
    wanted = 1.0 * kl_by_formula(student, teacher, 4.0) + 8 * pairs_by_formula(student, teacher, weights)
    np.testing.assert_allclose(ikl(student, teacher, weights).item(), wanted, rtol=1e-10)
    wanted = 3 * kl_by_formula(student, teacher, 2.0) + 0.5 * pairs_by_formula(student, teacher, weights)
    np.testing.assert_allclose(ikl(student, teacher, weights, 3, 0.5, 2.0).item(), wanted, rtol=1e-10)


@pytest.mark.parametrize("shape", SHAPES)
def test_dkl_has_the_gradients_of_kl_for_both_sides(shape):
    student, teacher = (logits.requires_grad_() for logits in case(shape)[:2])
    found = torch.autograd.grad(dkl(student, teacher), [student, teacher])
    wanted = torch.autograd.grad(kd(student, teacher, temperature=1.0), [student, teacher])
    for ours, theirs in zip(found, wanted, strict=True):
        assert theirs.abs().max() > 1e-3
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


def test_dkl_has_the_gradients_of_the_paper():
    student, teacher = (logits.requires_grad_() for logits in case((1, 4))[:2])
    towards_student, towards_teacher = torch.autograd.grad(dkl(student, teacher), [student, teacher])
    (s,), (t,) = student.tolist(), teacher.tolist()
    p_s, p_t = softmax(s), softmax(t)
    np.testing.assert_allclose(towards_student[0], [p_s[j] - p_t[j] for j in range(4)], atol=1e-12)
    wanted = [sum(((t[j] - t[k]) - (s[j] - s[k])) * p_t[k] * p_t[j] for k in range(4)) for j in range(4)]
    np.testing.assert_allclose(towards_teacher[0], wanted, atol=1e-12)


def test_with_a_fixed_teacher_only_ikl_feels_the_pairs():
    student, teacher = case((4, 5))[:2]
    student.requires_grad_()
    weights = teacher.softmax(dim=1)
    (broken,) = torch.autograd.grad(ikl(student, teacher, weights, 1.0, 1.0, 1.0), student)
    (plain,) = torch.autograd.grad(dkl(student, teacher), student)
    (pairs,) = torch.autograd.grad(pairwise_difference(student, teacher, weights), student)
    torch.testing.assert_close(broken, plain + pairs)
    assert pairs.abs().max() > 1e-3


@pytest.mark.parametrize("formula", [pairwise_difference, ikl])
def test_its_gradient_is_right(formula):
    student, teacher, weights = case((3, 5))
    assert_gradient_is_right(lambda logits: formula(logits, teacher, weights), student)


def test_equal_logits_are_zero_and_constants_are_ignored():
    student, teacher, weights = case((4, 5))
    assert ikl(teacher.float(), teacher.float(), weights).abs() < 1e-6
    assert dkl(teacher.float(), teacher.float()).abs() < 1e-6
    torch.testing.assert_close(ikl(student + 7, teacher - 3, weights), ikl(student, teacher, weights))


def test_a_large_common_offset_leaves_the_digits():
    student, teacher, weights = (tensor.float() for tensor in case((4, 10)))
    wanted = pairs_by_formula(student + 1000, teacher, weights)
    np.testing.assert_allclose(pairwise_difference(student + 1000, teacher, weights).item(), wanted, rtol=1e-4)


@pytest.mark.parametrize("edge", [*logit_edges(), *logit_edges(classes=1)], ids=lambda edge: edge[0])
def test_ikl_and_dkl_are_finite_at_the_edges(edge):
    _, student, teacher, _ = edge
    for weights in (teacher.float().softmax(dim=1), torch.zeros_like(student)):
        assert_finite(lambda logits, weights=weights: ikl(logits, teacher, weights), student)
    assert_finite(lambda logits: dkl(logits, teacher), student)


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match=r"\(3, 4\).*\(3, 6\)"):
        ikl(torch.zeros(3, 4), torch.zeros(3, 6), torch.zeros(3, 4))
    with pytest.raises(ValueError, match=r"weights are \(4, 4\), the logits \(3, 4\)"):
        ikl(torch.zeros(3, 4), torch.zeros(3, 4), torch.zeros(4, 4))
    with pytest.raises(ValueError, match="temperature must be above 0"):
        ikl(torch.zeros(3, 4), torch.zeros(3, 4), torch.zeros(3, 4), temperature=0)
    with pytest.raises(ValueError, match="weight_temperature must be above 0"):
        IKL(weight_temperature=0)
    with pytest.raises(ValueError, match="warmup must be 0 or more epochs"):
        IKL(warmup=-1)


class Teacher:
    """Stored logits, and which rows were asked for."""

    def __init__(self, rows: int, classes: int) -> None:
        self.stored = drawn(9, rows, classes, scale=3).float()
        self.asked: list[int] = []

    def __call__(self, rows: torch.Tensor) -> Representation:
        self.asked += rows.tolist()
        return Representation(self.stored[rows], {})


def means_by_formula(teacher: Teacher, labels: torch.Tensor, classes: int, temperature: float) -> np.ndarray:
    means = np.full((classes, classes), 1 / classes)
    for label in range(classes):
        own = [
            softmax(row, temperature) for row, of in zip(teacher.stored.tolist(), labels, strict=True) if of == label
        ]
        if own:
            means[label] = np.mean(own, axis=0)
    return means


@pytest.mark.parametrize(("rows", "temperature"), [(17, 1.0), (2500, 100.0), (3, 4.0)])
def test_global_weights_are_the_teachers_mean_probabilities_of_each_class(rows, temperature):
    binding, teacher = binding_for({}, {}, rows=rows), Teacher(rows, 5)
    loss = IKL(weight_temperature=temperature, global_weights=True)
    loss.bind(binding)
    loss.prepare(teacher, Moment())
    assert teacher.asked == list(range(rows))
    means = means_by_formula(teacher, binding.labels, 5, temperature)
    np.testing.assert_allclose(loss.class_probs, means, rtol=1e-5, atol=1e-7)
    if rows < 20:
        return
    signals = signals_for(binding)
    weights = torch.tensor(means)[signals.labels]
    said = signals.student.logits.double(), signals.teacher.logits.double()
    wanted = kl_by_formula(*said, 4.0) + 8 * pairs_by_formula(*said, weights)
    np.testing.assert_allclose(loss(signals).item(), wanted, rtol=1e-4)


def test_class_means_are_kept_with_the_weights_and_not_learned():
    first, second = IKL(global_weights=True), IKL(global_weights=True)
    for loss in (first, second):
        loss.bind(binding_for({}, {}))
    assert not list(first.parameters())
    first.prepare(Teacher(20, 5), Moment())
    assert list(first.state_dict()) == ["class_probs"]
    assert not torch.equal(first.class_probs, second.class_probs)
    second.load_state_dict(first.state_dict())
    signals = signals_for(binding_for({}, {}))
    torch.testing.assert_close(first(signals), second(signals))


def test_own_weights_are_the_teachers_probabilities_of_the_sample():
    binding, teacher = binding_for({}, {}), Teacher(20, 5)
    loss = IKL(alpha=2.0, beta=3.0, temperature=2.0, weight_temperature=1.5)
    assert_is_a_loss(loss, binding)
    assert loss.needs.comparable
    loss.prepare(teacher, Moment())
    assert not teacher.asked
    signals = signals_for(binding)
    said = signals.student.logits.double(), signals.teacher.logits.double()
    weights = torch.tensor([softmax(row, 1.5) for row in said[1].tolist()])
    wanted = 2 * kl_by_formula(*said, 2.0) + 3 * pairs_by_formula(*said, weights)
    np.testing.assert_allclose(loss(signals).item(), wanted, rtol=1e-4)
    torch.testing.assert_close(loss.logit_target(signals), signals.teacher.logits)


def test_ikl_with_global_weights_is_a_loss_on_single_samples_alone():
    assert_is_a_loss(IKL(global_weights=True), binding_for({}, {}, classes=7))
    assert not IKL(global_weights=True).needs.comparable


def test_means_of_more_classes_than_fit_are_refused_and_own_weights_are_not():
    many = binding_for({}, {}, classes=21841)
    with pytest.raises(InvalidInput, match="21841 classes are a table of classes x classes, and 8192 is the most"):
        IKL(global_weights=True).bind(many)
    loss = IKL()
    loss.bind(many)
    with Largest() as largest:
        loss(signals_for(many, batch=4)).backward()
    assert largest.numbers <= 4 * 21841


def test_the_weight_grows_over_the_epochs_of_warm_up():
    binding = binding_for({}, {})
    full, growing = IKL(), IKL(warmup=4)
    for loss in (full, growing):
        loss.bind(binding)
    for epoch, share in ((0.0, 0.25), (1.5, 0.5), (3.0, 1.0), (9.0, 1.0)):
        signals = signals_for(binding, moment=Moment(epoch=epoch))
        torch.testing.assert_close(growing(signals), share * full(signals))
