"""Factor transfer: its formula, its two networks, and a paraphraser that is learned once and then stays."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from torch import nn

from ground.errors import Diverged, InvalidInput
from models import Representation
from student_train.losses.ft import FactorTransfer, Paraphraser, factor_transfer
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
from tests.student_train.losses.plain_layers import array, convolved, halved, leaky, normalised, transposed

SHAPES = [((3, 2, 4, 4), (3, 5, 4, 4)), ((1, 1, 2, 3), (1, 4, 2, 3)), ((4, 3, 1, 2), (4, 3, 1, 2))]
BINDING = binding_for({"layer3": (3, 4, 4)}, {"layer3": (6, 4, 4)}, rows=20)


def condensed(one: np.ndarray) -> np.ndarray:
    """Of one sample (C, H, W): channel means of squares, divided by their length."""
    means = np.array([np.mean([channel[h, w] ** 2 for channel in one]) for h, w in np.ndindex(one.shape[1:])])
    return means / np.sqrt((means**2).sum())


def whole(one: np.ndarray) -> np.ndarray:
    return one.flatten() / np.sqrt((one**2).sum())


def mean_difference(student: np.ndarray, teacher: np.ndarray, factor=condensed) -> float:
    return float(np.mean([np.abs(factor(s) - factor(t)) for s, t in zip(student, teacher, strict=True)]))


@pytest.mark.parametrize(("ours", "theirs"), SHAPES)
def test_factor_transfer_is_its_formula(ours, theirs):
    student, teacher = drawn(0, *ours), drawn(1, *theirs)
    wanted = mean_difference(array(student), array(teacher))
    np.testing.assert_allclose(factor_transfer(student, teacher).item(), wanted, rtol=1e-12)
    assert_gradient_is_right(lambda maps: factor_transfer(maps, teacher), student)


@pytest.mark.parametrize("shape", [(3, 2, 4, 4), (1, 1, 2, 3)])
def test_whole_factors_are_compared_element_by_element(shape):
    student, teacher = drawn(0, *shape), drawn(1, *shape)
    wanted = mean_difference(array(student), array(teacher), whole)
    np.testing.assert_allclose(factor_transfer(student, teacher, whole=True).item(), wanted, rtol=1e-12)
    assert_gradient_is_right(lambda maps: factor_transfer(maps, teacher, whole=True), student)


def test_the_larger_factor_is_pooled_whichever_it_is():
    large, small = drawn(0, 3, 2, 8, 4), drawn(1, 3, 2, 4, 2)
    wanted = mean_difference(halved(array(large)), array(small))
    np.testing.assert_allclose(factor_transfer(large, small).item(), wanted, rtol=1e-12)
    np.testing.assert_allclose(factor_transfer(small, large).item(), wanted, rtol=1e-12)


@pytest.mark.parametrize("whole", [False, True])
def test_scale_does_not_matter_and_equal_factors_cost_nothing(whole):
    student, teacher = drawn(0, 3, 2, 4, 4), drawn(1, 3, 2, 4, 4)
    torch.testing.assert_close(
        factor_transfer(student * 7, teacher * 0.1, whole), factor_transfer(student, teacher, whole)
    )
    assert factor_transfer(student * 3, student, whole) < 1e-15


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize(
    "case", map_edges((2, 4, 4), (2, 4, 4)) + map_edges((2, 2, 2), (2, 4, 4)), ids=lambda case: case[0]
)
def test_factor_transfer_is_finite_at_the_edges(case, whole):
    _, student, teacher = case
    assert_finite(lambda maps: factor_transfer(maps, teacher, whole), student)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"\(2, 3, 4, 4\).*\(1, 3, 4, 4\)"):
        factor_transfer(torch.zeros(2, 3, 4, 4), torch.zeros(1, 3, 4, 4))
    with pytest.raises(ValueError, match="3 and 5 channels"):
        factor_transfer(torch.zeros(2, 3, 4, 4), torch.zeros(2, 5, 4, 4), whole=True)
    with pytest.raises(ValueError, match="k must be above 0"):
        FactorTransfer(k=0.0)
    with pytest.raises(ValueError, match="epochs must be above 0"):
        FactorTransfer(epochs=0)
    with pytest.raises(InvalidInput, match="ft: both must be maps"):
        FactorTransfer(on="pooled").bind(binding_for({"pooled": (4,)}, {"pooled": (4,)}))
    maps = {"layer1": (2, 4, 4), "layer2": (2, 4, 4)}
    with pytest.raises(InvalidInput, match=r"ft: it takes one layer, as on=layer3\n(.*\n)+.*layer2"):
        FactorTransfer(on="stages").bind(binding_for(maps, maps))


def bound(seed: int = 0, binding=BINDING, **settings) -> FactorTransfer:
    torch.manual_seed(seed)
    loss = FactorTransfer(**settings)
    loss.bind(binding)
    return loss


class Stored:
    """A teacher's answers to 20 rows, smooth and low in rank so that they can be condensed; keeps what was asked."""

    def __init__(self, scale: float = 1.0) -> None:
        # The same mixture of two numbers at each position of a sample.
        numbers, mixture = drawn(0, 20, 2).abs(), drawn(1, 6, 2).abs()
        maps = torch.einsum("cf,nf->nc", mixture, numbers) * scale
        self.maps = maps.view(20, 6, 1, 1).expand(-1, -1, 4, 4).float()
        self.asked: list[list[int]] = []

    def __call__(self, rows: torch.Tensor) -> Representation:
        self.asked.append(rows.tolist())
        return Representation(torch.zeros(len(rows), 5), {"layer3": self.maps[rows]})


