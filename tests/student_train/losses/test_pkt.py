"""PKT against its neighbour probabilities, written out one by one."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from student_train.losses.pkt import PKT, pkt
from tests.student_train.losses.checks import (
    assert_finite,
    assert_gradient_is_right,
    assert_is_a_loss,
    binding_for,
    drawn,
    logit_edges,
    map_edges,
    signals_for,
)


def slow_neighbours(vectors):
    rows = vectors.numpy()
    table = []
    for one in rows:
        similarities = []
        for other in rows:
            lengths = np.linalg.norm(one) * np.linalg.norm(other)
            similarities.append(((one @ other / lengths if lengths else 0.0) + 1) / 2)
        table.append([similarity / sum(similarities) for similarity in similarities])
    return table


def slow_pkt(student, teacher, eps=1e-7):
    ours, theirs, n = slow_neighbours(student), slow_neighbours(teacher), len(student)
    total = 0.0
    for i in range(n):
        for j in range(n):
            total += theirs[i][j] * math.log((theirs[i][j] + eps) / (ours[i][j] + eps))
    return total / n**2


@pytest.mark.parametrize("shape", [(2, 3, 3), (5, 4, 7), (7, 2, 2), (1, 3, 2)])
def test_pkt_is_its_pairs(shape):
    n, ours, theirs = shape
    student, teacher = drawn(0, n, ours), drawn(1, n, theirs)
    np.testing.assert_allclose(pkt(student, teacher).item(), slow_pkt(student, teacher), rtol=1e-10, atol=1e-16)
    assert_gradient_is_right(lambda vectors: pkt(vectors, teacher), student)


def test_a_zero_vector_is_at_cosine_0_of_all():
    student, teacher = drawn(0, 4, 3), drawn(1, 4, 3)
    student[1] = 0
    np.testing.assert_allclose(pkt(student, teacher).item(), slow_pkt(student, teacher), rtol=1e-10)


@given(seed=st.integers(0, 1000), scale=st.floats(1e-3, 1e3))
def test_pkt_ignores_scale_and_rotation_of_each_vector(seed, scale):
    student, teacher = drawn(seed, 5, 4), drawn(seed + 1, 5, 3)
    rotation = torch.linalg.qr(drawn(seed + 2, 4, 4))[0]
    scales = torch.tensor([scale, 1, 2, 3, 4], dtype=torch.float64)[:, None]
    torch.testing.assert_close(pkt(scales * student @ rotation, teacher), pkt(student, teacher))


def test_pkt_is_zero_for_equal_inputs_and_above_for_others():
    vectors = drawn(0, 8, 5).float()
    assert pkt(vectors, vectors.clone()).item() == 0
    assert pkt(drawn(1, 8, 5).float(), vectors).item() > 1e-4


def test_pkt_is_finite_for_opposite_vectors():
    # Dot products of many features round below -1.
    for seed in range(20):
        half = drawn(seed, 1, 20000).float()
        opposite = torch.cat([half, -half * 0.3])
        assert_finite(lambda vectors: pkt(vectors, drawn(0, 2, 4).float()), opposite)
        assert_finite(lambda vectors, fixed=opposite: pkt(vectors, fixed), drawn(0, 2, 4).float())


@pytest.mark.parametrize("case", logit_edges() + map_edges((6,), (4,)), ids=lambda case: case[0])
def test_pkt_is_finite_at_the_edges(case):
    _, student, teacher, *_ = case
    assert_finite(lambda vectors: pkt(vectors, teacher), student)


@pytest.mark.parametrize("shapes", [((3, 2), (4, 2)), ((3, 2, 1), (3, 2))])
def test_pkt_refuses_other_batches_and_what_is_no_vector(shapes):
    with pytest.raises(ValueError, match="vectors"):
        pkt(torch.zeros(shapes[0]), torch.zeros(shapes[1]))


def test_pkt_is_a_loss():
    binding = binding_for({"pooled": (4,), "layer1": (2, 3, 3)}, {"pooled": (6,), "layer1": (3, 2, 2)})
    parts = [assert_is_a_loss(loss, binding) for loss in (PKT(), PKT(on="layer1"), PKT(on="logits"))]
    torch.testing.assert_close(assert_is_a_loss(PKT(on="pooled+layer1+logits"), binding), sum(parts))
    torch.testing.assert_close(parts[0], pkt(*signals_for(binding).pair("pooled", "pooled")).detach())
