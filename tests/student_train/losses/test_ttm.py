"""TTM and WTTM against powers of the teacher's probabilities, as the paper defines them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import softmax

from student_train.losses.ttm import TTM, WTTM, ttm, wttm
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
FORMULAS = [ttm, wttm]


def transformed(row, gamma):
    """(power sum, power-transformed probabilities) of a teacher's logits."""
    powers = [p**gamma for p in softmax(row)]
    return sum(powers), [power / sum(powers) for power in powers]


def divergences(student, teacher, gamma):
    """(power sum, divergence) of each sample."""
    for s, t in zip(student.numpy(), teacher.numpy(), strict=True):
        power_sum, target = transformed(t, gamma)
        yield power_sum, sum(b * math.log(b / a) for a, b in zip(softmax(s), target, strict=True))


@pytest.mark.parametrize("gamma", [0.1, 0.4, 1.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_ttm_is_the_divergence_from_the_transformed_teacher(shape, gamma):
    student, teacher = drawn(0, *shape), drawn(1, *shape, scale=3)
    wanted = sum(divergence for _, divergence in divergences(student, teacher, gamma)) / shape[0]
    np.testing.assert_allclose(ttm(student, teacher, gamma).item(), wanted, rtol=1e-12)
    assert_gradient_is_right(lambda logits: ttm(logits, teacher, gamma), student)


@pytest.mark.parametrize("gamma", [0.1, 0.4, 1.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_wttm_weights_each_sample_by_its_power_sum(shape, gamma):
    student, teacher = drawn(0, *shape), drawn(1, *shape, scale=3)
    wanted = sum(power_sum * divergence for power_sum, divergence in divergences(student, teacher, gamma)) / shape[0]
    np.testing.assert_allclose(wttm(student, teacher, gamma).item(), wanted, rtol=1e-12)
    assert_gradient_is_right(lambda logits: wttm(logits, teacher, gamma), student)


def test_the_default_power_is_0_1():
    student, teacher = drawn(0, 6, 5), drawn(1, 6, 5)
    assert ttm(student, teacher) == ttm(student, teacher, gamma=0.1)
    assert wttm(student, teacher) == wttm(student, teacher, gamma=0.1)


@pytest.mark.parametrize(("row", "power_sum"), [([0.0] * 4, 4**0.9), ([1e4, 0.0, 0.0, 0.0], 1.0)])
def test_the_power_sum_is_1_for_a_sure_teacher_and_largest_for_a_uniform_one(row, power_sum):
    teacher, student = torch.tensor([row]), torch.tensor([[0.0, 1.0, 2.0, 3.0]])
    np.testing.assert_allclose((wttm(student, teacher) / ttm(student, teacher)).item(), power_sum, rtol=1e-5)


@pytest.mark.parametrize("formula", FORMULAS)
@pytest.mark.parametrize("scale", [1.0, 30.0, 1e4])
def test_a_student_equal_to_the_softened_teacher_has_no_loss(formula, scale):
    teacher = drawn(0, 8, 100).float() * scale
    assert formula(0.1 * teacher, teacher, gamma=0.1).abs() <= 1e-6


@pytest.mark.parametrize("formula", FORMULAS)
@given(shift=st.floats(-20, 20))
def test_a_constant_added_to_all_logits_changes_nothing(formula, shift):
    student, teacher = drawn(0, 4, 5), drawn(1, 4, 5)
    np.testing.assert_allclose(formula(student + shift, teacher - shift).item(), formula(student, teacher).item())


@pytest.mark.parametrize("formula", FORMULAS)
@pytest.mark.parametrize("case", logit_edges(), ids=lambda case: case[0])
def test_ttm_is_finite_at_the_edges(formula, case):
    _, student, teacher, _ = case
    assert_finite(lambda logits: formula(logits, teacher), student)


@pytest.mark.parametrize("formula", FORMULAS)
def test_ttm_refuses_other_shapes_and_powers(formula):
    with pytest.raises(ValueError, match=r"\(2, 3\).*\(2, 4\)"):
        formula(torch.zeros(2, 3), torch.zeros(2, 4))
    with pytest.raises(ValueError, match="gamma must be above 0"):
        formula(torch.zeros(2, 3), torch.zeros(2, 3), gamma=0.0)


@pytest.mark.parametrize(("loss", "formula", "weight"), [(TTM, ttm, 45.0), (WTTM, wttm, 2.25)])
def test_ttm_is_a_loss(loss, formula, weight):
    binding = binding_for({"layer1": (2, 8, 8)}, {"layer2": (4, 4, 4)}, classes=7)
    assert_is_a_loss(loss(), binding)
    assert_is_a_loss(loss(gamma=0.3), binding)
    signals = signals_for(binding)
    assert loss(gamma=0.3)(signals) == formula(signals.student.logits, signals.teacher.logits, 0.3)
    torch.testing.assert_close(loss(gamma=0.3).logit_target(signals), 0.3 * signals.teacher.logits)
    assert (loss.recipe.weight, loss.recipe.ce) == (weight, 1.0)
    with pytest.raises(ValueError, match="gamma must be above 0"):
        loss(gamma=0.0)
