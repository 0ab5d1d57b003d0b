"""FitNets' hint against the mean written out, and its regressor's shapes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ground.errors import InvalidInput
from student_train.comparison import GroupComparison
from student_train.losses.hint import Hint, hint
from tests.student_train.losses.checks import (
    assert_finite,
    assert_gradient_is_right,
    assert_is_a_loss,
    binding_for,
    drawn,
    map_edges,
    signals_for,
)
from tests.student_train.losses.plain_layers import array, convolved, normalised

SHAPES = [(3, 2, 4, 4), (1, 5, 1, 1), (4, 3, 2, 6)]


@pytest.mark.parametrize("shape", SHAPES)
def test_hint_is_the_mean_squared_difference(shape):
    student, teacher = drawn(0, *shape), drawn(1, *shape)
    wanted = sum((s - t) ** 2 for s, t in zip(student.flatten().tolist(), teacher.flatten().tolist(), strict=True))
    np.testing.assert_allclose(hint(student, teacher).item(), wanted / student.numel(), rtol=1e-12)
    assert_gradient_is_right(lambda maps: hint(maps, teacher), student)


@pytest.mark.parametrize("case", map_edges((2, 4, 4), (2, 4, 4)), ids=lambda case: case[0])
def test_hint_is_finite_at_the_edges(case):
    _, student, teacher = case
    assert_finite(lambda maps: hint(maps, teacher), student)


def test_hint_refuses_maps_of_other_shapes():
    with pytest.raises(ValueError, match=r"\(2, 3, 4, 4\).*\(2, 3, 2, 2\)"):
        hint(torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 2, 2))


@pytest.mark.parametrize("relu", [True, False])
def test_the_regressor_is_convolution_batch_norm_and_relu(relu):
    binding = binding_for({"layer2": (2, 4, 3)}, {"layer2": (5, 4, 3)})
    loss = Hint(relu=relu)
    loss.bind(binding)
    signals = signals_for(binding)
    made = normalised(convolved(loss.regressors[0][0], array(signals.student.features["layer2"])))
    made = np.maximum(made, 0) if relu else made
    wanted = ((made - array(signals.teacher.features["layer2"])) ** 2).mean()
    np.testing.assert_allclose(loss(signals).item(), wanted, rtol=1e-5)


def test_hint_is_a_loss_and_learns_a_regressor_for_each_layer():
    binding = binding_for({"layer1": (2, 8, 8), "layer2": (4, 4, 4)}, {"layer1": (6, 8, 8), "layer2": (8, 4, 4)})
    assert_is_a_loss(Hint(), binding)
    both = Hint(layers="layer1+layer2")
    assert_is_a_loss(both, binding)
    assert len(both.regressors) == 2


def test_layers_are_summed_and_may_be_paired_across_names_and_sizes():
    binding = binding_for({"layer1": (2, 8, 8), "layer2": (4, 4, 4)}, {"layer2": (6, 4, 4), "layer3": (5, 2, 2)})
    both = Hint(layers="layer1:layer2+layer2:layer3")
    both.bind(binding)
    signals = signals_for(binding)
    alone = []
    for place, layers in enumerate(["layer1:layer2", "layer2:layer3"]):
        one = Hint(layers=layers)
        one.bind(binding)
        one.regressors[0].load_state_dict(both.regressors[place].state_dict())
        alone.append(one(signals).item())
    np.testing.assert_allclose(both(signals).item(), sum(alone), rtol=1e-6)


def test_compared_maps_go_through_the_same_regressor():
    binding = binding_for({"layer2": (2, 4, 4)}, {"layer2": (5, 4, 4)})
    loss = Hint()
    loss.bind(binding)
    compared = GroupComparison()(signals_for(binding))
    student, teacher = compared.pair("layer2", "layer2")
    assert teacher.min() < 0
    wanted = hint(loss.regressors[0](student), teacher)
    torch.testing.assert_close(loss(compared), wanted)


def test_vectors_are_refused_and_only_they_are_in_the_table():
    shapes = {"layer1": (2, 8, 8), "pooled": (4,)}
    with pytest.raises(InvalidInput, match=r"hint: both must be maps") as caught:
        Hint(layers="layer1+pooled").bind(binding_for(shapes, shapes))
    assert "pooled" in str(caught.value)
    assert "layer1" not in str(caught.value)
