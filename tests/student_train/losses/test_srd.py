"""SRD against standardisation, powers and the logarithm written out."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ground.errors import InvalidInput
from student_train.losses.srd import SRD, averaged, srd
from tests.student_train.losses.checks import (
    assert_finite,
    assert_gradient_is_right,
    assert_is_a_loss,
    binding_for,
    drawn,
    map_edges,
    signals_for,
)

SHAPES = [(4, 3), (7, 1), (2, 6), (1, 3)]


def slow_standardised(rows):
    count = len(rows)
    result = [[0.0] * len(rows[0]) for _ in rows]
    for column in range(len(rows[0])):
        mean = sum(row[column] for row in rows) / count
        variance = sum((row[column] - mean) ** 2 for row in rows) / count
        for place, row in enumerate(rows):
            result[place][column] = (row[column] - mean) / math.sqrt(variance + 1e-4)
    return result


def slow_srd(student, teacher, alpha):
    ours, theirs = slow_standardised(student.tolist()), slow_standardised(teacher.tolist())
    powers = [
        abs(a - b) ** alpha for row, target in zip(ours, theirs, strict=True) for a, b in zip(row, target, strict=True)
    ]
    return math.log(1e-5 + sum(powers))


@pytest.mark.parametrize("alpha", [1.0, 2.5, 4.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_srd_is_its_formula(shape, alpha):
    student, teacher = drawn(0, *shape), drawn(1, *shape, scale=3)
    np.testing.assert_allclose(srd(student, teacher, alpha).item(), slow_srd(student, teacher, alpha), rtol=1e-10)
    if shape[0] > 2:
        assert_gradient_is_right(lambda vectors: srd(vectors, teacher, alpha), student)


def test_srd_uses_the_fourth_power():
    student, teacher = drawn(0, 5, 3), drawn(1, 5, 3)
    assert srd(student, teacher).item() == pytest.approx(slow_srd(student, teacher, 4.0))
    assert SRD().alpha == 4.0


@given(seed=st.integers(0, 1000), scale=st.floats(0.5, 50), shift=st.floats(-20, 20))
def test_srd_hardly_sees_scale_and_never_the_level_of_a_value(seed, scale, shift):
    student, teacher = drawn(seed, 8, 3, scale=10), drawn(seed + 5000, 8, 3, scale=10)
    torch.testing.assert_close(srd(student * scale + shift, teacher), srd(student, teacher), rtol=1e-3, atol=1e-3)


def test_equal_inputs_have_a_finite_loss_and_no_gradient():
    teacher = drawn(0, 6, 4).float()
    student = teacher.clone().requires_grad_()
    loss = srd(student, teacher)
    loss.backward()
    assert loss.item() == pytest.approx(math.log(1e-5))
    assert student.grad.abs().max() == 0
    near = (teacher + 1e-3 * drawn(1, 6, 4).float()).requires_grad_()
    srd(near, teacher).backward()
    assert near.grad.isfinite().all()


@pytest.mark.parametrize("case", map_edges((5,), (5,)), ids=lambda case: case[0])
def test_srd_is_finite_at_the_edges(case):
    _, student, teacher = case
    assert_finite(lambda vectors: srd(vectors, teacher), student)
    assert_finite(lambda vectors: srd(vectors, teacher, 1.0), student)


def test_srd_refuses_other_shapes_and_powers():
    with pytest.raises(ValueError, match=r"\(2, 3\).*\(2, 4\)"):
        srd(torch.zeros(2, 3), torch.zeros(2, 4))
    with pytest.raises(ValueError, match="2 dimensions"):
        srd(torch.zeros(2, 3, 1, 1), torch.zeros(2, 3, 1, 1))
    with pytest.raises(ValueError, match="alpha"):
        srd(torch.zeros(2, 3), torch.zeros(2, 3), alpha=0.5)
    with pytest.raises(ValueError, match="alpha"):
        SRD(alpha=0)


SHAPES_OF_BOTH = {"pooled": (3,), "layer2": (2, 4, 4)}, {"pooled": (6,), "layer2": (5, 8, 8)}


def test_srd_is_a_loss_on_any_output():
    binding = binding_for(*SHAPES_OF_BOTH)
    for on in ("pooled", "logits", "layer2", "pooled+layer2"):
        loss = SRD(on=on)
        assert_is_a_loss(loss, binding)
        assert not loss.constrains_logits
    assert [tuple(parameter.shape) for parameter in loss.parameters()] == [(6, 3), (6,), (5, 2), (5,)]


def test_maps_are_averaged_and_outputs_summed():
    binding = binding_for(*SHAPES_OF_BOTH)
    loss, signals = SRD(on="pooled+layer2", alpha=2.0), signals_for(binding)
    loss.bind(binding)
    ours, theirs = signals.student.features, signals.teacher.features
    first, second = loss.projectors
    wanted = srd(ours["pooled"] @ first.weight.T + first.bias, theirs["pooled"], 2.0) + srd(
        ours["layer2"].sum(dim=(2, 3)) / 16 @ second.weight.T + second.bias, theirs["layer2"].sum(dim=(2, 3)) / 64, 2.0
    )
    torch.testing.assert_close(loss(signals), wanted)
    assert averaged(theirs["pooled"]) is theirs["pooled"]


def test_what_is_no_vector_or_map_is_refused():
    with pytest.raises(InvalidInput, match=r"srd: .*\n.*student layer .*\n.*layer1 +4 x 2 +layer1 +6"):
        SRD(on="layer1").bind(binding_for({"layer1": (4, 2)}, {"layer1": (6,)}))
