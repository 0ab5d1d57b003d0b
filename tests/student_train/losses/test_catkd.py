"""CAT-KD against its mean written out, and whose last layer makes whose maps."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from ground.errors import InvalidInput
from models import create_model
from student_train.losses.catkd import CATKD, catkd, class_activation_maps
from tests.student_train.losses.checks import (
    assert_finite,
    assert_gradient_is_right,
    assert_is_a_loss,
    binding_for,
    drawn,
    map_edges,
    signals_for,
)


def pooled_by_hand(maps, size):
    tall, wide = maps.shape[2] // size, maps.shape[3] // size
    return maps.reshape(*maps.shape[:2], size, tall, size, wide).mean(axis=(3, 5))


def catkd_by_hand(student, teacher, size, normalise, binarise):
    student, teacher = student.numpy(), teacher.numpy().copy()
    if binarise:
        for sample in teacher:
            for plane in sample:
                plane[:] = plane > np.abs(plane).sum() / plane.size
    student, teacher = pooled_by_hand(student, size), pooled_by_hand(teacher, size)
    total = 0.0
    for sample in range(len(student)):
        for label in range(student.shape[1]):
            ours, theirs = student[sample, label], teacher[sample, label]
            if normalise:
                ours, theirs = (side / max(np.sqrt((side**2).sum()), 1e-12) for side in (ours, theirs))
            total += ((ours - theirs) ** 2).sum()
    return total / student.size


@pytest.mark.parametrize(
    "settings", [(2, True, False), (2, False, False), (2, True, True), (4, False, True), (1, True, False)]
)
@pytest.mark.parametrize(("ours", "theirs"), [((3, 4, 8, 8), (3, 4, 4, 4)), ((1, 2, 4, 4), (1, 2, 8, 4))])
def test_catkd_is_its_formula(settings, ours, theirs):
    student, teacher = drawn(0, *ours), drawn(1, *theirs)
    np.testing.assert_allclose(
        catkd(student, teacher, *settings).item(), catkd_by_hand(student, teacher, *settings), rtol=1e-10
    )
    if settings[0] > 1:  # one normalised position is a sign
        assert_gradient_is_right(lambda maps: catkd(maps, teacher, *settings), student)


def test_class_activation_maps_weigh_channels_and_average_to_the_logits_less_the_bias():
    maps, weight = drawn(0, 2, 3, 4, 5), drawn(1, 6, 3)
    found = class_activation_maps(maps, weight)
    np.testing.assert_allclose(found.numpy(), np.einsum("bchw,kc->bkhw", maps.numpy(), weight.numpy()), rtol=1e-10)
    pooled = maps.numpy().mean(axis=(2, 3)) @ weight.numpy().T
    np.testing.assert_allclose(found.mean(dim=(2, 3)).numpy(), pooled, rtol=1e-10)


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("binarise", [True, False])
@pytest.mark.parametrize("case", map_edges((3, 4, 4), (3, 4, 4)), ids=lambda case: case[0])
def test_catkd_is_finite_at_the_edges(case, normalise, binarise):
    _, student, teacher = case
    assert_finite(lambda maps: catkd(maps, teacher, normalise=normalise, binarise=binarise), student)


def test_normalised_maps_do_not_depend_on_their_scale():
    student, teacher = drawn(0, 2, 3, 4, 4), drawn(1, 2, 3, 4, 4)
    torch.testing.assert_close(catkd(student * 7, teacher / 3), catkd(student, teacher))
    assert catkd(teacher * 2, teacher).item() == pytest.approx(0.0, abs=1e-12)


def test_catkd_refuses_other_classes_and_vectors():
    with pytest.raises(ValueError, match=r"class activation maps.*\(2, 3, 2, 2\).*\(2, 4, 2, 2\)"):
        catkd(torch.zeros(2, 3, 4, 4), torch.zeros(2, 4, 4, 4))
    with pytest.raises(ValueError, match="class activation maps"):
        catkd(torch.zeros(2, 3), torch.zeros(2, 3), binarise=True)


# The class


PARAMETERS = {"head/weight": drawn(5, 5, 7).half(), "head/bias": drawn(6, 5).half()}
BINDING = binding_for({"last": (64, 8, 8)}, {"last": (7, 4, 4)}, parameters=PARAMETERS)


def bound_to(student):
    return replace(BINDING, student_head=student.head)


def dressed(**settings):
    loss, student = CATKD(**settings), create_model("resnet8", 5, seed=0)
    return loss, student


@pytest.mark.parametrize("settings", [{}, {"size": 4}, {"normalise": False}, {"binarise": True}])
def test_catkd_is_a_loss_that_trains_the_students_own_last_layer(settings):
    loss, student = dressed(**settings)
    assert_is_a_loss(loss, bound_to(student))
    assert student.head.weight.grad.abs().sum() > 0
    assert student.head.bias.grad is None
    assert not list(loss.parameters())
    assert not loss.state_dict()


def test_catkd_uses_each_networks_own_last_layer():
    loss, student = dressed(normalise=False)
    loss.bind(bound_to(student))
    signals = signals_for(BINDING)
    maps, stored = (side.detach().numpy() for side in signals.pair("last", "last"))
    ours = np.einsum("bchw,kc->bkhw", maps, student.head.weight.detach().numpy())
    theirs = np.einsum("bchw,kc->bkhw", stored, PARAMETERS["head/weight"].float().numpy())
    wanted = ((pooled_by_hand(ours, 2) - pooled_by_hand(theirs, 2)) ** 2).mean()
    assert loss(signals).item() == pytest.approx(wanted, rel=1e-5)


def test_catkd_follows_from_differences_too():
    assert CATKD().needs.comparable


def test_misfits_are_refused():
    unlike = binding_for({"last": (64, 8, 8)}, {"last": (9, 4, 4)}, parameters=PARAMETERS)
    with pytest.raises(InvalidInput, match=r"catkd: .*5 x 7 .*need 5 x 9"):
        CATKD().bind(replace(unlike, student_head=create_model("resnet8", 5).head))
    with pytest.raises(ValueError, match="size must be at least 1"):
        CATKD(size=0)


@pytest.mark.parametrize("binarise", [True, False])
def test_a_teacher_that_is_no_number_stays_visible(binarise):
    teacher = torch.ones(2, 3, 4, 4)
    teacher[0, 1, 2, 3] = float("nan")
    assert catkd(torch.zeros(2, 3, 4, 4), teacher, binarise=binarise).isnan()
