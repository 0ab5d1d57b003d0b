"""NST against its kernel means, written out channel by channel, and its two ways against each other."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ground.errors import InvalidInput
from student_train.losses.nst import NST, nst
from tests.student_train.losses.checks import (
    assert_finite,
    assert_gradient_is_right,
    assert_is_a_loss,
    binding_for,
    drawn,
    map_edges,
)

# Of the student and of the teacher: few positions, many, other sizes.
SHAPES = [
    ((2, 3, 4, 4), (2, 5, 4, 4)),
    ((3, 6, 2, 2), (3, 9, 2, 2)),
    ((2, 3, 4, 4), (2, 7, 2, 2)),
    ((2, 4, 2, 3), (2, 2, 4, 6)),
    ((1, 2, 4, 2), (1, 3, 2, 4)),
    ((2, 1, 1, 1), (2, 1, 3, 3)),
]


def slow_pooled(maps, height, width):
    """Average pooling to a size that divides the map's."""
    samples, channels, rows, columns = maps.shape
    blocks = maps.reshape(samples, channels, height, rows // height, width, columns // width)
    return blocks.mean(axis=(3, 5))


def slow_kernel_mean(one, other):
    total = 0.0
    for x in one:
        for y in other:
            total += float(x @ y) ** 2
    return total / (len(one) * len(other))


def slow_nst(student, teacher):
    size = np.minimum(student.shape[2:], teacher.shape[2:])
    total = 0.0
    for ours, theirs in zip(slow_pooled(student.numpy(), *size), slow_pooled(teacher.numpy(), *size), strict=True):
        s, t = ([channel.ravel() / np.linalg.norm(channel) for channel in maps] for maps in (ours, theirs))
        total += slow_kernel_mean(t, t) + slow_kernel_mean(s, s) - 2 * slow_kernel_mean(s, t)
    return total / len(student)


@pytest.mark.parametrize("shapes", SHAPES)
def test_nst_is_its_kernel_means(shapes):
    student, teacher = drawn(0, *shapes[0]), drawn(1, *shapes[1])
    np.testing.assert_allclose(nst(student, teacher).item(), slow_nst(student, teacher), rtol=1e-10, atol=1e-14)
    assert_gradient_is_right(lambda maps: nst(maps, teacher), student)


@given(
    seed=st.integers(0, 1000),
    channels=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    size=st.tuples(st.integers(1, 4), st.integers(1, 4)),
)
def test_both_ways_of_computing_agree(seed, channels, size):
    student, teacher = drawn(seed, 2, channels[0], *size), drawn(seed + 1, 2, channels[1], *size)
    np.testing.assert_allclose(nst(student, teacher).item(), slow_nst(student, teacher), rtol=1e-9, atol=1e-13)


def test_nst_ignores_the_order_and_scale_of_channels():
    student, teacher = drawn(0, 2, 5, 3, 3), drawn(1, 2, 4, 3, 3)
    changed = student[:, [3, 1, 4, 0, 2]] * torch.tensor([1.0, 2, -3, 4, 5]).view(1, -1, 1, 1)
    torch.testing.assert_close(nst(changed, teacher), nst(student, teacher))


@pytest.mark.parametrize("shape", [(3, 2, 5, 5), (3, 8, 2, 2)])
def test_nst_is_zero_for_equal_inputs(shape):
    maps = drawn(0, *shape).float()
    assert abs(nst(maps, maps.clone()).item()) < 1e-6


@pytest.mark.parametrize(
    "case", map_edges((2, 4, 4), (3, 4, 4)) + map_edges((8, 2, 2), (3, 4, 4)), ids=lambda case: case[0]
)
def test_nst_is_finite_at_the_edges(case):
    _, student, teacher = case
    assert_finite(lambda maps: nst(maps, teacher), student)


@pytest.mark.parametrize("shapes", [((3, 2, 2, 2), (4, 2, 2, 2)), ((3, 2), (3, 2))])
def test_nst_refuses_other_batches_and_what_is_no_map(shapes):
    with pytest.raises(ValueError, match="maps"):
        nst(torch.zeros(shapes[0]), torch.zeros(shapes[1]))


def test_nst_is_a_loss_and_adds_its_layers():
    binding = binding_for({"layer1": (2, 8, 8), "layer2": (4, 4, 4)}, {"layer1": (6, 8, 8), "layer2": (12, 2, 2)})
    parts = [assert_is_a_loss(NST(layers=layers), binding) for layers in ("layer1", "layer2")]
    torch.testing.assert_close(assert_is_a_loss(NST(), binding), sum(parts))


def test_nst_refuses_vectors_with_a_table():
    with pytest.raises(InvalidInput, match=r"nst: .*\n.*student layer .*\n.*pooled +4 +pooled +6"):
        NST(layers="pooled").bind(binding_for({"pooled": (4,)}, {"pooled": (6,)}))
