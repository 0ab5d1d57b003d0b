"""ICKD against its channel correlations, written out one by one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from ground.errors import InvalidInput
from student_train.losses.ickd import ICKD, ickd
from tests.student_train.losses.checks import (
    assert_finite,
    assert_gradient_is_right,
    assert_is_a_loss,
    binding_for,
    drawn,
    map_edges,
    signals_for,
)

SHAPES = [((2, 3, 4, 4), (2, 3, 4, 4)), ((3, 4, 2, 2), (3, 4, 5, 3)), ((1, 2, 1, 3), (1, 2, 2, 2))]


def slow_correlations(maps):
    channels = [channel.ravel() for channel in maps]
    rows = [np.array([float(one @ other) for other in channels]) for one in channels]
    return [row / np.sqrt(sum(value**2 for value in row)) for row in rows]


def slow_ickd(student, teacher):
    samples, channels = student.shape[:2]
    total = 0.0
    for ours, theirs in zip(student.numpy(), teacher.numpy(), strict=True):
        for our_row, their_row in zip(slow_correlations(ours), slow_correlations(theirs), strict=True):
            total += sum((a - b) ** 2 for a, b in zip(our_row, their_row, strict=True))
    return total / (channels * samples)


@pytest.mark.parametrize("shapes", SHAPES)
def test_ickd_is_its_correlations(shapes):
    student, teacher = drawn(0, *shapes[0]), drawn(1, *shapes[1])
    np.testing.assert_allclose(ickd(student, teacher).item(), slow_ickd(student, teacher), rtol=1e-10)
    assert_gradient_is_right(lambda maps: ickd(maps, teacher), student)


@given(seed=st.integers(0, 1000), scale=st.floats(1e-6, 1e6))
def test_ickd_ignores_scale_and_the_order_of_positions(seed, scale):
    student, teacher = drawn(seed, 2, 3, 2, 2), drawn(seed + 1, 2, 3, 2, 2)
    changed = scale * student.flip(2, 3)
    torch.testing.assert_close(ickd(changed, teacher), ickd(student, teacher))


def test_ickd_is_zero_for_equal_inputs():
    maps = drawn(0, 4, 5, 3, 3).float()
    assert ickd(maps, maps.clone()).item() == 0


def test_products_of_large_maps_do_not_overflow():
    student, teacher = drawn(0, 2, 3, 8, 8).float(), drawn(1, 2, 3, 8, 8).float()
    torch.testing.assert_close(ickd(student * 1e12, teacher), ickd(student, teacher))


def test_ickd_survives_a_dead_channel():
    student, teacher = drawn(0, 2, 3, 4, 4).float(), drawn(1, 2, 3, 4, 4).float()
    student[:, 1] = 0
    assert_finite(lambda maps: ickd(maps, teacher), student)
    assert_finite(lambda maps: ickd(maps, student), teacher)


@pytest.mark.parametrize("case", map_edges((3, 4, 4), (3, 2, 2)), ids=lambda case: case[0])
def test_ickd_is_finite_at_the_edges(case):
    _, student, teacher = case
    assert_finite(lambda maps: ickd(maps, teacher), student)


@pytest.mark.parametrize("shapes", [((2, 3, 4, 4), (2, 4, 4, 4)), ((2, 3, 4, 4), (1, 3, 4, 4)), ((2, 3), (2, 3))])
def test_ickd_refuses_other_channels_and_batches(shapes):
    with pytest.raises(ValueError, match="channels"):
        ickd(torch.zeros(shapes[0]), torch.zeros(shapes[1]))


def test_ickd_is_a_loss_and_learns_an_embedding_for_each_layer():
    shapes = {"layer2": (3, 4, 4), "layer3": (4, 2, 2)}, {"layer2": (3, 4, 4), "layer3": (6, 4, 4)}
    binding = binding_for(*shapes)
    assert_is_a_loss(ICKD(), binding)
    both = ICKD(layers="layer2+layer3")
    assert_is_a_loss(both, binding)
    assert [tuple(embed[0].weight.shape[:2]) for embed in both.embeddings] == [(3, 3), (6, 4)]
    assert all(parameter.grad is not None for parameter in both.parameters())


def test_without_need_an_embedding_can_be_left_out():
    binding = binding_for({"layer2": (3, 4, 4), "layer3": (4, 2, 2)}, {"layer2": (3, 4, 4), "layer3": (6, 4, 4)})
    plain = ICKD(layers="layer2", always_embed=False)
    value = assert_is_a_loss(plain, binding)
    torch.testing.assert_close(value, ickd(*signals_for(binding).pair("layer2", "layer2")).detach())
    needed = ICKD(layers="layer3", always_embed=False)
    needed.bind(binding)
    assert isinstance(needed.embeddings[0][0], nn.Conv2d)


def test_ickd_refuses_vectors_with_a_table():
    with pytest.raises(InvalidInput, match=r"ickd: .*\n.*student layer .*\n.*pooled +4 +pooled +6"):
        ICKD(layers="pooled").bind(binding_for({"pooled": (4,)}, {"pooled": (6,)}))
