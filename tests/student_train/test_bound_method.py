"""The sum that a step descends, and each loss that is in it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from models import create_model
from student_train.bound_method import BoundMethod, bind_method, standardised
from student_train.losses.kd import KD
from student_train.methods import parse_losses, parse_method
from student_train.mixing import Mixup
from tests.student_train.losses.checks import binding_for, signals_for

BINDING = binding_for({"layer2": (4, 3, 3)}, {"layer2": (4, 3, 3)})


def bound(spec) -> BoundMethod:
    method, _ = bind_method(spec, create_model("resnet8", num_classes=5, seed=0), lambda student: BINDING, seed=0)
    return method


SUMS = [
    (["ce", "kd:weight=0.25"], None),
    (["ce:weight=0.5", "hint:layers=layer2,weight=3"], None),
    (["ce", "match_logits:compared=true,weight=2", "kd:compared=true,standardised=true"], "sampled"),
    (["kd:compared=true", "match_logits:compared=true,weight=0.1"], "all"),
]


@pytest.mark.parametrize(("losses", "pairing"), SUMS)
def test_the_total_is_the_weighted_sum_of_the_losses(losses, pairing):
    spec = parse_losses(losses, pairing)
    found = bound(spec).losses(signals_for(BINDING))
    assert found.terms.shape == (len(losses),)
    weights = torch.tensor([loss.weight for loss in spec.losses])
    assert_close(found.total.detach(), (weights * found.terms).sum())
    assert found.total.requires_grad
    assert not found.terms.requires_grad


def test_each_loss_is_what_it_is_alone_whatever_its_weight():
    signals = signals_for(BINDING)
    found = bound(parse_losses(["ce:weight=7", "kd:temperature=2,weight=0.5"])).losses(signals)
    alone = [KD(2.0)(signals), torch.nn.functional.cross_entropy(signals.student.logits, signals.labels)]
    assert_close(found.terms, torch.stack(alone[::-1]).detach())
    lskd = bound(parse_losses(["kd:standardised=true"])).losses(signals)
    assert_close(lskd.terms[0], KD()(standardised(signals)).detach())


def test_losses_of_mixed_inputs_are_mixed_too():
    signals = signals_for(BINDING)
    _, parts = Mixup(images=3).mix(torch.zeros(6, 3, 8, 8), np.random.default_rng(0))
    method = bound(parse_method("mixup:weight=0.5"))
    found = method.losses(signals, parts)
    shares = [part.share * method.losses(signals.reordered(part.order)).terms for part in parts]
    assert_close(found.terms, sum(shares))
    assert_close(found.total.detach(), found.terms[0] + 0.5 * found.terms[1])


def test_binding_leaves_the_callers_random_numbers_alone_and_repeats_itself():
    spec = parse_losses(["hint:layers=layer2", "vid:layers=layer2"])
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    one, other = bound(spec), bound(spec)
    assert torch.equal(torch.rand(3), expected)
    states = one.learned.state_dict(), other.learned.state_dict()
    assert states[0]
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())
