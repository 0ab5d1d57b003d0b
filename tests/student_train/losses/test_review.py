"""ReviewKD against pooling and fusion written out with loops, and what it does with odd shapes."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
import torch

from ground.errors import InvalidInput
from models import Representation
from student_train.losses.review import LenientBatchNorm2d, ReviewKD, hierarchical_context, mixed_by_shares
from student_train.signals import Moment, Signals
from tests.student_train.losses.checks import (
    assert_finite,
    assert_gradient_is_right,
    assert_is_a_loss,
    binding_for,
    drawn,
    map_edges,
    signals_for,
)

SHAPES = [(2, 3, 8, 8), (3, 2, 5, 7), (2, 3, 4, 4), (2, 2, 3, 3), (2, 2, 2, 2), (3, 4, 1, 1), (1, 2, 6, 5)]


def pooled(maps: np.ndarray, level: int) -> np.ndarray:
    """Adaptive average pooling: window i of n goes from floor(i n / level) to ceil((i + 1) n / level)."""
    height, width = maps.shape[2:]
    result = np.zeros((*maps.shape[:2], level, level))
    for row in range(level):
        for column in range(level):
            rows = slice(row * height // level, -(-(row + 1) * height // level))
            columns = slice(column * width // level, -(-(column + 1) * width // level))
            result[:, :, row, column] = maps[:, :, rows, columns].mean(axis=(2, 3))
    return result


def slow_context(student: np.ndarray, teacher: np.ndarray) -> float:
    weight, loss, total = 1.0, ((student - teacher) ** 2).mean(), 1.0
    for level in (4, 2, 1):
        if level < min(student.shape[2:]):
            weight = weight / 2
            loss += weight * ((pooled(student, level) - pooled(teacher, level)) ** 2).mean()
            total += weight
    return loss / total


@pytest.mark.parametrize("shape", SHAPES)
def test_the_context_loss_is_its_formula(shape):
    student, teacher = drawn(0, *shape), drawn(1, *shape)
    wanted = slow_context(student.numpy(), teacher.numpy())
    np.testing.assert_allclose(hierarchical_context(student, teacher).item(), wanted, rtol=1e-12)
    assert_gradient_is_right(lambda maps: hierarchical_context(maps, teacher[:1, :1]), student[:1, :1])


def test_the_weights_of_the_context_loss_are_8_4_2_1_of_15():
    # A difference of 1 everywhere is 1 at every level; one that averages out counts only where it is seen.
    ones, checks = torch.ones(1, 1, 8, 8), torch.ones(8, 8)
    checks[::2, 1::2] = checks[1::2, ::2] = -1
    stripes = torch.ones(8, 8)
    stripes[:, 2::4] = stripes[:, 3::4] = -1
    nothing = torch.zeros_like(ones)
    assert hierarchical_context(ones, nothing).item() == pytest.approx(1.0)
    assert hierarchical_context(checks[None, None], nothing).item() == pytest.approx(8 / 15)
    assert hierarchical_context(stripes[None, None], nothing).item() == pytest.approx(12 / 15)


@pytest.mark.parametrize("case", map_edges((2, 5, 4), (2, 5, 4)), ids=lambda case: case[0])
def test_the_context_loss_is_finite_at_the_edges(case):
    _, student, teacher = case
    assert_finite(lambda maps: hierarchical_context(maps, teacher), student)


def test_the_context_loss_refuses_other_shapes():
    with pytest.raises(ValueError, match=r"\(2, 3, 4, 4\).*\(2, 3, 2, 2\)"):
        hierarchical_context(torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 2, 2))
    with pytest.raises(ValueError, match="4 dimensions"):
        hierarchical_context(torch.zeros(2, 3), torch.zeros(2, 3))


# Student and teacher differ in width and in size, both ways; the teacher's layer1 is the larger one.
STUDENT = {"layer1": (2, 4, 4), "layer2": (4, 2, 2), "pooled": (3,)}
TEACHER = {"layer1": (3, 8, 8), "layer2": (2, 2, 2), "pooled": (4,)}


def convolved(maps: np.ndarray, convolution: torch.nn.Conv2d) -> np.ndarray:
    weight = convolution.weight.detach().numpy()
    pad = convolution.padding[0]
    padded = np.pad(maps, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    samples, _, height, width = maps.shape
    side = weight.shape[2]
    result = np.zeros((samples, weight.shape[0], height, width))
    for row in range(height):
        for column in range(width):
            window = padded[:, :, row : row + side, column : column + side]
            result[:, :, row, column] = np.tensordot(window, weight, axes=([1, 2, 3], [1, 2, 3]))
    return result if convolution.bias is None else result + convolution.bias.detach().numpy()[:, None, None]


def normalised(maps: np.ndarray) -> np.ndarray:
    mean, variance = maps.mean(axis=(0, 2, 3), keepdims=True), maps.var(axis=(0, 2, 3), keepdims=True)
    return (maps - mean) / np.sqrt(variance + 1e-5)


def nearest(maps: np.ndarray, height: int, width: int) -> np.ndarray:
    rows = [row * maps.shape[2] // height for row in range(height)]
    columns = [column * maps.shape[3] // width for column in range(width)]
    return maps[:, :, rows][:, :, :, columns]


def slow_review(loss: ReviewKD, student: dict[str, np.ndarray], teacher: dict[str, np.ndarray]) -> float:
    total, deeper = 0.0, None
    for fusion, name in zip(loss.fusions, reversed(list(student)), strict=True):
        ours, theirs = (maps if maps.ndim == 4 else maps[:, :, None, None] for maps in (student[name], teacher[name]))
        mixed = normalised(convolved(ours, fusion.narrow[0]))
        if deeper is not None:
            deeper = nearest(deeper, *mixed.shape[2:])
            attention = 1 / (1 + np.exp(-convolved(np.concatenate([mixed, deeper], axis=1), fusion.attention)))
            mixed = mixed * attention[:, 0][:, None] + deeper * attention[:, 1][:, None]
        deeper = nearest(mixed, *theirs.shape[2:])
        total += slow_context(normalised(convolved(deeper, fusion.widen[0])), theirs)
    return total


def bound(loss: ReviewKD) -> ReviewKD:
    torch.manual_seed(3)
    loss.bind(binding_for(STUDENT, TEACHER))
    return loss.double()


def said(seed: int, epoch: float = 0.0) -> Signals:
    def one(shapes: dict[str, tuple[int, ...]], first: int) -> Representation:
        tensors = {name: drawn(first + place, 5, *shape) for place, (name, shape) in enumerate(shapes.items())}
        return Representation(drawn(first + 9, 5, 5), tensors)

    labels = torch.arange(5)
    return Signals(one(STUDENT, seed), one(TEACHER, seed + 50), labels, labels, Moment(epoch=epoch))


@pytest.mark.parametrize("mid", [2, 512])
def test_the_fusion_is_written_out_with_loops(mid):
    loss, signals = bound(ReviewKD(layers="layer1+layer2+pooled", mid_channels=mid)), said(0)
    assert loss.fusions[0].narrow[0].out_channels == min(mid, 3)
    student, teacher = (
        {name: tensor.numpy() for name, tensor in side.features.items()} for side in (signals.student, signals.teacher)
    )
    np.testing.assert_allclose(loss(signals).item(), slow_review(loss, student, teacher), rtol=1e-10)


def test_shallow_targets_reach_the_deepest_layer():
    loss, signals = bound(ReviewKD(layers="layer1+layer2+pooled")), said(0)
    deep = signals.student.features["pooled"].requires_grad_()
    theirs = signals.teacher.features["layer1"].requires_grad_()
    (gradient,) = torch.autograd.grad(loss(signals), deep, create_graph=True)
    (reach,) = torch.autograd.grad(gradient.sum(), theirs, allow_unused=True)
    assert reach is not None
    assert reach.abs().sum() > 0


def test_the_weight_grows_by_epochs_to_its_full_value():
    plain, warm = bound(ReviewKD()), bound(ReviewKD(warmup=4))
    full = plain(said(0)).item()
    shares = [warm(said(0, epoch)).item() / full for epoch in (0.0, 0.9, 1.0, 2.5, 4.0, 9.0)]
    np.testing.assert_allclose(shares, [0, 0, 0.25, 0.5, 1, 1], rtol=1e-9)


def test_reviewkd_is_a_loss():
    assert_is_a_loss(ReviewKD(), binding_for(STUDENT, TEACHER))
    assert_is_a_loss(ReviewKD(layers="layer1"), binding_for(STUDENT, TEACHER))
    assert not ReviewKD().constrains_logits
    # The released code's targets: the teacher's pre-activations.
    before = TEACHER | {"layer1.pre": (3, 8, 8), "layer2.pre": (2, 2, 2)}
    assert_is_a_loss(ReviewKD(layers="layer1:layer1.pre+layer2:layer2.pre+pooled"), binding_for(STUDENT, before))


def test_one_sample_of_vectors_has_no_statistics_and_still_a_loss():
    binding = binding_for({"pooled": (3,)}, {"pooled": (4,)})
    loss = ReviewKD(layers="pooled")
    loss.bind(binding)
    signals = signals_for(binding, batch=1)
    value = loss(signals)
    value.backward()
    assert value.isfinite()
    assert signals.student.features["pooled"].grad.isfinite().all()
    norm, plain = LenientBatchNorm2d(3).double(), torch.nn.BatchNorm2d(3).double()
    maps = drawn(0, 2, 3, 2, 2)
    torch.testing.assert_close(norm(maps), plain(maps))
    torch.testing.assert_close(norm.running_var, plain.running_var)


def test_saved_weights_give_the_same_loss():
    one, other = bound(ReviewKD()), ReviewKD()
    torch.manual_seed(4)
    other.bind(binding_for(STUDENT, TEACHER))
    other.double()
    file = io.BytesIO()
    torch.save(one.state_dict(), file)
    file.seek(0)
    assert not math.isclose(one(said(0)).item(), other(said(0)).item())
    other.load_state_dict(torch.load(file, weights_only=True))
    one.load_state_dict(other.state_dict())
    assert one(said(0)).item() == other(said(0)).item()


def test_settings_and_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="warmup"):
        ReviewKD(warmup=-1)
    with pytest.raises(ValueError, match="mid_channels"):
        ReviewKD(mid_channels=0)
    with pytest.raises(InvalidInput, match=r"reviewkd: .*\n.*student layer .*\n.*layer1 +2 x 3 +layer1 +6 x 8 x 8"):
        ReviewKD(layers="layer1").bind(binding_for({"layer1": (2, 3)}, {"layer1": (6, 8, 8)}))


def test_shares_of_two_maps_have_the_gradient_of_the_convolution_that_gives_them():
    attention = torch.nn.Conv2d(6, 2, 1).double()
    one, other = drawn(0, 2, 3, 4, 5), drawn(1, 2, 3, 4, 5)
    shares = torch.sigmoid(attention(torch.cat([one, other], dim=1)))
    torch.testing.assert_close(mixed_by_shares(attention, one, other), one * shares[:, :1] + other * shares[:, 1:])
    assert_gradient_is_right(lambda *maps: mixed_by_shares(attention, *maps), one, other)

    def of_parameters(weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        convolution = torch.nn.Conv2d(6, 2, 1)
        del convolution.weight, convolution.bias
        convolution.weight, convolution.bias = weight, bias
        return mixed_by_shares(convolution, one, other)

    assert_gradient_is_right(of_parameters, attention.weight.detach(), attention.bias.detach())