def test_factors_come_from_three_convolutions_each():
    loss = bound()
    signals = signals_for(BINDING)
    student, teacher = (array(maps) for maps in signals.pair("layer3", "layer3"))
    for layer in loss.translator:
        assert [type(part) for part in layer] == [nn.Conv2d, nn.BatchNorm2d, nn.LeakyReLU]
        student = leaky(normalised(convolved(layer[0], student)))
    for layer in loss.paraphraser.encoder:
        assert [type(part) for part in layer] == [nn.Conv2d, nn.LeakyReLU]
        teacher = leaky(convolved(layer[0], teacher))
    assert student.shape == teacher.shape == (6, 3, 4, 4)
    np.testing.assert_allclose(loss(signals).item(), mean_difference(student, teacher), rtol=1e-4)
    np.testing.assert_allclose(bound(whole=True)(signals).item(), mean_difference(student, teacher, whole), rtol=1e-4)


def test_maps_are_made_again_by_three_transposed_convolutions():
    paraphraser = Paraphraser(4, 2)
    maps = drawn(0, 2, 4, 3, 5).float()
    made = array(paraphraser(maps))
    assert made.shape == (2, 2, 3, 5)
    for layer in paraphraser.decoder:
        made = leaky(transposed(layer[0], made))
    np.testing.assert_allclose(paraphraser.error(maps).item(), ((made - array(maps)) ** 2).mean(), rtol=1e-5)


def test_the_size_of_the_stored_maps_makes_no_difference():
    one, other = bound(epochs=2), bound(epochs=2)
    one.prepare(Stored(), Moment())
    other.prepare(Stored(scale=1024.0), Moment())
    assert other.paraphraser.scale == 1024 * one.paraphraser.scale
    np.testing.assert_allclose(one.paraphraser.scale.item(), Stored().maps.square().mean().sqrt().item(), rtol=1e-6)
    maps = Stored().maps
    assert torch.equal(one.paraphraser(maps), other.paraphraser(maps * 1024))
    zero = Paraphraser(4, 2)
    zero.measure(torch.zeros(2, 4, 3, 3))
    assert zero.scale == 1


def test_a_paraphraser_starts_with_what_keeps_the_size_of_its_maps():
    torch.manual_seed(0)
    paraphraser = Paraphraser(64, 48)
    for layers in (paraphraser.encoder, paraphraser.decoder):
        for layer in layers:
            inputs = drawn(0, 8, layer[0].in_channels, 10, 10).float()
            # Away from the border, where there are fewer inputs: 1 / 2 of (1 + 0.1^2) times 2 / (1 + 0.1^2).
            size = layer(inputs)[..., 1:-1, 1:-1].square().mean().item()
            np.testing.assert_allclose(size, 1.0, atol=0.1)


@pytest.mark.parametrize(("k", "factors"), [(0.5, 3), (0.75, 4), (2.0, 12), (0.01, 1)])
def test_k_is_factors_per_channel_of_the_teacher(k, factors):
    loss = bound(k=k)
    assert loss.paraphraser(torch.zeros(1, 6, 4, 4)).shape == (1, factors, 4, 4)
    assert loss.translator(torch.zeros(2, 3, 4, 4)).shape == (2, factors, 4, 4)


def test_ft_is_a_loss_of_maps_of_any_sizes():
    assert_is_a_loss(FactorTransfer(), BINDING)
    other = binding_for({"layer2": (5, 8, 8), "layer4": (2, 2, 2)}, {"layer3": (6, 4, 4), "layer4": (8, 4, 4)})
    assert_is_a_loss(FactorTransfer(on="layer2:layer3", whole=True), other)
    assert_is_a_loss(FactorTransfer(on="layer4"), other)


