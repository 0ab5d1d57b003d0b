"""Networks of other libraries say what their own hooks would say, under their own names."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import Tensor, nn

from ground.errors import InvalidInput
from models.module_network import ModuleNetwork, choose_stages, survey


class Tokens(nn.Module):
    """A transformer's shape: patches, a class token, blocks, a head on the class token."""

    def __init__(self, blocks: int = 6, inplace: bool = False) -> None:
        super().__init__()
        self.num_prefix_tokens = 1
        self.patches = nn.Conv2d(3, 8, 4, stride=4)
        self.token = nn.Parameter(torch.ones(1, 1, 8))
        self.blocks = nn.Sequential(*(nn.Sequential(nn.Linear(8, 8), nn.ReLU(inplace)) for _ in range(blocks)))
        self.head = nn.Linear(8, 5)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.patches(images).flatten(2).transpose(1, 2)
        tokens = self.blocks(torch.cat([self.token.expand(len(tokens), -1, -1), tokens], dim=1))
        return self.head(tokens[:, 0])


class Overwritten(nn.Module):
    """A layer whose output the next one overwrites."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.act = nn.ReLU(inplace=True)
        self.second = nn.Conv2d(4, 6, 3, stride=2, padding=1)
        self.fc = nn.Linear(6, 3)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.second(self.act(self.first(images))).mean(dim=(2, 3)))


@pytest.fixture(scope="module")
def resnet() -> ModuleNetwork:
    torch.manual_seed(0)
    return ModuleNetwork(torchvision.models.get_model("resnet18", weights=None, num_classes=7), 64).eval()


def images(size: int = 64) -> Tensor:
    return torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(1))


def test_stages_are_the_last_modules_of_each_size_in_the_librarys_names(resnet):
    assert resnet.feature_names == ("layer1", "layer2", "layer3", "layer4", "pooled")
    assert resnet.extra_names == ("last",)
    assert resnet.num_classes == 7


def test_features_are_what_the_modules_say(resnet):
    inputs, module = images(), resnet.module
    with torch.inference_mode():
        said = resnet.represent(inputs, ["last"])
        stem = module.maxpool(module.relu(module.bn1(module.conv1(inputs))))
        first = module.layer1(stem)
        last = module.layer4(module.layer3(module.layer2(first)))
        pooled = last.mean(dim=(2, 3))
        logits = resnet.head(pooled)
    torch.testing.assert_close(said.features["layer1"], first)
    torch.testing.assert_close(said.features["layer4"], last)
    torch.testing.assert_close(said.features["last"], last)
    torch.testing.assert_close(said.features["pooled"], pooled)
    torch.testing.assert_close(said.logits, logits)
    assert list(said.features) == [*resnet.feature_names, "last"]


def test_a_gradient_reaches_the_network_through_its_features(resnet):
    resnet.represent(images()).features["layer2"].sum().backward()
    assert resnet.module.layer2[0].conv1.weight.grad.abs().sum() > 0
    assert resnet.module.layer3[0].conv1.weight.grad is None
    resnet.zero_grad()


def test_its_weights_have_the_librarys_own_names(resnet):
    state = resnet.state_dict()
    assert state.keys() == resnet.module.state_dict().keys()
    plain = torchvision.models.get_model("resnet18", weights=None, num_classes=7)
    plain.load_state_dict(state)
    again = ModuleNetwork(torchvision.models.get_model("resnet18", weights=None, num_classes=7), 64).eval()
    again.load_state_dict(state)
    with torch.inference_mode():
        for other in (plain.eval(), again):
            torch.testing.assert_close(other(images()), resnet(images()), rtol=0, atol=0)


def test_weights_inside_another_module_keep_its_prefix(resnet):
    whole = nn.ModuleDict({"student": resnet})
    state = whole.state_dict()
    assert {key.split(".")[0] for key in state} == {"student"}
    assert "student.layer1.0.conv1.weight" in state
    assert whole.load_state_dict(state).missing_keys == []


def test_a_missing_weight_is_said(resnet):
    state = resnet.state_dict()
    del state["fc.bias"]
    with pytest.raises(RuntimeError, match="fc.bias"):
        resnet.load_state_dict(state)


def test_tokens_become_maps_without_the_class_token():
    torch.manual_seed(0)
    network = ModuleNetwork(Tokens(), 16).eval()
    inputs = images(16)
    with torch.inference_mode():
        said = network.represent(inputs)
        tokens = network.module.patches(inputs).flatten(2).transpose(1, 2)
        for block in network.module.blocks[:3]:
            tokens = block(tokens)
    assert network.feature_names == ("blocks.2", "blocks.3", "blocks.4", "blocks.5", "pooled")
    expected = tokens.transpose(1, 2).reshape(3, 8, 4, 4)
    torch.testing.assert_close(said.features["blocks.2"], expected)
    # The head reads the class token, which no map's mean is.
    assert network.extra_names == ()


def test_maps_with_their_channels_last_are_turned():
    network = ModuleNetwork(torchvision.models.get_model("swin_t", weights=None, num_classes=4), 64).eval()
    with torch.inference_mode():
        said = network.represent(images())
    assert network.feature_names == ("features.1", "features.3", "features.5", "permute", "pooled")
    assert [tuple(said.features[name].shape[1:]) for name in network.feature_names[:3]] == [
        (96, 16, 16),
        (192, 8, 8),
        (384, 4, 4),
    ]


def test_what_a_layer_said_is_not_what_the_next_one_made_of_it():
    torch.manual_seed(0)
    network = ModuleNetwork(Overwritten(), 16, ["first", "act"]).eval()
    with torch.inference_mode():
        said = network.represent(images(16), ["first"])
        expected = network.module.first(images(16))
    assert (expected < 0).any()
    torch.testing.assert_close(said.features["first"], expected)
    torch.testing.assert_close(said.features["act"], expected.relu())


def test_a_layer_that_the_next_step_adds_to_in_place_is_read_as_it_was():
    module = torchvision.models.get_model("resnet18", weights=None, num_classes=4)
    network = ModuleNetwork(module, 64, ["layer1.0.conv2", "layer1.0.bn2", "layer1.0"]).eval()
    overwritten = {layer.name for layer in network.survey.layers if layer.is_overwritten}
    assert {"bn1", "layer1.0.bn2"} <= overwritten
    assert not {"layer1", "layer1.0.conv2"} & overwritten
    assert module.relu.inplace
    with torch.inference_mode():
        said = network.represent(images(), network.extra_names).features
        expected = module.layer1[0].bn2(said["layer1.0.conv2"])
    assert (expected < 0).any()
    torch.testing.assert_close(said["layer1.0.bn2"], expected)


class Finished(nn.Module):
    """A map, and logits, that their own module does not leave as they are used."""

    def __init__(self, classifies: bool = True, temperature: float = 1.0) -> None:
        super().__init__()
        self.classifies, self.temperature = classifies, temperature
        self.map = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.fc = nn.Linear(4, 3)

    def forward(self, images: Tensor) -> Tensor:
        vector = torch.relu_(self.map(images)).mean(dim=(2, 3))
        return self.fc(vector).div_(self.temperature) if self.classifies else vector


@pytest.mark.parametrize("classifies", [True, False])
def test_a_map_that_is_changed_in_place_before_it_is_pooled_is_not_the_last_one(classifies):
    module = Finished(classifies)
    network = ModuleNetwork(module, 32, ["map"], classifies=classifies).eval()
    assert network.survey.last is None
    with torch.inference_mode():
        said = network.represent(images(32), network.extra_names).features
        torch.testing.assert_close(said["map"], module.map(images(32)))
    densenet = ModuleNetwork(torchvision.models.get_model("densenet121", weights=None, num_classes=4), 32).eval()
    assert densenet.survey.last is None


def test_a_linear_layer_whose_answer_is_changed_in_place_is_no_head():
    assert ModuleNetwork(Overwritten(), 32).head is not None
    assert ModuleNetwork(Finished(temperature=2.0), 32).head is None


def test_a_survey_leaves_the_module_as_it_was():
    module = torchvision.models.get_model("resnet18", weights=None, num_classes=7).train()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    survey(module, 64)
    assert module.training
    assert not any(part._forward_hooks for part in module.modules())
    for name, value in module.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (nn.Conv2d(1, 4, 3), "does not take 16-pixel images"),
        (nn.Conv2d(3, 4, 3), "does not answer with logits"),
        (nn.Sequential(nn.Flatten(), nn.Linear(10, 2)), "does not take 16-pixel images"),
    ],
    ids=["grey images", "a map", "another size"],
)
def test_what_is_no_classifier_of_such_images_is_refused(module, reason):
    with pytest.raises(InvalidInput, match=reason):
        ModuleNetwork(module, 16)


def test_an_unknown_layer_is_refused():
    with pytest.raises(InvalidInput, match="no layer of the network is called 'third'; known: first, act, "):
        ModuleNetwork(Overwritten(), 16, ["third"])


def test_a_family_of_one_size_is_thinned_to_its_last():
    assert choose_stages(survey(Tokens(blocks=12), 16)) == ("blocks.2", "blocks.5", "blocks.8", "blocks.11")
    assert choose_stages(survey(Tokens(blocks=2), 16)) == ("blocks.0", "blocks.1")
