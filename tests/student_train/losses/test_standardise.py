"""Z-scores against the definition written out, and what they make of KD."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from student_train.losses.kd import kd
from student_train.losses.standardise import standardise
from tests.student_train.losses.checks import assert_finite, assert_gradient_is_right, drawn, logit_edges


def by_formula(logits: torch.Tensor, eps: float = 1e-7) -> np.ndarray:
    rows = []
    for row in logits.tolist():
        mean = sum(row) / len(row)
        deviation = math.sqrt(sum((z - mean) ** 2 for z in row) / (len(row) - 1))
        rows.append([(z - mean) / (eps + deviation) for z in row])
    return np.array(rows)


def wrapped_kd(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    return kd(standardise(student), standardise(teacher), temperature=2.0)


@pytest.mark.parametrize("shape", [(1, 2), (4, 7), (3, 100)])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_rows_are_z_scores_with_the_unbiased_deviation(shape, scale):
    logits = drawn(0, *shape, scale=scale) + 5 * scale
    found = standardise(logits)
    np.testing.assert_allclose(found.numpy(), by_formula(logits), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(found.mean(dim=1).numpy(), 0, atol=1e-12)
    np.testing.assert_allclose(found.std(dim=1).numpy(), 1, rtol=1e-3)


def test_eps_is_added_to_the_deviation():
    np.testing.assert_allclose(standardise(torch.tensor([[1.0, 3.0]]), eps=1.0), [[-0.41421356, 0.41421356]], rtol=1e-6)


def test_its_gradient_is_right():
    teacher = drawn(1, 4, 6)
    assert_gradient_is_right(lambda logits: wrapped_kd(logits, teacher), drawn(0, 4, 6, scale=3))


@given(
    seed=st.integers(0, 1000),
    scales=st.tuples(st.floats(0.01, 100), st.floats(0.01, 100)),
    shifts=st.tuples(st.floats(-50, 50), st.floats(-50, 50)),
)
def test_kd_of_z_scores_ignores_scale_and_shift_of_each_row(seed, scales, shifts):
    student, teacher = drawn(seed, 3, 8), drawn(seed + 5000, 3, 8)
    # A scale and a shift of its own for every row.
    factors = torch.tensor([[scales[0]], [scales[1]], [1.0]], dtype=torch.float64)
    offsets = torch.tensor([[shifts[0]], [0.0], [shifts[1]]], dtype=torch.float64)
    plain = wrapped_kd(student, teacher)
    torch.testing.assert_close(wrapped_kd(factors * student + offsets, teacher), plain, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(wrapped_kd(student, factors * teacher + offsets), plain, rtol=1e-4, atol=1e-6)
    assert wrapped_kd(factors * student + offsets, student).abs() < 1e-6


@pytest.mark.parametrize("value", [0.0, 0.1, -3e4, 777.77, 12345.678, 1e20])
@pytest.mark.parametrize("classes", [1, 3, 100])
def test_constant_rows_are_zero_with_gradient_zero(value, classes):
    logits = torch.full((2, classes), value, requires_grad=True)
    found = standardise(logits)
    assert found.abs().max() == 0
    (gradient,) = torch.autograd.grad((found * drawn(0, 2, classes).float()).sum(), logits)
    assert gradient.abs().max() == 0


def test_one_constant_row_leaves_the_others_alone():
    logits = drawn(0, 3, 5).float()
    constant = logits.clone()
    constant[1] = 0.3
    found = standardise(constant)
    assert found[1].abs().max() == 0
    torch.testing.assert_close(found[[0, 2]], standardise(logits)[[0, 2]])


@pytest.mark.parametrize("case", logit_edges(), ids=lambda case: case[0])
def test_kd_of_z_scores_is_finite_at_the_edges(case):
    _, student, teacher, _ = case
    assert_finite(lambda logits: wrapped_kd(logits, teacher), student)
    assert standardise(student).dtype == torch.float32


def test_double_precision_and_other_shapes_are_kept():
    assert standardise(drawn(0, 2, 3)).dtype == torch.float64
    assert standardise(drawn(0, 2, 4, 3)).shape == (2, 4, 3)
