"""SimKD: the mean written out, and a dressed student that learns everything but its last layer."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ground.errors import InvalidInput, UnknownName
from models import Representation, create_model
from models.reused_head import ReusedHead
from student_train.losses.simkd import SimKD, simkd
from student_train.signals import Signals
from tests.student_train.losses.checks import (
    assert_finite,
    assert_gradient_is_right,
    assert_is_a_loss,
    binding_for,
    drawn,
    map_edges,
)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [((2, 3, 4, 4), (2, 3, 4, 4)), ((2, 3, 2, 2), (2, 3, 4, 4)), ((1, 2, 4, 4), (1, 2, 2, 4)), ((3, 5), (3, 5))],
)
def test_simkd_is_the_mean_squared_error_at_the_smaller_size(ours, theirs):
    student, teacher = drawn(0, *ours), drawn(1, *theirs)
    sides = [student.numpy(), teacher.numpy()]
    if len(ours) == 4:
        tall, wide = min(ours[2], theirs[2]), min(ours[3], theirs[3])
        sides = [
            side.reshape(*side.shape[:2], tall, side.shape[2] // tall, wide, side.shape[3] // wide).mean(axis=(3, 5))
            for side in sides
        ]
    wanted = sum((s - t) ** 2 for s, t in zip(sides[0].ravel(), sides[1].ravel(), strict=True)) / sides[0].size
    np.testing.assert_allclose(simkd(student, teacher).item(), wanted, rtol=1e-12)
    assert_gradient_is_right(lambda maps: simkd(maps, teacher), student)


@pytest.mark.parametrize("case", map_edges((3, 4, 4), (3, 2, 2)), ids=lambda case: case[0])
def test_simkd_is_finite_at_the_edges(case):
    _, student, teacher = case
    assert_finite(lambda maps: simkd(maps, teacher), student)


@pytest.mark.parametrize(("ours", "theirs"), [((2, 3, 4, 4), (2, 4, 4, 4)), ((2, 3), (2, 3, 1, 1))])
def test_simkd_refuses_what_is_not_projected(ours, theirs):
    with pytest.raises(ValueError, match="projected features"):
        simkd(torch.zeros(ours), torch.zeros(theirs))


@pytest.mark.parametrize("on", ["last", "pooled"])
def test_simkd_is_a_loss(on):
    parameters = {"head/weight": drawn(0, 5, 7), "head/bias": drawn(1, 5)}
    shapes = {"last": (7, 4, 4), "pooled": (7,)}
    loss = SimKD(on=on)
    assert_is_a_loss(loss, binding_for(shapes, shapes, parameters=parameters))
    assert loss.constrains_logits
    assert not list(loss.parameters())


def trained(student_name, teacher_shape, on="last", steps=3, **settings):
    """A student bound, dressed and trained for a few steps as the trainer would."""
    channels, *_ = teacher_shape
    parameters = {"head/weight": drawn(0, 5, channels).half(), "head/bias": drawn(1, 5).half()}
    body = create_model(student_name, 5, seed=0)
    images = drawn(2, 4, 3, 32, 32).float()
    with torch.no_grad():
        shapes = {
            name: tuple(tensor.shape[1:])
            for name, tensor in body.eval().represent(images, body.extra_names).features.items()
        }
    teacher = {"last": teacher_shape, "pooled": (channels,)}
    binding = binding_for(shapes, teacher, parameters=parameters)
    loss = SimKD(on=on, **settings)
    torch.manual_seed(0)
    loss.bind(binding)
    student = loss.dress(body).train()
    stored = drawn(3, 4, *teacher_shape).float().relu()
    said = Representation(torch.zeros(4, 5), {"last": stored, "pooled": stored.mean(dim=(2, 3))})
    optimizer = torch.optim.SGD([*student.parameters(), *loss.parameters()], 0.01, momentum=0.9, weight_decay=0.1)
    values = []
    for _ in range(steps):
        features = student.represent(images, ("last",))
        value = loss(Signals(features, said, torch.arange(4), torch.arange(4)))
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        optimizer.step()
        values.append(value.item())
    return student, parameters, values


PAIRS = [("resnet8", (10, 8, 8)), ("vgg8", (10, 8, 8)), ("ShuffleV1", (1, 2, 2)), ("MobileNetV2", (6, 4, 4))]


@pytest.mark.parametrize(("student", "teacher"), PAIRS, ids=lambda value: str(value))
@pytest.mark.parametrize("on", ["last", "pooled"])
def test_a_dressed_student_learns_behind_a_frozen_last_layer(student, teacher, on):
    network, parameters, values = trained(student, teacher, on, steps=2)
    assert isinstance(network, ReusedHead)
    assert np.isfinite(values).all()
    assert torch.equal(network.head.weight, parameters["head/weight"].float())
    assert torch.equal(network.head.bias, parameters["head/bias"].float())
    learning = [name for name, parameter in network.named_parameters() if parameter.grad is not None]
    frozen = [name for name, parameter in network.named_parameters() if parameter.grad is None]
    assert frozen == ["classifier.weight", "classifier.bias"]
    assert any(name.startswith("body.") for name in learning)
    assert any(name.startswith("projector.") for name in learning)


def test_the_projected_map_comes_closer_to_the_teachers():
    _, _, values = trained("resnet8", (10, 8, 8), steps=12)
    assert values[-1] < 0.9 * values[0]


@pytest.mark.parametrize(("teacher", "size"), [((10, 4, 4), (4, 4)), ((10, 16, 16), (8, 8)), ((10, 4, 16), (4, 8))])
def test_maps_meet_at_the_smaller_size(teacher, size):
    network, _, _ = trained("resnet8", teacher, steps=1)
    assert network.represent(torch.zeros(2, 3, 32, 32), ("last",)).features["last"].shape == (2, 10, *size)


@pytest.mark.parametrize(("factor", "width"), [(2, 5), (1, 10), (100, 1)])
def test_the_projector_is_narrower_inside(factor, width):
    network, _, _ = trained("resnet8", (10, 8, 8), steps=1, factor=factor)
    assert network.projector[3].weight.shape == (width, width, 3, 3)


def test_the_target_of_the_logits_is_what_the_teacher_said():
    logits = drawn(0, 4, 5)
    signals = Signals(Representation(torch.zeros(4, 5), {}), Representation(logits, {}), torch.arange(4), None)
    assert torch.equal(SimKD().logit_target(signals), logits)


def test_misfits_and_unknown_settings_are_refused():
    parameters = {"head/weight": drawn(0, 5, 7), "head/bias": drawn(1, 5)}
    with pytest.raises(InvalidInput, match=r"simkd: .*5 x 7 .*need 5 x 9(.|\n)*last +3 x 8 x 8 +last +9 x 4 x 4"):
        SimKD().bind(binding_for({"last": (3, 8, 8)}, {"last": (9, 4, 4)}, parameters=parameters))
    with pytest.raises(InvalidInput, match="simkd: both must be the networks' own last"):
        SimKD().bind(binding_for({"last": (3,)}, {"last": (7, 4, 4)}, parameters=parameters))
    with pytest.raises(UnknownName, match="output for simkd"):
        SimKD(on="layer2")
    with pytest.raises(ValueError, match="factor"):
        SimKD(factor=0)
