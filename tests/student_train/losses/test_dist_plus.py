"""DIST+ on features against numpy's correlations, row by row."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ground.errors import InvalidInput
from student_train.losses.dist_plus import DISTPlus, dist_plus, pearson
from tests.student_train.losses.checks import (
    assert_finite,
    assert_gradient_is_right,
    assert_is_a_loss,
    binding_for,
    drawn,
    map_edges,
    signals_for,
)

SHAPES = [(5, 4), (3, 4, 2, 2), (2, 3, 1, 4), (4, 2, 3, 3)]


def slow_dist_plus(student, teacher, beta, gamma):
    """Every position of every sample is a row; np.corrcoef of each row and of each column."""
    ours, theirs = (
        [list(row) for sample in features.reshape(*features.shape[:2], -1) for row in sample.T]
        for features in (student, teacher)
    )
    inter = np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(ours, theirs, strict=True)])
    columns = zip(zip(*ours, strict=True), zip(*theirs, strict=True), strict=True)
    intra = np.mean([np.corrcoef(a, b)[0, 1] for a, b in columns])
    return beta * (1 - inter) + gamma * (1 - intra)


@pytest.mark.parametrize(("beta", "gamma"), [(1.0, 1.0), (2.0, 0.0), (0.0, 0.5)])
@pytest.mark.parametrize("shape", SHAPES)
def test_dist_plus_is_its_formula(shape, beta, gamma):
    student, teacher = drawn(0, *shape), drawn(1, *shape)
    wanted = slow_dist_plus(student.numpy(), teacher.numpy(), beta, gamma)
    np.testing.assert_allclose(dist_plus(student, teacher, beta, gamma).item(), wanted, rtol=1e-10)
    if shape[1] > 2:
        assert_gradient_is_right(lambda features: dist_plus(features, teacher, beta, gamma), student)


@given(seed=st.integers(0, 1000), scale=st.floats(0.5, 50), shift=st.floats(-20, 20))
def test_scale_and_level_are_open_and_opposites_are_farthest(seed, scale, shift):
    student, teacher = drawn(seed, 4, 3, 2, 2), drawn(seed + 5000, 4, 3, 2, 2)
    torch.testing.assert_close(dist_plus(student * scale + shift, teacher), dist_plus(student, teacher))
    assert abs(dist_plus(teacher * scale + shift, teacher).item()) < 1e-9
    assert dist_plus(-teacher, teacher).item() == pytest.approx(4.0)


@pytest.mark.parametrize("shapes", [(5,), (3, 4, 4)], ids=["vectors", "maps"])
@pytest.mark.parametrize("place", range(8))
def test_dist_plus_is_finite_at_the_edges(shapes, place):
    _, student, teacher = map_edges(shapes, shapes)[place]
    assert_finite(lambda features: dist_plus(features, teacher), student)


def test_what_is_constant_has_no_correlation_and_no_gradient():
    # A dead channel of the student, and one that is constant but for rounding at 1e4.
    teacher = drawn(0, 8, 3, 4, 4).float()
    student = drawn(1, 8, 3, 4, 4).float()
    student[:, 0] = 0
    student[:, 1] = 1e4 / 3
    student.requires_grad_()
    dist_plus(student, teacher, beta=0.0).backward()
    assert student.grad[:, :2].abs().max() == 0
    assert student.grad[:, 2].abs().max() > 0
    whole = torch.full((2, 3), 1e4 / 3)
    assert pearson(whole, drawn(2, 2, 3).float(), dim=1).abs().max() == 0


def test_dist_plus_refuses_other_shapes():
    with pytest.raises(ValueError, match=r"\(2, 3\).*\(2, 4\)"):
        dist_plus(torch.zeros(2, 3), torch.zeros(2, 4))
    with pytest.raises(ValueError, match="samples, channels"):
        dist_plus(torch.zeros(3), torch.zeros(3))


SHAPES_OF_BOTH = (
    {"layer1": (2, 8, 8), "layer2": (4, 4, 4), "pooled": (4,)},
    {"layer1": (6, 8, 8), "layer2": (4, 2, 2), "pooled": (3,)},
)


def test_dist_plus_is_a_loss_that_projects_only_where_widths_differ():
    binding = binding_for(*SHAPES_OF_BOTH)
    loss = DISTPlus()
    assert_is_a_loss(loss, binding)
    assert [tuple(parameter.shape) for parameter in loss.parameters()] == [(6, 2, 1, 1), (6,)]
    vectors = DISTPlus(layers="pooled", beta=2.0, gamma=0.5)
    assert_is_a_loss(vectors, binding)
    assert [tuple(parameter.shape) for parameter in vectors.parameters()] == [(3, 4), (3,)]
    on_logits = DISTPlus(layers="logits")
    assert_is_a_loss(on_logits, binding)
    assert not on_logits.constrains_logits


def test_the_larger_map_is_pooled_and_layers_are_summed():
    binding = binding_for(*SHAPES_OF_BOTH)
    loss, signals = DISTPlus(layers="layer2+pooled", beta=2.0, gamma=0.5), signals_for(binding)
    loss.bind(binding)
    ours, theirs = signals.student.features, signals.teacher.features
    maps = ours["layer2"]
    halved = (maps[:, :, ::2, ::2] + maps[:, :, 1::2, ::2] + maps[:, :, ::2, 1::2] + maps[:, :, 1::2, 1::2]) / 4
    projection = loss.projections[1]
    projected = ours["pooled"] @ projection.weight.T + projection.bias
    wanted = sum(
        slow_dist_plus(one.detach().double().numpy(), other.double().numpy(), 2.0, 0.5)
        for one, other in ((halved, theirs["layer2"]), (projected, theirs["pooled"]))
    )
    assert loss(signals).item() == pytest.approx(wanted, rel=1e-4)


def test_a_map_and_a_vector_are_refused():
    with pytest.raises(InvalidInput, match=r"dist_plus: .*\n.*student layer .*\n.*layer1 +2 x 8 x 8 +pooled +3"):
        DISTPlus(layers="layer1:pooled").bind(binding_for(*SHAPES_OF_BOTH))


def test_tiny_features_have_a_finite_gradient():
    student, teacher = drawn(0, 4, 5) * 1e-20, drawn(1, 4, 5) * 1e-20
    assert_finite(lambda features: dist_plus(features, teacher), student)
