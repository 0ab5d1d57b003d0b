"""CWD against softmaxes and logarithms written out."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ground.errors import InvalidInput
from student_train.losses.cwd import CWD, cwd
from tests.student_train.losses.checks import (
    assert_finite,
    assert_gradient_is_right,
    assert_is_a_loss,
    binding_for,
    drawn,
    map_edges,
    signals_for,
)

SHAPES = [(3, 2, 4, 4), (1, 5, 1, 3), (2, 3, 2, 5), (2, 2, 1, 1)]


def softmax(values, temperature):
    powers = [math.exp(value / temperature) for value in values]
    return [power / sum(powers) for power in powers]


def slow_cwd(student, teacher, temperature):
    total = 0.0
    for ours, theirs in zip(student.flatten(2).tolist(), teacher.flatten(2).tolist(), strict=True):
        for channel, target in zip(ours, theirs, strict=True):
            p, q = softmax(target, temperature), softmax(channel, temperature)
            total += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    return temperature**2 * total / (student.shape[0] * student.shape[1])


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_cwd_is_its_formula(shape, temperature):
    student, teacher = drawn(0, *shape, scale=3), drawn(1, *shape, scale=3)
    found = cwd(student, teacher, temperature).item()
    np.testing.assert_allclose(found, slow_cwd(student, teacher, temperature), rtol=1e-10, atol=1e-14)
    assert_gradient_is_right(lambda maps: cwd(maps, teacher, temperature), student)


def test_cwd_uses_temperature_4():
    student, teacher = drawn(0, 2, 3, 4, 4), drawn(1, 2, 3, 4, 4)
    assert cwd(student, teacher).item() == pytest.approx(slow_cwd(student, teacher, 4.0))
    assert CWD().temperature == 4.0


@given(seed=st.integers(0, 1000), shift=st.floats(-20, 20))
def test_cwd_is_a_divergence_that_ignores_a_constant_added_to_a_channel(seed, shift):
    student, teacher = drawn(seed, 2, 3, 2, 3), drawn(seed + 5000, 2, 3, 2, 3)
    loss = cwd(student, teacher)
    assert loss > 0
    moved = student + shift * torch.tensor([1.0, -2.0, 0.5])[:, None, None]
    torch.testing.assert_close(cwd(moved, teacher), loss)
    assert abs(cwd(moved, student).item()) <= 1e-10


@pytest.mark.parametrize("case", map_edges((2, 4, 4), (2, 4, 4)), ids=lambda case: case[0])
def test_cwd_is_finite_at_the_edges(case):
    _, student, teacher = case
    assert_finite(lambda maps: cwd(maps, teacher), student)
    assert cwd(teacher, teacher).item() == pytest.approx(0, abs=1e-6)


def test_cwd_refuses_other_shapes_and_temperatures():
    with pytest.raises(ValueError, match=r"\(2, 3, 4, 4\).*\(2, 3, 2, 2\)"):
        cwd(torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 2, 2))
    with pytest.raises(ValueError, match="temperature"):
        cwd(torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 4, 4), temperature=0)
    with pytest.raises(ValueError, match="temperature"):
        CWD(temperature=-1)


def test_cwd_is_a_loss_that_learns_only_where_channels_differ():
    binding = binding_for({"layer2": (3, 8, 8), "layer3": (3, 4, 4)}, {"layer2": (6, 4, 4), "layer3": (3, 4, 8)})
    loss = CWD()
    assert_is_a_loss(loss, binding)
    assert not list(loss.parameters())
    both = CWD(layers="layer2+layer3")
    assert_is_a_loss(both, binding)
    assert [tuple(parameter.shape) for parameter in both.parameters()] == [(6, 3, 1, 1), (6,)]
    small = binding_for({"layer3": (2, 2, 2)}, {"layer3": (3, 8, 8)})
    assert_is_a_loss(CWD(), small)


def test_the_class_pools_the_larger_map_and_sums_layers():
    shapes = {"layer2": (2, 8, 8), "layer3": (2, 4, 4)}, {"layer2": (2, 4, 4), "layer3": (2, 8, 8)}
    binding = binding_for(*shapes)
    loss, signals = CWD(layers="layer2+layer3", temperature=2.0), signals_for(binding)
    loss.bind(binding)

    def halved(maps):
        return (maps[:, :, ::2, ::2] + maps[:, :, 1::2, ::2] + maps[:, :, ::2, 1::2] + maps[:, :, 1::2, 1::2]) / 4

    ours, theirs = signals.student.features, signals.teacher.features
    wanted = cwd(halved(ours["layer2"]), theirs["layer2"], 2.0) + cwd(ours["layer3"], halved(theirs["layer3"]), 2.0)
    torch.testing.assert_close(loss(signals), wanted)


def test_vectors_and_single_positions_are_refused():
    with pytest.raises(InvalidInput, match=r"cwd: .*\n.*student layer .*\n.*pooled +4 +pooled +6"):
        CWD(layers="pooled").bind(binding_for({"pooled": (4,)}, {"pooled": (6,)}))
    with pytest.raises(InvalidInput, match=r"single position.*\n.*\n.*layer3 +4 x 1 x 1 +layer3 +6 x 8 x 8"):
        CWD().bind(binding_for({"layer3": (4, 1, 1)}, {"layer3": (6, 8, 8)}))
