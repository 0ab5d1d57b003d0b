"""Activation boundaries against the loss written out, and its connectors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ground.errors import InvalidInput
from student_train.losses.ab import ActivationBoundary, activation_boundary, stage_weights
from tests.student_train.losses.checks import (
    assert_finite,
    assert_gradient_is_right,
    assert_is_a_loss,
    binding_for,
    drawn,
    map_edges,
    signals_for,
)
from tests.student_train.losses.plain_layers import array, convolved, normalised

SHAPES = [(3, 2, 4, 4), (1, 5, 1, 1), (4, 3, 2, 6), (5, 7)]


def boundary(student: np.ndarray, teacher: np.ndarray, margin: float) -> float:
    """The alternative loss, element by element."""
    total = 0.0
    for s, t in zip(student.flatten(), teacher.flatten(), strict=True):
        if t > 0 and s <= margin:
            total += (s - margin) ** 2
        if t <= 0 and s > -margin:
            total += (s + margin) ** 2
    return total / len(student)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("margin", [0.3, 1.0, 4.0])
def test_activation_boundary_is_its_formula(shape, margin):
    student, teacher = drawn(0, *shape, scale=2), drawn(1, *shape)
    value = activation_boundary(student, teacher, margin)
    np.testing.assert_allclose(value.item(), boundary(array(student), array(teacher), margin), rtol=1e-12)
    assert_gradient_is_right(lambda maps: activation_boundary(maps, teacher, margin), student)


def test_a_teacher_at_zero_does_not_fire():
    # (0.5 + 1)^2 for t = 0, and as if t < 0.
    assert activation_boundary(torch.tensor([[0.5]]), torch.tensor([[0.0]])).item() == 2.25
    assert activation_boundary(torch.tensor([[-1.5]]), torch.tensor([[0.0]])).item() == 0.0


@given(seed=st.integers(0, 1000), scale=st.floats(1e-3, 1e3))
def test_only_the_sign_of_the_teacher_matters(seed, scale):
    student, teacher = drawn(seed, 2, 3, 2, 2), drawn(seed + 1, 2, 3, 2, 2)
    assert activation_boundary(student, teacher * scale) == activation_boundary(student, teacher)


def test_a_student_beyond_the_margin_on_the_teachers_side_costs_nothing():
    teacher = drawn(0, 3, 2, 4, 4)
    assert activation_boundary(teacher.sign() * 1.01, teacher) == 0
    assert activation_boundary(teacher.sign() * 0.99, teacher) > 0


@pytest.mark.parametrize("case", map_edges((2, 4, 4), (2, 4, 4)), ids=lambda case: case[0])
def test_activation_boundary_is_finite_at_the_edges(case):
    _, student, teacher = case
    assert_finite(lambda maps: activation_boundary(maps, teacher), student)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"\(2, 3, 4, 4\).*\(2, 3, 2, 2\)"):
        activation_boundary(torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 2, 2))
    with pytest.raises(ValueError, match="margin must be above 0"):
        activation_boundary(torch.zeros(2, 3), torch.zeros(2, 3), margin=0.0)
    with pytest.raises(ValueError, match="margin must be above 0"):
        ActivationBoundary(margin=-1.0)
    with pytest.raises(InvalidInput, match="ab: both must be maps"):
        ActivationBoundary(layers="pooled").bind(binding_for({"pooled": (4,)}, {"pooled": (4,)}))


@pytest.mark.parametrize(("layers", "weights"), [(1, [1]), (3, [0.25, 0.5, 1]), (4, [0.125, 0.25, 0.5, 1])])
def test_each_layer_weighs_half_of_the_next(layers, weights):
    assert stage_weights(layers) == weights


def test_layers_are_connected_weighted_and_scaled():
    # The first keeps its shape and needs no connector; the third is twice as large as the teacher's.
    student = {"layer1.pre": (3, 4, 4), "layer2.pre": (2, 3, 2), "layer3.pre": (2, 4, 4), "layer1": (3, 4, 4)}
    teacher = {"layer1.pre": (3, 4, 4), "layer2.pre": (5, 3, 2), "layer3.pre": (4, 2, 2), "layer1": (3, 4, 4)}
    binding = binding_for(student, teacher)
    loss = ActivationBoundary(margin=0.7)
    value = assert_is_a_loss(loss, binding)
    assert loss.pairs == tuple((f"layer{place}.pre",) * 2 for place in (1, 2, 3))
    assert [len(connector) for connector in loss.connectors] == [0, 2, 2]
    signals = signals_for(binding)
    ours = [array(signals.student.features[name]) for name, _ in loss.pairs]
    connected = [
        ours[0],
        normalised(convolved(loss.connectors[1][0], ours[1])),
        normalised(array(loss.connectors[2][0](signals.student.features["layer3.pre"]))),
    ]
    theirs = [array(signals.teacher.features[name]) for _, name in loss.pairs]
    sums = [boundary(s, t, 0.7) for s, t in zip(connected, theirs, strict=True)]
    np.testing.assert_allclose(value.item(), (sums[0] / 4 + sums[1] / 2 + sums[2]) / 1000 * 3, rtol=1e-5)


def test_a_teacher_that_is_no_number_stays_visible():
    teacher = torch.ones(2, 3)
    teacher[1, 2] = float("nan")
    assert activation_boundary(torch.zeros(2, 3), teacher, 1.0).isnan()
