"""RLD's two parts against their sums written out."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from student_train.losses.rld import RLD, masked_correlation, rld, sample_confidence
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


def softmax(row: list[float], temperature: float) -> list[float]:
    powers = [math.exp(z / temperature) for z in row]
    return [power / sum(powers) for power in powers]


def kl(target: list[float], found: list[float]) -> float:
    return sum(p * math.log(p / q) for p, q in zip(target, found, strict=True) if p > 0)


def confidence_by_formula(student, teacher, labels, temperature) -> float:
    total = 0.0
    for ours, theirs, label in zip(student.tolist(), teacher.tolist(), labels.tolist(), strict=True):
        true, top = softmax(ours, temperature)[label], max(softmax(theirs, temperature))
        total += kl([top, 1 - top], [true, 1 - true])
    return temperature**2 * total / len(labels)


def correlation_by_formula(student, teacher, labels, temperature) -> float:
    total = 0.0
    for ours, theirs, label in zip(student.tolist(), teacher.tolist(), labels.tolist(), strict=True):
        kept = [k for k in range(len(ours)) if theirs[k] < theirs[label]]
        if kept:
            total += kl(*(softmax([row[k] for k in kept], temperature) for row in (theirs, ours)))
    return temperature**2 * total / len(labels)


def case(seed: int, samples: int, classes: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    labels = torch.randint(classes, (samples,), generator=torch.Generator().manual_seed(seed))
    return drawn(seed, samples, classes, scale=2), drawn(seed + 5000, samples, classes, scale=2), labels


sizes = {"seed": st.integers(0, 1000), "samples": st.integers(1, 6), "classes": st.integers(2, 9)}


@given(**sizes, temperature=st.floats(0.5, 8))
def test_both_parts_are_their_sums_written_out(seed, samples, classes, temperature):
    student, teacher, labels = case(seed, samples, classes)
    confidence = confidence_by_formula(student, teacher, labels, temperature)
    correlation = correlation_by_formula(student, teacher, labels, temperature)
    found = sample_confidence(student, teacher, labels, temperature).item()
    np.testing.assert_allclose(found, confidence, rtol=1e-8, atol=1e-10)
    found = masked_correlation(student, teacher, labels, temperature).item()
    np.testing.assert_allclose(found, correlation, rtol=1e-8, atol=1e-10)


@given(**sizes)
def test_rld_weighs_the_two(seed, samples, classes):
    student, teacher, labels = case(seed, samples, classes)
    correlation = correlation_by_formula(student, teacher, labels, 4.0)
    wanted = confidence_by_formula(student, teacher, labels, 4.0) + 8 * correlation
    np.testing.assert_allclose(rld(student, teacher, labels).item(), wanted, rtol=1e-8, atol=1e-10)
    found = rld(student, teacher, labels, alpha=3, beta=2, confidence_temperature=1.0).item()
    wanted = 3 * confidence_by_formula(student, teacher, labels, 1.0) + 2 * correlation
    np.testing.assert_allclose(found, wanted, rtol=1e-8, atol=1e-10)


def test_classes_that_the_teacher_ranks_at_or_above_the_true_one_are_left_free():
    teacher = torch.tensor([[3.0, 1.0, 2.0, 0.0, 1.0, -1.0]], dtype=torch.float64)
    student = drawn(0, 1, 6).requires_grad_()
    (gradient,) = torch.autograd.grad(masked_correlation(student, teacher, torch.tensor([1])), student)
    # Class 4 ties with the true class 1.
    assert (gradient != 0).tolist() == [[False, False, False, True, False, True]]


def test_a_teacher_that_ranks_the_true_class_last_says_nothing_of_the_others():
    student = drawn(0, 1, 4).requires_grad_()
    loss = masked_correlation(student, torch.tensor([[1.0, 2, 3, 0]], dtype=torch.float64), torch.tensor([3]))
    (gradient,) = torch.autograd.grad(loss, student)
    assert loss == 0
    assert gradient.abs().max() == 0


def test_equal_logits_are_zero_where_the_teacher_is_right():
    logits = drawn(0, 6, 5, scale=3).float()
    labels = logits.argmax(dim=1)
    assert rld(logits.clone(), logits, labels).abs() < 1e-6
    wrong = (labels + 1) % 5
    assert masked_correlation(logits.clone(), logits, wrong).abs() < 1e-6
    assert sample_confidence(logits.clone(), logits, wrong) > 0.1


def test_the_confidence_of_a_wrong_teacher_is_meant_for_the_true_class():
    teacher = torch.tensor([[4.0, 0.0, 0.0]], dtype=torch.float64)
    student = torch.tensor([[0.0, 4.0, 0.0]], dtype=torch.float64)
    assert sample_confidence(student, teacher, torch.tensor([1])).abs() < 1e-12
    assert sample_confidence(teacher.clone(), teacher, torch.tensor([1])) > 0.1


def test_constants_added_to_the_logits_are_ignored():
    student, teacher, labels = case(0, 5, 6)
    torch.testing.assert_close(rld(student + 7, teacher - 3, labels), rld(student, teacher, labels))


@pytest.mark.parametrize("part", [sample_confidence, masked_correlation, rld])
def test_its_gradient_is_right(part):
    student, teacher, labels = case(3, 5, 6)
    assert_gradient_is_right(lambda logits: part(logits, teacher, labels), student)


@pytest.mark.parametrize("part", [sample_confidence, masked_correlation, rld])
@pytest.mark.parametrize("edge", [*logit_edges(), *logit_edges(classes=1)], ids=lambda edge: edge[0])
def test_rld_is_finite_at_the_edges(edge, part):
    _, student, teacher, labels = edge
    assert_finite(lambda logits: part(logits, teacher, labels), student)


def test_what_cannot_be_is_refused():
    labels = torch.zeros(3, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"\(3, 4\).*\(3, 6\)"):
        rld(torch.zeros(3, 4), torch.zeros(3, 6), labels)
    for part in (sample_confidence, masked_correlation):
        with pytest.raises(ValueError, match=r"labels are .*\(1,\), logits \(3, 4\)"):
            part(torch.zeros(3, 4), torch.zeros(3, 4), labels[:1])
    with pytest.raises(ValueError, match="temperature must be above 0"):
        RLD(temperature=0)
    with pytest.raises(ValueError, match="confidence_temperature must be above 0"):
        RLD(confidence_temperature=0)
    with pytest.raises(ValueError, match="warmup must be 0 or more epochs"):
        RLD(warmup=-1)


def test_rld_is_a_loss_on_single_samples_alone():
    binding = binding_for({}, {}, classes=6)
    loss = RLD(alpha=2.0, beta=3.0, temperature=2.0, confidence_temperature=1.0)
    assert_is_a_loss(loss, binding)
    assert not loss.needs.comparable
    signals = signals_for(binding)
    said = signals.student.logits.double(), signals.teacher.logits.double(), signals.labels
    wanted = 2 * confidence_by_formula(*said, 1.0) + 3 * correlation_by_formula(*said, 2.0)
    np.testing.assert_allclose(loss(signals).item(), wanted, rtol=1e-4)


def test_the_weight_grows_over_the_epochs_of_warm_up():
    binding = binding_for({}, {})
    full, growing = RLD(), RLD(warmup=20)
    for loss in (full, growing):
        loss.bind(binding)
    for epoch, share in ((0.0, 0.05), (9.5, 0.5), (19.0, 1.0), (200.0, 1.0)):
        signals = signals_for(binding, moment=Moment(epoch=epoch))
        torch.testing.assert_close(growing(signals), share * full(signals))
