"""MGD against its sum written out, and what its masks do."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ground.errors import InvalidInput, UnknownName
from student_train.losses.mgd import MGD, kept, mgd
from student_train.signals import Moment
from tests.student_train.losses.checks import (
    assert_finite,
    assert_gradient_is_right,
    assert_is_a_loss,
    binding_for,
    drawn,
    map_edges,
    signals_for,
)

SHAPES = [(3, 2, 4, 4), (1, 5, 1, 1), (4, 3, 2, 6)]


@pytest.mark.parametrize("shape", SHAPES)
def test_mgd_is_the_sum_of_squares_of_a_sample(shape):
    student, teacher = drawn(0, *shape), drawn(1, *shape)
    wanted = sum((s - t) ** 2 for s, t in zip(student.flatten().tolist(), teacher.flatten().tolist(), strict=True))
    np.testing.assert_allclose(mgd(student, teacher).item(), wanted / shape[0], rtol=1e-12)
    assert_gradient_is_right(lambda maps: mgd(maps, teacher), student)


@pytest.mark.parametrize("case", map_edges((2, 4, 4), (2, 4, 4)), ids=lambda case: case[0])
def test_mgd_is_finite_at_the_edges(case):
    _, student, teacher = case
    assert_finite(lambda maps: mgd(maps, teacher), student)


def test_mgd_refuses_other_shapes():
    with pytest.raises(ValueError, match=r"\(2, 3, 4, 4\).*\(2, 3, 2, 2\)"):
        mgd(torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 2, 2))


@pytest.mark.parametrize(("what", "shape"), [("channels", (40, 50, 1, 1)), ("positions", (40, 1, 8, 9))])
def test_a_share_of_channels_or_positions_is_masked(what, shape):
    generator = Moment(seed=1).generator("mgd")
    mask = kept(torch.zeros(40, 50, 8, 9), what, 0.3, generator)
    assert mask.shape == shape
    assert set(mask.flatten().tolist()) == {0.0, 1.0}
    # 2000 and 2880 draws: five standard deviations are below 0.06.
    assert abs(1 - mask.mean().item() - 0.3) < 0.06
    assert kept(torch.zeros(4, 5, 2, 2), what, 0.0, generator).all()


LAYERS = {"layer2": (3, 8, 8), "layer3": (4, 4, 4)}, {"layer2": (6, 4, 4), "layer3": (4, 4, 4)}


def bound(**settings) -> MGD:
    loss = MGD(**settings)
    torch.manual_seed(0)
    loss.bind(binding_for(*LAYERS))
    return loss


@pytest.mark.parametrize(("mask", "dims"), [("channels", (2, 3)), ("positions", (1,))])
def test_what_is_masked_gets_no_gradient_of_its_own(mask, dims):
    # With generators that see one position of one channel only, a masked input is simply absent.
    loss = bound(mask=mask, lambda_mgd=0.5)
    first, _, second = loss.generators[0]
    with torch.no_grad():
        for convolution in (first, second):
            convolution.weight.zero_()
            convolution.bias.zero_()
            convolution.weight[range(4), range(4), 1, 1] = 1.0
    signals = signals_for(binding_for(*LAYERS))
    student = signals.student.features["layer3"]
    loss(signals).backward()
    whole = kept(student, mask, 0.5, signals.moment.generator("mgd")).expand_as(student)
    expected = 2 * (student.clamp(min=0) - signals.teacher.features["layer3"]) / 6 * whole * (student > 0)
    torch.testing.assert_close(student.grad, expected.detach())
    hidden = whole.amax(dim=dims) == 0
    assert hidden.any()
    assert not hidden.all()


def test_the_larger_map_is_pooled_and_channels_are_aligned_before_the_mask():
    loss, signals = bound(layers="layer2", lambda_mgd=0.4), signals_for(binding_for(*LAYERS))
    ours, theirs = signals.student.features["layer2"], signals.teacher.features["layer2"]
    halved = (ours[:, :, ::2, ::2] + ours[:, :, 1::2, ::2] + ours[:, :, ::2, 1::2] + ours[:, :, 1::2, 1::2]) / 4
    weight, bias = loss.aligners[0].weight[:, :, 0, 0], loss.aligners[0].bias
    aligned = torch.einsum("oc,bchw->bohw", weight, halved) + bias[:, None, None]
    keep = torch.rand(6, 6, 1, 1, generator=signals.moment.generator("mgd")) >= 0.4
    first, _, second = loss.generators[0]
    generated = second(first(aligned * keep).clamp(min=0))
    torch.testing.assert_close(loss(signals), (generated - theirs).square().sum() / 6)


def test_layers_are_summed():
    loss, signals = bound(layers="layer2+layer3", lambda_mgd=0.0), signals_for(binding_for(*LAYERS))
    wanted = 0.0
    for align, generate, (ours, theirs) in zip(loss.aligners, loss.generators, loss.outputs(signals), strict=True):
        wanted += mgd(generate(align(torch.nn.functional.adaptive_avg_pool2d(ours, 4))), theirs)
    torch.testing.assert_close(loss(signals), wanted)


def test_a_step_repeats_its_mask_and_another_has_its_own():
    loss, binding = bound(), binding_for(*LAYERS)
    same = [loss(signals_for(binding, moment=Moment(seed=1, step=step))).item() for step in (3, 3, 4)]
    torch.rand(3)
    assert same[0] == same[1] == loss(signals_for(binding, moment=Moment(seed=1, step=3))).item()
    assert same[0] != same[2]


def test_mgd_is_a_loss():
    binding = binding_for(*LAYERS)
    loss = MGD()
    assert_is_a_loss(loss, binding)
    assert not list(loss.aligners.parameters())
    both = MGD(layers="layer2+layer3", mask="positions", lambda_mgd=0.65)
    assert_is_a_loss(both, binding)
    assert [tuple(parameter.shape) for parameter in both.aligners.parameters()] == [(6, 3, 1, 1), (6,)]


def test_vectors_and_settings_out_of_range_are_refused():
    with pytest.raises(InvalidInput, match=r"mgd: .*\n.*student layer .*\n.*pooled +4 +pooled +6"):
        MGD(layers="pooled").bind(binding_for({"pooled": (4,)}, {"pooled": (6,)}))
    with pytest.raises(UnknownName, match="channels"):
        MGD(mask="channel")
    for fraction in (-0.1, 1.0):
        with pytest.raises(ValueError, match="lambda_mgd"):
            MGD(lambda_mgd=fraction)
