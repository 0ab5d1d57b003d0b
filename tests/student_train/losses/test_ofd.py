"""OFD: margins against scipy's truncated normal, the partial distance against the paper's cases."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import truncnorm

from ground.errors import InvalidInput
from student_train.losses.ofd import OFD, negative_mean, partial_l2
from tests.student_train.losses.checks import (
    assert_finite,
    assert_gradient_is_right,
    assert_is_a_loss,
    binding_for,
    drawn,
    map_edges,
    signals_for,
)
from tests.student_train.losses.plain_layers import array, convolved, halved, normalised

SHAPES = [(3, 2, 4, 4), (1, 5, 1, 1), (4, 3, 2, 6)]


def partial(student: np.ndarray, teacher: np.ndarray, margin: np.ndarray) -> float:
    """Partial L2 on the margin ReLU, element by element."""
    total = 0.0
    for place in np.ndindex(student.shape):
        s, t = student[place], max(teacher[place], margin[place[1]])
        total += 0.0 if s <= t <= 0 else (s - t) ** 2
    return total / len(student)


def margins(seed: int, channels: int) -> torch.Tensor:
    return -drawn(seed, channels).abs() - 0.1


@pytest.mark.parametrize("shape", SHAPES)
def test_partial_l2_is_its_formula(shape):
    student, teacher, margin = drawn(0, *shape), drawn(1, *shape), margins(2, shape[1])
    wanted = partial(array(student), array(teacher), array(margin))
    np.testing.assert_allclose(partial_l2(student, teacher, margin).item(), wanted, rtol=1e-12)
    assert_gradient_is_right(lambda maps: partial_l2(maps, teacher, margin), student)


@pytest.mark.parametrize(
    ("student", "teacher", "wanted"),
    [
        (-3.0, -0.5, 0.0),  # below a negative teacher: enough
        (-0.25, -0.5, 0.0625),  # above it
        (-3.0, -2.0, 0.0),  # below the margin
        (0.0, -2.0, 1.0),  # to the margin, not to the teacher
        (-1.5, -2.0, 0.0),  # between teacher and margin: enough
        (-3.0, 1.0, 16.0),  # a positive teacher is matched from both sides
        (3.0, 1.0, 4.0),
        (-3.0, 0.0, 0.0),
    ],
)
def test_each_case_of_the_paper(student, teacher, wanted):
    maps = [torch.tensor(value).view(1, 1, 1, 1) for value in (student, teacher)]
    assert partial_l2(*maps, torch.tensor([-1.0])).item() == wanted


def test_the_margin_is_the_mean_of_a_normal_cut_at_zero():
    mean = torch.linspace(-4, 4, 33).repeat(3)
    deviation = torch.tensor([0.2, 1.0, 7.0]).repeat_interleave(33)
    # A batch norm's scale may be negative; only its size matters.
    deviation[::2] *= -1
    m, d = array(mean), np.abs(array(deviation))
    wanted = truncnorm.mean(-np.inf, -m / d, loc=m, scale=d)
    np.testing.assert_allclose(negative_mean(mean, deviation).numpy(), wanted, rtol=1e-6)


def test_the_margin_keeps_its_digits_far_in_the_tail():
    ratio = np.array([20.0, 29.9, 30.1, 50.0, 1e3, 1e8, 1e20])
    series = -(1 / ratio) * (1 - 2 / ratio**2 + 10 / ratio**4 - 74 / ratio**6 + 706 / ratio**8)
    margin = negative_mean(torch.from_numpy(ratio) * 3, torch.full((7,), 3.0))
    np.testing.assert_allclose(margin.numpy(), 3 * series, rtol=1e-8)


def test_the_margin_of_no_deviation_is_the_negative_mean_or_zero():
    margin = negative_mean(torch.tensor([-2.0, 0.0, 3.0]), torch.zeros(3))
    np.testing.assert_allclose(margin.numpy(), [-2.0, 0.0, 0.0], atol=1e-20)


@pytest.mark.parametrize("case", map_edges((2, 4, 4), (2, 4, 4)), ids=lambda case: case[0])
def test_partial_l2_is_finite_at_the_edges(case):
    _, student, teacher = case
    assert_finite(lambda maps: partial_l2(maps, teacher, torch.tensor([-0.5, -0.0])), student)


def test_what_does_not_fit_is_refused():
    maps = torch.zeros(2, 3, 4, 4)
    with pytest.raises(ValueError, match=r"\(2, 3, 4, 4\).*\(2, 3, 2, 2\)"):
        partial_l2(maps, torch.zeros(2, 3, 2, 2), torch.zeros(3))
    with pytest.raises(ValueError, match=r"margin is \(4,\); maps of 3 channels"):
        partial_l2(maps, maps, torch.zeros(4))


def norms(**channels: int) -> dict[str, torch.Tensor]:
    found = {}
    for seed, (layer, count) in enumerate(channels.items()):
        found[f"norm/{layer}/scale"] = drawn(seed, count).float()
        found[f"norm/{layer}/shift"] = drawn(seed + 50, count).float()
    return found


def test_layers_are_connected_weighted_and_keep_their_teachers_margins():
    student = {"layer1.pre": (3, 4, 4), "layer2.pre": (2, 3, 2), "layer3.pre": (2, 2, 2)}
    teacher = {"layer1.pre": (3, 4, 4), "layer2.pre": (5, 3, 2), "layer3.pre": (4, 4, 4)}
    parameters = norms(layer1=3, layer2=5, layer3=4)
    binding = binding_for(student, teacher, parameters=parameters)
    loss = OFD()
    value = assert_is_a_loss(loss, binding)
    signals = signals_for(binding)
    wanted = 0.0
    for place, (name, _) in enumerate(loss.pairs):
        ours, theirs = (array(maps) for maps in signals.pair(name, name))
        made = normalised(convolved(loss.connectors[place][0], ours))
        scale, shift = (array(parameters[f"norm/{name[:6]}/{kind}"]) for kind in ("scale", "shift"))
        margin = truncnorm.mean(-np.inf, -shift / np.abs(scale), loc=shift, scale=np.abs(scale))
        theirs = halved(theirs) if place == 2 else theirs
        wanted += partial(made, theirs, margin) / 2 ** (3 - 1 - place)
    np.testing.assert_allclose(value.item(), wanted, rtol=1e-5)


def test_margins_belong_to_the_teachers_layer_and_are_kept_in_the_state():
    parameters = norms(layer1=3, layer2=3)
    binding = binding_for({"layer1.pre": (2, 4, 4)}, {"layer2.pre": (3, 4, 4)}, parameters=parameters)
    loss = OFD(layers="layer1.pre:layer2.pre")
    loss.bind(binding)
    wanted = negative_mean(parameters["norm/layer2/shift"], parameters["norm/layer2/scale"])
    (margin,) = (tensor for name, tensor in loss.state_dict().items() if name.endswith("margin"))
    torch.testing.assert_close(margin, wanted.float())
    assert not any(name.endswith("margin") for name, _ in loss.named_parameters())


def test_a_connector_starts_as_in_the_released_code():
    torch.manual_seed(0)
    loss = OFD()
    loss.bind(binding_for({"layer1.pre": (64, 2, 2)}, {"layer1.pre": (200, 2, 2)}, parameters=norms(layer1=200)))
    convolution = loss.connectors[0][0]
    assert convolution.bias is None
    np.testing.assert_allclose(convolution.weight.std().item(), (2 / 200) ** 0.5, rtol=0.05)


def test_a_teacher_without_norms_is_refused():
    shapes = {"layer1.pre": (2, 4, 4), "layer2.pre": (3, 2, 2)}
    with pytest.raises(InvalidInput, match=r"ofd: .*no single batch norm.*another teacher, or ab\n(.*\n)?.*layer2.pre"):
        OFD().bind(binding_for(shapes, shapes, parameters=norms(layer1=2)))
    after = {"layer1": (2, 4, 4)}
    with pytest.raises(InvalidInput, match=r"ofd: .*only before layerN.pre"):
        OFD(layers="layer1").bind(binding_for(after, after, parameters=norms(layer1=2)))
