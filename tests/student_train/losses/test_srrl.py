"""SRRL against its two means written out, with the biases and logits that cancel in ours."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ground.errors import InvalidInput
from student_train.losses.srrl import SRRL, srrl
from tests.student_train.losses.checks import (
    assert_finite,
    assert_gradient_is_right,
    assert_is_a_loss,
    binding_for,
    drawn,
    map_edges,
    signals_for,
)


@pytest.mark.parametrize("shape", [(4, 3, 5), (1, 6, 2), (3, 1, 1)])
def test_srrl_is_the_error_of_features_and_of_logits(shape):
    samples, channels, classes = shape
    student, teacher = drawn(0, samples, channels), drawn(1, samples, channels)
    weight, bias = drawn(2, classes, channels), drawn(3, classes)
    features = logits = 0.0
    for sample in range(samples):
        for channel in range(channels):
            features += (student[sample, channel] - teacher[sample, channel]).item() ** 2
        for label in range(classes):
            ours = (
                sum(weight[label, c].item() * student[sample, c].item() for c in range(channels)) + bias[label].item()
            )
            stored = sum(weight[label, c].item() * teacher[sample, c].item() for c in range(channels))
            logits += (ours - (stored + bias[label].item())) ** 2
    wanted = features / (samples * channels) + logits / (samples * classes)
    np.testing.assert_allclose(srrl(student, teacher, weight).item(), wanted, rtol=1e-10)
    assert_gradient_is_right(lambda maps: srrl(maps, teacher, weight), student)


@pytest.mark.parametrize("case", map_edges((4,), (4,)), ids=lambda case: case[0])
def test_srrl_is_finite_at_the_edges(case):
    _, student, teacher = case
    assert_finite(lambda maps: srrl(maps, teacher, drawn(0, 3, 4).float()), student)


def test_srrl_is_zero_for_equal_features():
    teacher = drawn(0, 5, 4)
    assert srrl(teacher, teacher, drawn(1, 3, 4)).item() == 0.0


def test_srrl_refuses_other_widths():
    with pytest.raises(ValueError, match=r"\(2, 4\).*\(2, 3\)"):
        srrl(torch.zeros(2, 4), torch.zeros(2, 3), torch.zeros(5, 4))
    with pytest.raises(ValueError, match=r"last layer is \(5, 3\)"):
        srrl(torch.zeros(2, 4), torch.zeros(2, 4), torch.zeros(5, 3))


def binding_with_head(student, teacher, weight=(5, 8)):
    parameters = {"head/weight": drawn(5, *weight).half(), "head/bias": drawn(6, weight[0]).half()}
    return binding_for({"last": (student, 3, 2)}, {"pooled": (teacher,)}, parameters=parameters)


@pytest.mark.parametrize("student", [3, 8, 20])
def test_srrl_is_a_loss_with_a_learned_connector(student):
    loss = SRRL()
    assert_is_a_loss(loss, binding_with_head(student, 8))
    assert sorted(name for name, _ in loss.named_parameters()) == [
        "connector.0.weight",
        "connector.1.bias",
        "connector.1.weight",
    ]
    assert all(parameter.grad.abs().sum() > 0 for parameter in loss.parameters())
    assert not any(key == "weight" for key in loss.state_dict())


def test_the_connector_starts_as_released():
    loss = SRRL()
    torch.manual_seed(0)
    loss.bind(binding_with_head(50, 200, (5, 200)))
    # N(0, 2 / outputs)
    assert loss.connector[0].weight.std().item() == pytest.approx((2 / 200) ** 0.5, rel=0.05)


def test_a_last_layer_of_another_width_is_refused():
    with pytest.raises(InvalidInput, match=r"srrl: .*5 x 7 .*need 5 x 8(.|\n)*last +3 x 3 x 2 +pooled +8"):
        SRRL().bind(binding_with_head(3, 8, (5, 7)))


def test_the_map_is_pooled_after_the_connector():
    loss, binding = SRRL(), binding_with_head(3, 8)
    loss.bind(binding)
    signals = signals_for(binding, batch=5)
    maps, teacher = signals.student.features["last"].detach(), signals.teacher.features["pooled"]
    pixels = torch.einsum("dc,bchw->bdhw", loss.connector[0].weight[:, :, 0, 0], maps)
    level, spread = pixels.mean(dim=(0, 2, 3), keepdim=True), pixels.var(dim=(0, 2, 3), keepdim=True, unbiased=False)
    ours = ((pixels - level) / (spread + 1e-5).sqrt()).clamp(min=0).mean(dim=(2, 3))
    expected = (ours - teacher).square().mean() + ((ours - teacher) @ loss.weight.T).square().mean()
    torch.testing.assert_close(loss(signals), expected, rtol=1e-4, atol=1e-5)


def test_one_sample_trains_too():
    """Batch norm has no statistics of one position."""
    loss = SRRL()
    binding = binding_with_head(6, 8)
    loss.bind(binding)
    signals = signals_for(binding, batch=1)
    value = loss(signals)
    value.backward()
    assert value.isfinite()
    assert signals.student.features["last"].grad.isfinite().all()