def test_preparing_learns_to_make_the_stored_maps_again(caplog):
    loss, teacher = bound(epochs=40, batch_size=8), Stored()
    with caplog.at_level(logging.INFO, logger="student_train.losses.ft"):
        loss.prepare(teacher, Moment())
    size = teacher.maps.square().mean()
    plain = teacher.maps.var(dim=(0, 2, 3), correction=0).mean() / size
    assert loss.paraphraser.error(teacher.maps) < 0.5 * plain
    assert [record.levelname for record in caplog.records] == ["INFO"] * 40
    assert "paraphraser epoch 40 of 40, error 0." in caplog.messages[-1]


def test_a_paraphraser_that_has_learned_nothing_yet_is_reported(caplog):
    bound(epochs=1, lr=1e-9).prepare(Stored(), Moment())
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "no more of the maps than channel means; raise ft's epochs or lr" in caplog.text


def test_preparing_asks_for_every_row_once_an_epoch_in_another_order():
    loss, teacher = bound(epochs=3, batch_size=8), Stored()
    loss.prepare(teacher, Moment())
    # Eight rows to measure, then the epochs.
    assert [len(rows) for rows in teacher.asked] == [8] + [8, 8, 4] * 3
    epochs = [[row for rows in teacher.asked[start : start + 3] for row in rows] for start in (1, 4, 7)]
    assert all(sorted(rows) == list(range(20)) for rows in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_preparing_depends_on_the_moment_alone():
    first, again, other = (bound(epochs=2, batch_size=8) for _ in range(3))
    state = torch.get_rng_state()
    first.prepare(Stored(), Moment(seed=3))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    again.prepare(Stored(), Moment(seed=3))
    other.prepare(Stored(), Moment(seed=4))
    weight, *others = (loss.paraphraser.encoder[0][0].weight for loss in (first, again, other))
    assert torch.equal(weight, others[0])
    assert not torch.equal(weight, others[1])


def test_an_error_that_explodes_is_reported():
    with pytest.raises(
        Diverged, match=r"ft: the paraphraser's error is (nan|inf) in epoch \d+; lower ft's lr \(1000.0\)"
    ):
        bound(lr=1e3).prepare(Stored(), Moment())


@pytest.mark.parametrize("prepared", [False, True])
def test_the_paraphraser_stays_as_it_is_and_only_the_translator_learns(prepared):
    loss = bound(epochs=1)
    if prepared:
        loss.prepare(Stored(), Moment())
    frozen = {name: tensor.clone() for name, tensor in loss.paraphraser.state_dict().items()}
    moving = [parameter.clone() for parameter in loss.translator.parameters()]
    assert not any(parameter.requires_grad for parameter in loss.paraphraser.parameters())
    assert all(parameter.grad is None for parameter in loss.paraphraser.parameters())
    # As the trainer does: every parameter is handed over, with weight decay.
    optimizer = torch.optim.SGD(loss.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    loss.train()
    for seed in range(3):
        optimizer.zero_grad()
        loss(signals_for(BINDING, seed=seed)).backward()
        optimizer.step()
    assert all(torch.equal(tensor, frozen[name]) for name, tensor in loss.paraphraser.state_dict().items())
    assert not any(torch.equal(*pair) for pair in zip(moving, loss.translator.parameters(), strict=True))


def test_the_paraphraser_is_always_in_evaluation_mode():
    loss = bound()
    assert not any(module.training for module in loss.paraphraser.modules())
    nn.ModuleList([loss]).train()
    assert loss.translator.training
    assert not any(module.training for module in loss.paraphraser.modules())
    loss.paraphraser.train()
    assert not any(module.training for module in loss.paraphraser.modules())


def test_a_resumed_run_needs_no_preparing():
    prepared, resumed = bound(seed=0, epochs=2), bound(seed=1, epochs=2)
    prepared.prepare(Stored(), Moment())
    signals = signals_for(BINDING)
    assert prepared(signals) != resumed(signals)
    resumed.load_state_dict(prepared.state_dict())
    steps = []
    for loss in (prepared, resumed):
        optimizer = torch.optim.SGD(loss.parameters(), lr=0.1, weight_decay=5e-4)
        loss.train()
        steps.append([])
        for seed in range(3):
            optimizer.zero_grad()
            value = loss(signals_for(BINDING, seed=seed))
            value.backward()
            optimizer.step()
            steps[-1].append(value.item())
    assert steps[0] == steps[1]
