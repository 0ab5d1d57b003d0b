"""CTKD: KD at a tensor, the reversed gradient, and the curriculum."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from student_train.losses.ctkd import CTKD, kd_at, reversal_strength, reverse
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


def bound(**settings: float) -> CTKD:
    loss = CTKD(**settings)
    loss.bind(binding_for({}, {}))
    return loss


def kl_by_formula(student, teacher, temperature: float) -> float:
    total = 0.0
    for ours, theirs in zip(student.tolist(), teacher.tolist(), strict=True):
        s, t = ([z / temperature for z in row] for row in (ours, theirs))
        log_zs, log_zt = (math.log(sum(math.exp(z) for z in row)) for row in (s, t))
        for a, b in zip(s, t, strict=True):
            total += math.exp(b - log_zt) * ((b - log_zt) - (a - log_zs))
    return temperature**2 * total / len(student)


@given(seed=st.integers(0, 1000), samples=st.integers(1, 5), classes=st.integers(1, 7), temperature=st.floats(1, 21))
def test_kd_at_a_tensor_is_kd_at_a_number(seed, samples, classes, temperature):
    student, teacher = drawn(seed, samples, classes, scale=3), drawn(seed + 5000, samples, classes, scale=3)
    found = kd_at(student, teacher, torch.tensor(temperature, dtype=torch.float64))
    np.testing.assert_allclose(found.item(), kl_by_formula(student, teacher, temperature), rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(found, kd(student, teacher, temperature))


def test_each_sample_may_have_its_own_temperature():
    student, teacher = drawn(0, 2, 5), drawn(1, 2, 5)
    found = kd_at(student, teacher, torch.tensor([[2.0], [7.0]], dtype=torch.float64))
    apart = [kl_by_formula(student[i : i + 1], teacher[i : i + 1], temperature) for i, temperature in ((0, 2), (1, 7))]
    np.testing.assert_allclose(found.item(), sum(apart) / 2, rtol=1e-10)


def test_its_gradient_is_right_for_student_and_temperature():
    teacher = drawn(1, 4, 5, scale=3)
    temperature = torch.tensor(3.0, dtype=torch.float64)
    assert_gradient_is_right(lambda logits, at: kd_at(logits, teacher, at), drawn(0, 4, 5, scale=3), temperature)


@pytest.mark.parametrize("case", logit_edges(), ids=lambda case: case[0])
def test_kd_at_is_finite_at_the_edges(case):
    _, student, teacher, _ = case
    assert_finite(lambda logits, at: kd_at(logits, teacher, at), student, torch.tensor(1.0))


def test_equal_logits_are_zero_at_any_temperature():
    logits = drawn(0, 4, 5).float()
    assert kd_at(logits, logits.clone(), torch.tensor(15.6)).abs() < 1e-6


def test_kd_at_refuses_other_shapes():
    with pytest.raises(ValueError, match=r"\(3, 4\).*\(3, 6\)"):
        kd_at(torch.zeros(3, 4), torch.zeros(3, 6), torch.tensor(1.0))


@pytest.mark.parametrize("strength", [0.0, 0.3, 1.0])
def test_the_reversal_is_the_identity_whose_gradient_is_negated_and_scaled(strength):
    tensor, upstream = drawn(0, 3, 2).requires_grad_(), drawn(1, 3, 2)
    out = reverse(tensor, strength)
    assert torch.equal(out, tensor)
    (gradient,) = torch.autograd.grad(out, tensor, upstream)
    torch.testing.assert_close(gradient, -strength * upstream)


def test_the_strength_is_half_a_cosine_from_0_to_1():
    found = [reversal_strength(epoch, 10) for epoch in range(13)]
    wanted = [0.5 - 0.5 * math.cos(math.pi * epoch / 10) for epoch in range(10)] + [1.0, 1.0, 1.0]
    np.testing.assert_allclose(found, wanted, atol=1e-12)
    assert found[0] == 0
    assert found[5] == pytest.approx(0.5)
    assert reversal_strength(-1, 10) == 0
    # The released cosine falls from 0 to -1 over 10 epochs and is multiplied with the gradient as it is.
    np.testing.assert_allclose(-found[3], (math.cos(3 * math.pi / 10) + 1) * 0.5 * (0 - -1) + -1)


def test_the_temperature_is_start_plus_span_times_a_sigmoid_of_what_is_learned():
    loss = bound()
    assert [name for name, _ in loss.named_parameters()] == ["position"]
    # 1 + 20 * sigmoid(1)
    assert loss.temperature.item() == pytest.approx(15.6211715726)
    with torch.no_grad():
        for position, temperature in ((-200.0, 1.0), (0.0, 11.0), (200.0, 21.0)):
            loss.position.fill_(position)
            assert loss.temperature.item() == pytest.approx(temperature)
    assert bound(start=2.0, span=4.0).temperature.item() == pytest.approx(2 + 4 / (1 + math.exp(-1)))


def test_the_loss_is_kd_at_the_learned_temperature():
    loss = bound()
    signals = signals_for(binding_for({}, {}))
    wanted = kl_by_formula(signals.student.logits, signals.teacher.logits, 1 + 20 / (1 + math.exp(-1)))
    np.testing.assert_allclose(loss(signals).item(), wanted, rtol=1e-4)
    torch.testing.assert_close(loss.logit_target(signals), signals.teacher.logits)


@pytest.mark.parametrize(("epoch", "count"), [(0.0, 1), (0.9, 1), (4.0, 5), (9.0, 10), (50.0, 10)])
def test_descent_climbs_in_the_temperature_and_more_so_with_every_epoch(epoch, count):
    loss = bound()
    signals = signals_for(binding_for({}, {}), moment=Moment(epoch=epoch))
    loss(signals).backward()
    position = loss.position.detach().clone().requires_grad_()
    plain = kd_at(signals.student.logits.detach(), signals.teacher.logits, 1 + 20 * position.sigmoid())
    (slope,) = torch.autograd.grad(plain, position)
    strength = 0.5 - 0.5 * math.cos(math.pi * count / 10)
    torch.testing.assert_close(loss.position.grad, -strength * slope)
    assert slope != 0
    # The student's own gradient is that of KD at this temperature.
    student = signals.student.logits.detach().clone().requires_grad_()
    (wanted,) = torch.autograd.grad(kd(student, signals.teacher.logits, loss.temperature.item()), student)
    torch.testing.assert_close(signals.student.logits.grad, wanted)


def test_ctkd_is_a_loss_on_samples_and_on_differences():
    binding = binding_for({}, {}, classes=7)
    assert_is_a_loss(CTKD(), binding)
    assert CTKD().needs.comparable
    assert list(bound().state_dict()) == ["position"]


@pytest.mark.parametrize("settings", [{"start": 0.0}, {"span": -1.0}, {"loops": 0.0}])
def test_settings_that_are_not_positive_are_refused(settings):
    with pytest.raises(ValueError, match="must be above 0"):
        CTKD(**settings)
