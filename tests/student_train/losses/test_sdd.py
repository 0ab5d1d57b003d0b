"""SDD against its sum over regions written out, and the last layers of both sides."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from ground.errors import InvalidInput, UnknownName
from models import create_model
from student_train.losses.kd import kd
from student_train.losses.sdd import BASES, SDD, local_logits, sdd
from student_train.signals import Moment
from tests.student_train.losses.checks import (
    assert_finite,
    assert_gradient_is_right,
    assert_is_a_loss,
    binding_for,
    drawn,
    logit_edges,
    signals_for,
)


def softmax(values):
    exponentials = [math.exp(value) for value in values]
    return [value / sum(exponentials) for value in exponentials]


def kl(teacher, student):
    return sum(t * math.log(t / s) for t, s in zip(teacher, student, strict=True))


def kd_by_hand(student, teacher, _):
    return 16 * kl(softmax([t / 4 for t in teacher]), softmax([s / 4 for s in student]))


def dkd_by_hand(student, teacher, label):
    ours, theirs = softmax([s / 4 for s in student]), softmax([t / 4 for t in teacher])
    target = kl([theirs[label], 1 - theirs[label]], [ours[label], 1 - ours[label]])
    rest = [[p[k] / (1 - p[label]) for k in range(len(p)) if k != label] for p in (theirs, ours)]
    return 16 * (target + 8 * kl(*rest))


def sdd_by_hand(student, teacher, labels, complementary, divergence):
    """The released rule: weight 1 where the teacher is right (or wrong) about both region and image."""
    total, count = 0.0, 0
    for ours, theirs, label in zip(student.tolist(), teacher.tolist(), labels.tolist(), strict=True):
        image_right = theirs[0].index(max(theirs[0])) == label
        for place in range(len(ours)):
            region_right = theirs[place].index(max(theirs[place])) == label
            weight = 1.0 if region_right == image_right else complementary
            total += weight * divergence(ours[place], theirs[place], label)
            count += 1
    return total / count


BY_HAND = [("kd", kd_by_hand), ("dkd", dkd_by_hand)]


@pytest.mark.parametrize("shape", [(6, 5, 3), (1, 21, 4), (4, 1, 2)])
@pytest.mark.parametrize(("base", "by_hand"), BY_HAND)
def test_sdd_is_the_weighted_sum_over_regions(shape, base, by_hand):
    student, teacher = drawn(0, *shape), drawn(1, *shape, scale=2.0)
    labels = torch.arange(shape[0]) % shape[2]
    divergence = partial(BASES[base], temperature=4.0)
    for complementary in (2.0, 0.5):
        wanted = sdd_by_hand(student, teacher, labels, complementary, by_hand)
        np.testing.assert_allclose(sdd(student, teacher, labels, complementary, divergence).item(), wanted, rtol=1e-9)
    assert_gradient_is_right(lambda logits: sdd(logits, teacher, labels, 2.0, divergence), student)


def test_the_regions_of_the_test_above_are_of_both_kinds():
    teacher, labels = drawn(1, 6, 5, 3, scale=2.0), torch.arange(6) % 3
    right = teacher.argmax(dim=2) == labels[:, None]
    for whole in (True, False):
        assert {True, False} == set(right[right[:, 0] == whole][:, 1:].flatten().tolist())


def test_one_region_is_kd():
    student, teacher = drawn(0, 5, 1, 4), drawn(1, 5, 1, 4)
    assert sdd(student, teacher, torch.arange(5) % 4).item() == pytest.approx(kd(student[:, 0], teacher[:, 0]).item())


@pytest.mark.parametrize("base", ["kd", "dkd"])
@pytest.mark.parametrize("case", logit_edges(), ids=lambda case: case[0])
def test_sdd_is_finite_at_the_edges(base, case):
    _, student, teacher, labels = case
    # Three regions: the image, the same in other classes' order, and the reverse.
    regions = [torch.stack([side, side.roll(1, 1), side.flip(1)], dim=1) for side in (student, teacher)]
    divergence = partial(BASES[base], temperature=4.0)
    assert_finite(lambda logits: sdd(logits, regions[1], labels, 2.0, divergence), regions[0])
    if case[0] == "equal to the teacher":
        assert sdd(regions[0], regions[1], labels, 2.0, divergence).item() <= 1e-6


def test_sdd_refuses_other_shapes():
    with pytest.raises(ValueError, match=r"local logits.*\(2, 5, 3\).*\(2, 21, 3\)"):
        sdd(torch.zeros(2, 5, 3), torch.zeros(2, 21, 3), torch.zeros(2, dtype=torch.int64))


@pytest.mark.parametrize(("height", "width"), [(8, 8), (4, 4), (16, 8)])
def test_local_logits_are_those_of_the_mean_of_each_cell(height, width):
    maps, weight, bias = drawn(0, 2, 3, height, width), drawn(1, 5, 3), drawn(2, 5)
    logits = local_logits(maps, weight, bias, (1, 2, 4))
    assert logits.shape == (2, 21, 5)
    place = 0
    for scale in (1, 2, 4):
        tall, wide = height // scale, width // scale
        for row in range(scale):
            for column in range(scale):
                cell = maps[:, :, row * tall : (row + 1) * tall, column * wide : (column + 1) * wide].numpy()
                wanted = cell.reshape(2, 3, -1).mean(axis=2) @ weight.numpy().T + bias.numpy()
                np.testing.assert_allclose(logits[:, place].numpy(), wanted, rtol=1e-10)
                place += 1
    assert_gradient_is_right(lambda *tensors: local_logits(*tensors, (1, 2)).square().sum(), maps, weight, bias)


def test_a_map_smaller_than_a_scale_repeats_its_positions():
    maps = drawn(0, 1, 3, 2, 2)
    logits = local_logits(maps, torch.eye(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64), (4,))
    np.testing.assert_allclose(
        logits[0].T.reshape(3, 4, 4).numpy(), maps[0].numpy().repeat(2, axis=1).repeat(2, axis=2), rtol=1e-12
    )


# The class


PARAMETERS = {"head/weight": drawn(5, 5, 7).half(), "head/bias": drawn(6, 5).half()}
BINDING = binding_for({"last": (64, 8, 8)}, {"last": (7, 4, 4)}, parameters=PARAMETERS)


def bound_to(student):
    return replace(BINDING, student_head=student.head)


def dressed(**settings):
    loss, student = SDD(**settings), create_model("resnet8", 5, seed=0)
    return loss, student


@pytest.mark.parametrize("settings", [{}, {"base": "dkd"}, {"scales": "1+2"}, {"scales": "1"}, {"complementary": 1.0}])
def test_sdd_is_a_loss_that_trains_the_students_own_last_layer(settings):
    loss, student = dressed(**settings)
    assert_is_a_loss(loss, bound_to(student))
    assert student.head.weight.grad.abs().sum() > 0
    assert student.head.bias.grad.abs().sum() > 0


def test_sdd_keeps_nothing_that_is_the_students_or_the_stores():
    loss, student = dressed()
    loss.bind(bound_to(student))
    assert not list(loss.parameters())
    assert not loss.state_dict()
    assert student.head.weight.requires_grad


def test_sdd_sees_what_training_does_to_the_last_layer():
    loss, student = dressed()
    loss.bind(bound_to(student))
    signals = signals_for(BINDING)
    before = loss(signals).item()
    student.load_state_dict({key: value * 2 for key, value in student.state_dict().items()})
    assert loss(signals).item() != before


def test_the_scale_of_the_whole_image_is_kd_of_the_networks_logits():
    loss, student = dressed(scales="1", complementary=7.0)
    loss.bind(bound_to(student))
    signals = signals_for(BINDING)
    maps, stored = signals.pair("last", "last")
    weight, bias = PARAMETERS["head/weight"].float(), PARAMETERS["head/bias"].float()
    ours, theirs = student.head(maps.mean(dim=(2, 3))), stored.mean(dim=(2, 3)) @ weight.T + bias
    torch.testing.assert_close(loss(signals), kd(ours, theirs))


def test_the_weight_grows_over_the_warm_up():
    loss, student = dressed(warmup=4)
    loss.bind(bound_to(student))
    signals = signals_for(BINDING)
    values = [loss(replace(signals, moment=Moment(epoch=epoch))).item() for epoch in (0.0, 0.9, 1.0, 2.5, 3.0, 100.0)]
    np.testing.assert_allclose(values, np.array([0.25, 0.25, 0.5, 0.75, 1.0, 1.0]) * values[-1], rtol=1e-6)


def test_sdd_is_for_single_samples():
    assert not SDD().needs.comparable


def test_misfits_and_senseless_settings_are_refused():
    unlike = binding_for({"last": (64, 8, 8)}, {"last": (9, 4, 4)}, parameters=PARAMETERS)
    with pytest.raises(InvalidInput, match=r"sdd: .*5 x 7 .*need 5 x 9"):
        SDD().bind(replace(unlike, student_head=create_model("resnet8", 5).head))
    with pytest.raises(UnknownName, match="base of sdd"):
        SDD(base="nkd")
    for scales in ("2+1", "", "1+x", "1+0", "1,2"):
        with pytest.raises(ValueError, match="scales must be whole numbers"):
            SDD(scales=scales)
    with pytest.raises(ValueError, match="temperature"):
        SDD(temperature=0.0)
    with pytest.raises(ValueError, match="warmup"):
        SDD(warmup=-1)


def test_complementary_regions_weigh_twice_by_default():
    student, teacher = drawn(0, 5, 5, 4), drawn(1, 5, 5, 4)
    labels = torch.arange(5) % 4
    assert sdd(student, teacher, labels) == sdd(student, teacher, labels, 2.0) != sdd(student, teacher, labels, 3.0)
