"""SP against its similarities, written out one by one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from student_train.losses.similarity import SP, similarity_preserving
from tests.student_train.losses.checks import (
    assert_finite,
    assert_gradient_is_right,
    assert_is_a_loss,
    binding_for,
    drawn,
    map_edges,
    signals_for,
)

# Samples, one of the student's, one of the teacher's.
SHAPES = [(2, (3,), (3,)), (5, (2, 3, 3), (4, 2, 2)), (4, (7,), (2, 1, 5)), (1, (2, 2, 2), (3,))]


def slow_similarities(features):
    rows = features.reshape(len(features), -1).numpy()
    n = len(rows)
    products = [[sum(a * b for a, b in zip(rows[i], rows[j], strict=True)) for j in range(n)] for i in range(n)]
    return [[value / sum(other**2 for other in row) ** 0.5 for value in row] for row in products]


def slow_similarity_preserving(student, teacher):
    ours, theirs, n = slow_similarities(student), slow_similarities(teacher), len(student)
    return sum((ours[i][j] - theirs[i][j]) ** 2 for i in range(n) for j in range(n)) / n**2


@pytest.mark.parametrize("shape", SHAPES)
def test_sp_is_its_similarities(shape):
    n, ours, theirs = shape
    student, teacher = drawn(0, n, *ours), drawn(1, n, *theirs)
    wanted = slow_similarity_preserving(student, teacher)
    np.testing.assert_allclose(similarity_preserving(student, teacher).item(), wanted, rtol=1e-10, atol=1e-20)
    assert_gradient_is_right(lambda maps: similarity_preserving(maps, teacher), student)


@given(seed=st.integers(0, 1000), scale=st.floats(1e-6, 1e6))
def test_sp_ignores_scale_and_rotation_of_the_student(seed, scale):
    student, teacher = drawn(seed, 5, 4), drawn(seed + 1, 5, 3)
    rotation = torch.linalg.qr(drawn(seed + 2, 4, 4))[0]
    torch.testing.assert_close(
        similarity_preserving(scale * student @ rotation, teacher), similarity_preserving(student, teacher)
    )


def test_sp_is_zero_for_equal_inputs():
    maps = drawn(0, 8, 2, 3, 3).float()
    assert similarity_preserving(maps, maps.clone()).item() == 0


@pytest.mark.parametrize("case", map_edges((2, 4, 4), (3, 2, 2)) + map_edges((5,), (2, 4, 4)), ids=lambda case: case[0])
def test_sp_is_finite_at_the_edges(case):
    _, student, teacher = case
    assert_finite(lambda maps: similarity_preserving(maps, teacher), student)


def test_products_of_large_maps_do_not_overflow():
    student, teacher = drawn(0, 4, 2, 8, 8).float(), drawn(1, 4, 2, 8, 8).float()
    torch.testing.assert_close(similarity_preserving(student * 1e12, teacher), similarity_preserving(student, teacher))


@pytest.mark.parametrize("shapes", [((3, 2), (4, 2)), ((3,), (3,))])
def test_sp_refuses_other_batches(shapes):
    with pytest.raises(ValueError, match=r"maps or vectors .*same in both"):
        similarity_preserving(torch.zeros(shapes[0]), torch.zeros(shapes[1]))


def test_sp_is_a_loss_and_adds_its_layers():
    binding = binding_for(
        {"layer3": (4, 2, 2), "pooled": (4,)}, {"layer3": (6, 4, 4), "layer4": (5, 2, 2), "pooled": (6,)}
    )
    assert_is_a_loss(SP(), binding)
    parts = [assert_is_a_loss(SP(layers=layers), binding) for layers in ("layer3:layer4", "pooled", "logits")]
    torch.testing.assert_close(assert_is_a_loss(SP(layers="layer3:layer4+pooled+logits"), binding), sum(parts))


def test_sp_takes_the_layers_it_names():
    binding = binding_for({"layer3": (4, 2, 2)}, {"layer3": (6, 4, 4), "layer4": (5, 2, 2)})
    loss, signals = SP(layers="layer3:layer4"), signals_for(binding)
    loss.bind(binding)
    torch.testing.assert_close(loss(signals), similarity_preserving(*signals.pair("layer3", "layer4")))
