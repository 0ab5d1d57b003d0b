"""DIST against correlations taken row by row and column by column."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import softmax

from student_train.losses.dist import DIST, dist
from tests.student_train.losses.checks import (
    assert_finite,
    assert_gradient_is_right,
    assert_is_a_loss,
    binding_for,
    drawn,
    logit_edges,
    signals_for,
)

SHAPES = [(6, 5), (2, 3), (4, 2), (3, 20)]


def correlation(one, other):
    """Pearson's, with 1e-8 added to the product of norms."""
    one, other = [x - sum(one) / len(one) for x in one], [y - sum(other) / len(other) for y in other]
    product = sum(x * y for x, y in zip(one, other, strict=True))
    norms = sum(x * x for x in one) ** 0.5 * sum(y * y for y in other) ** 0.5
    return product / (norms + 1e-8)


def written_out(student, teacher, beta, gamma, temperature):
    p_s, p_t = (softmax(logits.numpy() / temperature, axis=1) for logits in (student, teacher))
    samples, classes = p_s.shape
    inter = sum(1 - correlation(p_s[i].tolist(), p_t[i].tolist()) for i in range(samples)) / samples
    intra = sum(1 - correlation(p_s[:, j].tolist(), p_t[:, j].tolist()) for j in range(classes)) / classes
    return temperature**2 * (beta * inter + gamma * intra)


@pytest.mark.parametrize(("beta", "gamma", "temperature"), [(1, 1, 4), (2, 0.5, 1), (0, 1, 4), (1, 0, 4)])
@pytest.mark.parametrize("shape", SHAPES)
def test_dist_is_one_minus_the_correlations(shape, beta, gamma, temperature):
    student, teacher = drawn(0, *shape), drawn(1, *shape)
    wanted = written_out(student, teacher, beta, gamma, temperature)
    np.testing.assert_allclose(dist(student, teacher, beta, gamma, temperature).item(), wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("shape", [(6, 5), (3, 20)])
def test_the_gradient_of_dist_is_right(shape):
    teacher = drawn(1, *shape)
    assert_gradient_is_right(lambda logits: dist(logits, teacher), drawn(0, *shape))
    assert_gradient_is_right(lambda logits: dist(logits, teacher, beta=3, gamma=0, temperature=1), drawn(0, *shape))


def test_the_correlations_are_numpys():
    student, teacher = drawn(0, 6, 5), drawn(1, 6, 5)
    p_s, p_t = softmax(student.numpy(), axis=1), softmax(teacher.numpy(), axis=1)
    inter = np.mean([1 - np.corrcoef(a, b)[0, 1] for a, b in zip(p_s, p_t, strict=True)])
    intra = np.mean([1 - np.corrcoef(a, b)[0, 1] for a, b in zip(p_s.T, p_t.T, strict=True)])
    value = dist(student, teacher, beta=1, gamma=10, temperature=1).item()
    np.testing.assert_allclose(value, inter + 10 * intra, rtol=1e-6)


def test_the_defaults_are_even_weights_at_temperature_4():
    student, teacher = drawn(0, 6, 5), drawn(1, 6, 5)
    assert dist(student, teacher) == dist(student, teacher, beta=1.0, gamma=1.0, temperature=4.0)


def test_dist_of_equal_logits_is_zero_up_to_the_added_1e_8():
    logits = drawn(0, 16, 10)
    assert 0 <= dist(logits, logits.clone()).item() < 1e-3
    assert dist(logits, -logits) > 16


@given(scale=st.floats(0.2, 1.0), shift=st.floats(0.0, 5.0))
def test_the_part_across_classes_ignores_scale_and_shift_of_probabilities(scale, shift):
    # The paper's relaxed match: Pearson's correlation is the same for a * p + b.
    p_s, teacher = torch.softmax(drawn(0, 4, 5), dim=1), drawn(1, 4, 5)
    moved = scale * p_s + shift
    moved = moved / moved.sum(dim=1, keepdim=True)
    value = dist(moved.log(), teacher, gamma=0, temperature=1).item()
    np.testing.assert_allclose(value, dist(p_s.log(), teacher, gamma=0, temperature=1).item(), atol=1e-4)


def test_a_batch_of_one_counts_as_uncorrelated_across_the_batch():
    logits = drawn(0, 1, 5)
    np.testing.assert_allclose(dist(logits, logits.clone(), beta=0, temperature=4).item(), 16)


@pytest.mark.parametrize("case", logit_edges(), ids=lambda case: case[0])
def test_dist_is_finite_at_the_edges(case):
    _, student, teacher, _ = case
    assert_finite(lambda logits: dist(logits, teacher), student)


def test_dist_refuses_other_shapes_and_temperatures():
    with pytest.raises(ValueError, match=r"\(2, 3\).*\(2, 4\)"):
        dist(torch.zeros(2, 3), torch.zeros(2, 4))
    with pytest.raises(ValueError, match="temperature must be above 0"):
        dist(torch.zeros(2, 3), torch.zeros(2, 3), temperature=0.0)
    with pytest.raises(ValueError, match="temperature must be above 0"):
        DIST(temperature=0.0)


def test_dist_is_a_loss():
    binding = binding_for({"layer1": (2, 8, 8)}, {"layer2": (4, 4, 4)}, classes=7)
    assert_is_a_loss(DIST(), binding)
    loss = DIST(beta=2.0, gamma=3.0, temperature=1.5)
    assert_is_a_loss(loss, binding)
    signals = signals_for(binding)
    assert loss(signals) == dist(signals.student.logits, signals.teacher.logits, 2.0, 3.0, 1.5)
    assert loss.logit_target(signals) is signals.teacher.logits
    assert (DIST.recipe.weight, DIST.recipe.ce, DIST.recipe.kd) == (2.0, 1.0, 1.0)
