"""Attention transfer against its formula in loops, and what it does not depend on."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ground.errors import InvalidInput
from student_train.losses.attention import AttentionTransfer, attention_distance, attention_transfer
from tests.student_train.losses.checks import (
    assert_finite,
    assert_gradient_is_right,
    assert_is_a_loss,
    binding_for,
    drawn,
    map_edges,
    signals_for,
)
from tests.student_train.losses.plain_layers import array, halved

FORMULAS = [attention_transfer, attention_distance]
SHAPES = [((3, 2, 4, 4), (3, 5, 4, 4)), ((1, 1, 2, 3), (1, 4, 2, 3)), ((4, 3, 1, 2), (4, 3, 1, 2))]


def attention_of(one: np.ndarray) -> np.ndarray:
    """Of one sample (C, H, W): sums of squares over channels, divided by their length."""
    channels, height, width = one.shape
    sums = np.zeros(height * width)
    for c, h, w in np.ndindex(channels, height, width):
        sums[h * width + w] += one[c, h, w] ** 2
    return sums / np.sqrt((sums**2).sum())


@pytest.mark.parametrize(("ours", "theirs"), SHAPES)
def test_attention_transfer_is_its_formula(ours, theirs):
    student, teacher = drawn(0, *ours), drawn(1, *theirs)
    differences = [attention_of(s) - attention_of(t) for s, t in zip(array(student), array(teacher), strict=True)]
    wanted = sum(value**2 for difference in differences for value in difference) / np.size(differences)
    np.testing.assert_allclose(attention_transfer(student, teacher).item(), wanted, rtol=1e-12)
    paper = sum(np.linalg.norm(difference) for difference in differences) / 2 / len(differences)
    np.testing.assert_allclose(attention_distance(student, teacher).item(), paper, rtol=1e-12)


@pytest.mark.parametrize("formula", FORMULAS)
def test_gradients_are_right(formula):
    teacher = drawn(1, 3, 5, 4, 2)
    assert_gradient_is_right(lambda maps: formula(maps, teacher), drawn(0, 3, 2, 4, 2))
    assert_gradient_is_right(lambda maps: formula(maps, teacher), drawn(0, 3, 2, 8, 4))


@pytest.mark.parametrize("formula", FORMULAS)
def test_the_larger_map_is_pooled_whichever_it_is(formula):
    large, small = drawn(0, 3, 2, 8, 4), drawn(1, 3, 5, 4, 2)
    wanted = formula(torch.from_numpy(halved(array(large))), small)
    torch.testing.assert_close(formula(large, small), wanted)
    torch.testing.assert_close(formula(small, large), wanted)


@given(seed=st.integers(0, 1000), scale=st.floats(0.01, 100) | st.floats(-100, -0.01))
def test_neither_scale_nor_sign_nor_the_order_of_channels_matters(seed, scale):
    student, teacher = drawn(seed, 2, 3, 2, 2), drawn(seed + 1, 2, 4, 2, 2)
    torch.testing.assert_close(
        attention_transfer(student.flip(1) * scale, teacher), attention_transfer(student, teacher)
    )


@pytest.mark.parametrize("formula", FORMULAS)
def test_equal_maps_cost_nothing(formula):
    maps = drawn(0, 3, 2, 4, 4).requires_grad_()
    loss = formula(maps, maps.detach() * 2)
    assert abs(loss.item()) < 1e-15
    assert torch.autograd.grad(loss, maps)[0].isfinite().all()


@pytest.mark.parametrize("formula", FORMULAS)
@pytest.mark.parametrize(
    "case", map_edges((2, 4, 4), (3, 4, 4)) + map_edges((2, 2, 2), (3, 4, 4)), ids=lambda case: case[0]
)
def test_attention_is_finite_at_the_edges(formula, case):
    _, student, teacher = case
    assert_finite(lambda maps: formula(maps, teacher), student)


@pytest.mark.parametrize("formula", FORMULAS)
def test_what_is_no_map_of_the_same_samples_is_refused(formula):
    with pytest.raises(ValueError, match=r"\(2, 3, 4, 4\).*\(1, 3, 4, 4\).*number of samples must be the same"):
        formula(torch.zeros(2, 3, 4, 4), torch.zeros(1, 3, 4, 4))
    with pytest.raises(ValueError, match=r"\(2, 3\).*\(2, 3\)"):
        formula(torch.zeros(2, 3), torch.zeros(2, 3))


@pytest.mark.parametrize("squared", [True, False])
def test_layers_are_summed(squared):
    binding = binding_for(
        {"layer1": (2, 8, 8), "layer2": (4, 4, 4), "layer3": (3, 2, 2)}, {"layer1": (6, 4, 4), "layer2": (8, 4, 4)}
    )
    loss = AttentionTransfer(squared=squared)
    value = assert_is_a_loss(loss, binding)
    assert loss.pairs == (("layer1", "layer1"), ("layer2", "layer2"))
    signals = signals_for(binding)
    formula = attention_transfer if squared else attention_distance
    wanted = sum(formula(*signals.pair(*pair)) for pair in loss.pairs)
    torch.testing.assert_close(value, wanted.detach())


def test_vectors_are_refused():
    shapes = {"layer1": (2, 8, 8), "pooled": (4,)}
    with pytest.raises(InvalidInput, match=r"at: both must be maps.*\n.*\n.*pooled +4 +pooled +4"):
        AttentionTransfer(layers="pooled").bind(binding_for(shapes, shapes))
