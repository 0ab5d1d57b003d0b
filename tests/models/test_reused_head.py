"""A student behind its teacher's last layer: what it says, what it saves, and that it can be built again."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ground.errors import CheckpointMismatch, UnknownName
from models import create_model, load_weights, read_weights, save_weights
from models.reused_head import ReusedHead, rebuild

FAMILIES = ["resnet8", "wrn_16_1", "vgg8", "MobileNetV2", "ShuffleV1", "ShuffleV2"]


def reused(student="resnet8", size=(8, 8), seed=0):
    torch.manual_seed(seed)
    body = create_model(student, 5)
    return ReusedHead(body, torch.randn(7, 12), torch.randn(7), size, width=6)


def images(count=2, side=32):
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(9))


def said_last(network, inputs=None):
    """The map that a network pools."""
    return network.represent(images() if inputs is None else inputs, ["last"]).features["last"]


@pytest.mark.parametrize("student", FAMILIES)
@pytest.mark.parametrize("size", [(8, 8), (1, 1)])
def test_it_answers_through_the_teachers_last_layer(student, size):
    network = reused(student, size).eval()
    said = network.represent(images(), network.extra_names)
    last, pooled = said.features["last"].detach().numpy(), said.features["pooled"].detach().numpy()
    np.testing.assert_allclose(pooled, last.mean(axis=(2, 3)), rtol=1e-4, atol=1e-6)
    assert last.min() >= 0
    weight, bias = network.head.weight.detach().numpy(), network.head.bias.detach().numpy()
    np.testing.assert_allclose(said.logits.detach().numpy(), pooled @ weight.T + bias, rtol=1e-4, atol=1e-4)
    assert network.num_classes == 7
    assert not network.head.weight.requires_grad


@pytest.mark.parametrize("student", FAMILIES)
def test_the_stages_are_those_of_the_body(student):
    body = create_model(student, 5, seed=0).eval()
    before = body.represent(images(), body.extra_names)
    norms = list(body.stage_norms)
    network = ReusedHead(body, torch.randn(7, 12), torch.randn(7), (8, 8), width=6).eval()
    after = network.represent(images(), network.extra_names)
    assert list(after.features) == list(before.features)
    for name, tensor in before.features.items():
        assert (name in ("last", "pooled")) or torch.equal(after.features[name], tensor), name
    assert list(network.stage_norms) == norms


@pytest.mark.parametrize(("size", "kernel"), [((8, 8), 3), ((1, 8), 3), ((1, 1), 1)])
def test_the_projector_is_three_convolutions_with_batch_norm_and_relu(size, kernel):
    network = reused(size=size).eval()
    maps = torch.nn.functional.adaptive_avg_pool2d(said_last(network.body), size)
    for place in (0, 3, 6):
        maps = torch.nn.functional.conv2d(
            maps, network.projector[place].weight, padding=kernel // 2 if place == 3 else 0
        )
        norm = network.projector[place + 1]
        shape = (1, -1, 1, 1)
        maps = (maps - norm.running_mean.view(shape)) / (norm.running_var.view(shape) + norm.eps).sqrt()
        maps = (maps * norm.weight.view(shape) + norm.bias.view(shape)).clamp(min=0)
    torch.testing.assert_close(said_last(network), maps, rtol=1e-4, atol=1e-5)
    assert [network.projector[place].kernel_size for place in (0, 3, 6)] == [(1, 1), (kernel, kernel), (1, 1)]
    assert [network.projector[place].out_channels for place in (0, 3, 6)] == [6, 6, 12]


@pytest.mark.parametrize(("size", "side", "wanted"), [((4, 4), 32, (4, 4)), ((8, 8), 64, (8, 8)), ((8, 8), 16, (4, 4))])
def test_a_larger_map_is_pooled_and_a_smaller_one_stays(size, side, wanted):
    assert said_last(reused(size=size), images(side=side)).shape[2:] == wanted


@pytest.mark.parametrize("student", FAMILIES)
@pytest.mark.parametrize("size", [(8, 8), (1, 1), (2, 4)])
def test_what_is_saved_builds_the_same_network_again(tmp_path, student, size):
    network = reused(student, size)
    network.train()(images(4))
    save_weights(network, tmp_path / "student.safetensors", {"student": student})
    state = torch.get_rng_state()
    again = rebuild(student, read_weights(tmp_path / "student.safetensors").state_dict)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(again.eval()(images()), network.eval()(images()))
    assert not again.head.weight.requires_grad
    assert again.state_dict().keys() == network.state_dict().keys()


def test_the_students_own_last_layer_is_neither_saved_nor_trained():
    assert not any(key.startswith("body.fc") for key in reused().state_dict())


def test_weights_of_one_size_do_not_go_into_a_network_of_another(tmp_path):
    save_weights(reused(size=(4, 4)), tmp_path / "small.safetensors", {})
    with pytest.raises(CheckpointMismatch, match="grid"):
        load_weights(reused(size=(8, 8)), tmp_path / "small.safetensors")


def test_weights_of_something_else_are_refused():
    with pytest.raises(CheckpointMismatch, match=r"hold no projector\.0\.weight, .*load them as a plain resnet8"):
        rebuild("resnet8", create_model("resnet8", 5, seed=0).state_dict())
    with pytest.raises(CheckpointMismatch, match="give the student they were trained for"):
        rebuild("resnet14", reused("resnet8").state_dict())
    with pytest.raises(UnknownName):
        rebuild("resnet9000", reused("resnet8").state_dict())


def test_shapes_without_values_are_refused_without_memory() -> None:
    state = dict(reused(size=(4, 4)).state_dict())
    # A hundred thousand million classes, in no bytes.
    state["classifier.weight"] = torch.zeros(100_000_000_000, 0)
    with pytest.raises(CheckpointMismatch, match="the weights are not of "):
        rebuild("resnet8", state)
