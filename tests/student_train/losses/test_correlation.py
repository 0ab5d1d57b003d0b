"""Correlation congruence against its neighbours, and its kernel form against its pairs, written out."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from student_train.losses.correlation import CC, correlation_congruence, kernel_correlation_congruence
from tests.student_train.losses.checks import (
    assert_finite,
    assert_gradient_is_right,
    assert_is_a_loss,
    binding_for,
    drawn,
    map_edges,
    signals_for,
)


def slow_neighbours(student, teacher):
    gaps = np.abs(student.numpy() - teacher.numpy())
    n, features = gaps.shape
    return sum(gaps[i, d] * gaps[i + 1, d] for i in range(n - 1) for d in range(features)) / (n - 1)


def slow_kernel(one, other, gamma, order):
    cosine = float(one @ other / (np.linalg.norm(one) * np.linalg.norm(other)))
    terms = [math.exp(-2 * gamma) * (2 * gamma) ** p / math.factorial(p) * cosine**p for p in range(order + 1)]
    return sum(terms)


def slow_kernels(student, teacher, gamma, order):
    ours, theirs, n = student.numpy(), teacher.numpy(), len(student)
    total = 0.0
    for i in range(n):
        for j in range(n):
            gap = slow_kernel(ours[i], ours[j], gamma, order) - slow_kernel(theirs[i], theirs[j], gamma, order)
            total += gap**2
    return total / n**2


@pytest.mark.parametrize("shape", [(2, 3), (5, 4), (7, 1)])
def test_cc_is_its_neighbours(shape):
    student, teacher = drawn(0, *shape), drawn(1, *shape)
    np.testing.assert_allclose(
        correlation_congruence(student, teacher).item(), slow_neighbours(student, teacher), rtol=1e-12
    )
    assert_gradient_is_right(correlation_congruence, student, teacher)


def test_cc_depends_on_the_order_of_the_batch():
    student, teacher = drawn(0, 5, 3), drawn(1, 5, 3)
    order = torch.tensor([2, 0, 1, 4, 3])
    assert correlation_congruence(student[order], teacher[order]) != correlation_congruence(student, teacher)


@pytest.mark.parametrize("shape", [(2, 3, 3), (5, 4, 2), (1, 2, 6)])
@pytest.mark.parametrize("setting", [(0.4, 2), (1.5, 1), (0.7, 4)])
def test_the_kernel_form_is_its_pairs(shape, setting):
    n, ours, theirs = shape
    student, teacher = drawn(0, n, ours), drawn(1, n, theirs)
    wanted = slow_kernels(student, teacher, *setting)
    np.testing.assert_allclose(kernel_correlation_congruence(student, teacher, *setting).item(), wanted, atol=1e-14)
    assert_gradient_is_right(lambda *both: kernel_correlation_congruence(*both, *setting), student, teacher)


def test_the_kernel_approaches_a_gaussian():
    student, teacher = drawn(0, 6, 4), drawn(1, 6, 4)
    ours, theirs = (torch.nn.functional.normalize(vectors) for vectors in (student, teacher))
    gaussians = [torch.exp(-0.4 * torch.cdist(rows, rows) ** 2) for rows in (ours, theirs)]
    wanted = (gaussians[0] - gaussians[1]).square().mean()
    torch.testing.assert_close(kernel_correlation_congruence(student, teacher, order=12), wanted)


@given(seed=st.integers(0, 1000), scale=st.floats(0.1, 10))
def test_the_kernel_form_ignores_scale_and_order(seed, scale):
    student, teacher = drawn(seed, 6, 4), drawn(seed + 1, 6, 3)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(seed))
    changed = kernel_correlation_congruence(scale * student[order], teacher[order])
    torch.testing.assert_close(changed, kernel_correlation_congruence(student, teacher))


@pytest.mark.parametrize("formula", [correlation_congruence, kernel_correlation_congruence])
def test_cc_is_zero_for_equal_inputs(formula):
    vectors = drawn(0, 8, 5).float()
    assert formula(vectors, vectors.clone()).item() == 0


@pytest.mark.parametrize("formula", [correlation_congruence, kernel_correlation_congruence])
@pytest.mark.parametrize("case", map_edges((5,), (5,)), ids=lambda case: case[0])
def test_cc_is_finite_at_the_edges(case, formula):
    _, student, teacher = case
    assert_finite(formula, student, teacher)


@pytest.mark.parametrize("shapes", [((3, 2), (3, 4)), ((3, 2), (4, 2)), ((3, 2, 1), (3, 2, 1))])
def test_cc_refuses_other_shapes(shapes):
    with pytest.raises(ValueError, match="embeddings"):
        correlation_congruence(torch.zeros(shapes[0]), torch.zeros(shapes[1]))


@pytest.mark.parametrize("shapes", [((3, 2), (4, 2)), ((3, 2, 1), (3, 2))])
def test_the_kernel_form_refuses_other_batches(shapes):
    with pytest.raises(ValueError, match="embeddings"):
        kernel_correlation_congruence(torch.zeros(shapes[0]), torch.zeros(shapes[1]))


@pytest.mark.parametrize(("setting", "name"), [({"gamma": 0.0}, "gamma"), ({"order": 0}, "order")])
def test_the_kernel_form_refuses_settings_out_of_range(setting, name):
    with pytest.raises(ValueError, match=name):
        kernel_correlation_congruence(torch.zeros(2, 2), torch.zeros(2, 2), **setting)
    with pytest.raises(ValueError, match=name):
        CC(kernel=True, **setting)


@pytest.mark.parametrize("setting", [{"gamma": 1.0}, {"order": 3}])
def test_cc_refuses_settings_that_would_be_ignored(setting):
    with pytest.raises(ValueError, match="kernel=true"):
        CC(**setting)


def test_cc_is_a_loss_and_learns_both_embeddings():
    binding = binding_for({"pooled": (4,), "layer1": (2, 3, 3)}, {"pooled": (6,), "layer1": (3, 2, 2)})
    for loss in (CC(), CC(on="layer1", dims=7), CC(kernel=True, gamma=1.0), CC(on="layer1+logits")):
        assert_is_a_loss(loss, binding)
        assert all(parameter.grad is not None for parameter in loss.parameters())
    assert [tuple(embed.weight.shape) for embed in loss.embeddings] == [(128, 18), (128, 12), (128, 5), (128, 5)]
    assert not loss.constrains_logits


def test_cc_compares_its_embeddings():
    binding = binding_for({"pooled": (4,)}, {"pooled": (6,)})
    signals = signals_for(binding)
    student, teacher = signals.pair("pooled", "pooled")
    for kernel, formula in ((False, correlation_congruence), (True, kernel_correlation_congruence)):
        loss = CC(kernel=kernel)
        loss.bind(binding)
        ours, theirs = loss.embeddings
        torch.testing.assert_close(loss(signals), formula(ours(student), theirs(teacher)))
