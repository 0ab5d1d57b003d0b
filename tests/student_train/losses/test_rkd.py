"""RKD against its pairs and triplets, written out one by one."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ground.errors import InvalidInput
from student_train.losses import rkd
from student_train.losses.rkd import RKD, rkd_angle, rkd_distance
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

# Samples, features of the student, features of the teacher.
SHAPES = [(2, 3, 3), (5, 4, 7), (7, 1, 2), (6, 10, 3)]
FORMULAS = [rkd_distance, rkd_angle]


def smooth_l1(difference):
    return 0.5 * difference**2 if abs(difference) < 1 else abs(difference) - 0.5


def slow_distances(rows):
    distances = [[math.dist(one, other) for other in rows] for one in rows]
    positive = [distance for row in distances for distance in row if distance > 0]
    mean = sum(positive) / len(positive) if positive else 1.0
    return [[distance / mean for distance in row] for row in distances]


def slow_rkd_distance(student, teacher):
    ours, theirs = slow_distances(student.tolist()), slow_distances(teacher.tolist())
    n = len(ours)
    return sum(smooth_l1(ours[i][j] - theirs[i][j]) for i in range(n) for j in range(n)) / n**2


def slow_cosine(rows, i, j, k):
    to_i, to_k = np.subtract(rows[i], rows[j]), np.subtract(rows[k], rows[j])
    lengths = np.linalg.norm(to_i) * np.linalg.norm(to_k)
    return float(to_i @ to_k / lengths) if lengths else 0.0


def slow_rkd_angle(student, teacher):
    ours, theirs, n = student.numpy(), teacher.numpy(), len(student)
    triplets = [(i, j, k) for i in range(n) for j in range(n) for k in range(n)]
    return sum(smooth_l1(slow_cosine(ours, *triplet) - slow_cosine(theirs, *triplet)) for triplet in triplets) / n**3


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("formulas", [(rkd_distance, slow_rkd_distance), (rkd_angle, slow_rkd_angle)])
def test_rkd_is_its_pairs_and_triplets(shape, formulas):
    formula, slow = formulas
    n, ours, theirs = shape
    student, teacher = drawn(0, n, ours, scale=3), drawn(1, n, theirs)
    np.testing.assert_allclose(formula(student, teacher).item(), slow(student, teacher), rtol=1e-10, atol=1e-15)
    if ours > 1:
        assert_gradient_is_right(lambda vectors: formula(vectors, teacher), student)


@pytest.mark.parametrize("features", [3, 50])
def test_equal_rows_have_no_distance_and_no_angle(features):
    student, teacher = drawn(0, 5, features), drawn(1, 5, features)
    student[3], teacher[4] = student[0], teacher[1]
    np.testing.assert_allclose(rkd_distance(student, teacher).item(), slow_rkd_distance(student, teacher), rtol=1e-10)
    np.testing.assert_allclose(rkd_angle(student, teacher).item(), slow_rkd_angle(student, teacher), rtol=1e-10)


@pytest.mark.parametrize("n", [5, 9])
def test_rounding_gives_equal_rows_no_angle(n):
    # A matrix product need not round equal rows alike, and what is left of them has angles of any size.
    student, teacher = drawn(0, n, 513).float(), drawn(1, n, 2).float()
    student[::2] = student[0]
    wanted = slow_rkd_angle(student.double(), teacher.double())
    np.testing.assert_allclose(rkd_angle(student, teacher).item(), wanted, rtol=1e-4)


def test_the_mean_distance_is_differentiated_through():
    # A scale of the student changes nothing, so neither does a step along it.
    student, teacher = drawn(0, 6, 4).requires_grad_(), drawn(1, 6, 4)
    (gradient,) = torch.autograd.grad(rkd_distance(student, teacher), student)
    assert gradient.abs().max() > 1e-3
    assert abs((gradient * student).sum().item()) < 1e-12


@pytest.mark.parametrize("formula", FORMULAS)
@given(seed=st.integers(0, 1000), scale=st.floats(0.1, 10), shift=st.floats(-5, 5))
def test_rkd_ignores_scale_shift_and_rotation_of_the_student(formula, seed, scale, shift):
    student, teacher = drawn(seed, 5, 4), drawn(seed + 1, 5, 3)
    rotation = torch.linalg.qr(drawn(seed + 2, 4, 4))[0]
    moved = scale * student @ rotation + shift * drawn(seed + 3, 4)
    torch.testing.assert_close(formula(moved, teacher), formula(student, teacher), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("formula", FORMULAS)
def test_rkd_is_zero_for_equal_inputs(formula):
    vectors = drawn(0, 8, 5).float()
    assert formula(vectors, vectors.clone()).item() == 0


@pytest.mark.parametrize("formula", FORMULAS)
@pytest.mark.parametrize("case", logit_edges() + map_edges((6,), (4,)), ids=lambda case: case[0])
def test_rkd_is_finite_at_the_edges(case, formula):
    _, student, teacher, *_ = case
    assert_finite(lambda vectors: formula(vectors, teacher), student)


@pytest.mark.parametrize("formula", FORMULAS)
@pytest.mark.parametrize("shapes", [((3, 2), (4, 2)), ((3, 2, 1), (3, 2)), ((3,), (3,))])
def test_rkd_refuses_other_batches_and_what_is_no_vector(formula, shapes):
    with pytest.raises(ValueError, match="vectors"):
        formula(torch.zeros(shapes[0]), torch.zeros(shapes[1]))


def test_rkd_is_a_loss():
    binding = binding_for({"pooled": (4,), "layer1": (2, 3, 3)}, {"pooled": (6,), "layer1": (3, 2, 2)})
    assert_is_a_loss(RKD(), binding)
    assert_is_a_loss(RKD(on="pooled", angle=0.0), binding)
    assert_is_a_loss(RKD(on="layer1", distance=0.0), binding)
    assert_is_a_loss(RKD(on="logits+pooled"), binding)
    assert not RKD().constrains_logits


def test_rkd_weighs_distances_and_angles():
    binding = binding_for({}, {})
    loss, signals = RKD(distance=2.0, angle=3.0), signals_for(binding)
    loss.bind(binding)
    student, teacher = signals.pair("logits", "logits")
    torch.testing.assert_close(loss(signals), 2 * rkd_distance(student, teacher) + 3 * rkd_angle(student, teacher))


@pytest.mark.parametrize("part", ["distance", "angle"])
def test_a_part_of_weight_0_is_not_computed(monkeypatch, part):
    binding = binding_for({}, {})
    loss = RKD(**{part: 0.0})
    loss.bind(binding)
    monkeypatch.setattr(rkd, f"rkd_{part}", lambda student, teacher: pytest.fail("computed"))
    assert loss(signals_for(binding)) > 0


@pytest.mark.parametrize("weights", [(0.0, 0.0), (-1.0, 50.0), (25.0, -1.0)])
def test_rkd_refuses_weights_that_teach_nothing_or_the_contrary(weights):
    with pytest.raises(ValueError, match="not both 0"):
        RKD(*weights)


def test_angles_of_too_many_comparisons_are_refused():
    binding = binding_for({}, {}, rows=1100)
    loss = RKD()
    loss.bind(binding)
    with pytest.raises(InvalidInput, match="rkd: the angles of 1100 comparisons take .* set angle=0"):
        loss(signals_for(binding, batch=1100))
