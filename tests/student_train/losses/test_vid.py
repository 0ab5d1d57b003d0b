"""Variational information distillation against the normal's density, and its learned mean and variance."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from ground.errors import InvalidInput
from student_train.losses.vid import VID, vid
from tests.student_train.losses.checks import (
    assert_finite,
    assert_gradient_is_right,
    assert_is_a_loss,
    binding_for,
    drawn,
    map_edges,
    signals_for,
)
from tests.student_train.losses.plain_layers import array, convolved, halved

SHAPES = [(3, 2, 4, 4), (1, 5, 1, 1), (4, 3, 2, 6)]


@pytest.mark.parametrize("shape", SHAPES)
def test_vid_is_the_negative_log_likelihood_less_its_constant(shape):
    mean, target, log_scale = drawn(0, *shape), drawn(1, *shape), drawn(2, shape[1], scale=2)
    total = 0.0
    for b, c, h, w in np.ndindex(shape):
        deviation = math.sqrt(math.log(1 + math.exp(log_scale[c])) + 1e-5)
        total -= norm.logpdf(target[b, c, h, w].item(), mean[b, c, h, w].item(), deviation)
    wanted = total / target.numel() - 0.5 * math.log(2 * math.pi)
    np.testing.assert_allclose(vid(mean, log_scale, target).item(), wanted, rtol=1e-10)
    assert_gradient_is_right(lambda maps, scales: vid(maps, scales, target), mean, log_scale)
    assert_gradient_is_right(lambda maps, scales: vid(maps, scales, target, eps=0.5), mean, log_scale)


@given(seed=st.integers(0, 1000), shift=st.floats(-3, 3).filter(lambda shift: abs(shift) > 0.01))
def test_the_best_variance_is_the_mean_squared_error(seed, shift):
    mean, target = drawn(seed, 2, 1, 2, 2), drawn(seed + 1, 2, 1, 2, 2)
    best = (mean - target).square().mean()

    def at(variance):
        return vid(mean, torch.log(torch.expm1(variance - 1e-5)).view(1), target)

    assert at(best) < at(best * math.exp(shift))


@pytest.mark.parametrize("case", map_edges((2, 4, 4), (2, 4, 4)), ids=lambda case: case[0])
@pytest.mark.parametrize("log_scale", [-1e4, -30.0, 0.0, 30.0, 1e4])
def test_vid_is_finite_at_the_edges(case, log_scale):
    _, student, teacher = case
    scales = torch.full((2,), log_scale, dtype=student.dtype)
    assert_finite(lambda maps, scales: vid(maps, scales, teacher), student, scales)


def test_what_does_not_fit_is_refused():
    maps = torch.zeros(2, 3, 4, 4)
    with pytest.raises(ValueError, match=r"\(2, 3, 4, 4\).*\(2, 3, 2, 2\)"):
        vid(maps, torch.zeros(3), torch.zeros(2, 3, 2, 2))
    with pytest.raises(ValueError, match=r"log_scale is \(4,\); maps of 3 channels"):
        vid(maps, torch.zeros(4), maps)
    with pytest.raises(ValueError, match="eps must be above 0"):
        vid(maps, torch.zeros(3), maps, eps=0.0)
    with pytest.raises(ValueError, match="variance must be above"):
        VID(variance=0.0)


@pytest.mark.parametrize("variance", [1e-3, 5.0, 1e3])
def test_the_variance_starts_where_it_is_set(variance):
    loss = VID(variance=variance)
    loss.bind(binding_for({"layer1": (2, 4, 4)}, {"layer1": (3, 4, 4)}))
    started = np.log1p(np.exp(np.minimum(array(loss.log_scales[0]), 50))) + 1e-5
    np.testing.assert_allclose(np.where(started < 50, started, array(loss.log_scales[0])), [variance] * 3, rtol=1e-4)


def test_the_mean_is_three_convolutions_as_wide_as_the_teacher_and_the_larger_map_is_pooled():
    binding = binding_for(
        {"layer1": (2, 4, 4), "layer2": (4, 2, 2)}, {"layer1": (3, 2, 2), "layer2": (5, 4, 4), "layer3": (1, 1, 1)}
    )
    loss = VID()
    value = assert_is_a_loss(loss, binding)
    signals = signals_for(binding)
    wanted = 0.0
    for place, name in enumerate(["layer1", "layer2"]):
        student, teacher = (array(maps) for maps in signals.pair(name, name))
        student, teacher = (halved(student), teacher) if place == 0 else (student, halved(teacher))
        first, second, third = loss.regressors[place][::2]
        assert first.weight.shape[:2] == (teacher.shape[1], student.shape[1])
        inner = np.maximum(convolved(first, student), 0)
        mean = convolved(third, np.maximum(convolved(second, inner), 0))
        wanted += 0.5 * (((mean - teacher) ** 2) / 5 + math.log(5)).mean()
    np.testing.assert_allclose(value.item(), wanted, rtol=1e-5)


def test_mean_and_variance_are_learned():
    binding = binding_for({"layer1": (2, 4, 4)}, {"layer1": (3, 4, 4)})
    loss = VID()
    loss.bind(binding)
    loss(signals_for(binding)).backward()
    assert len(list(loss.parameters())) == 4
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in loss.parameters())


def test_vectors_are_refused():
    with pytest.raises(InvalidInput, match="vid: both must be maps"):
        VID(layers="pooled").bind(binding_for({"pooled": (4,)}, {"pooled": (4,)}))
