"""Networks of other libraries by ORIGIN:NAME, and the sentences where there is none."""

from __future__ import annotations

import sys

import pytest
import torch
import torchvision
from torchvision.models._api import WeightsEnum

from ground.errors import InvalidInput, UnknownName
from models import canonical_name, create_model, network_shape
from models.origins import Asked, class_names_of, open_trained, preprocessing_of

NETWORKS = [
    ("torchvision:resnet18", 32),
    ("torchvision:mobilenet_v3_small", 64),
    ("timm:mobilenetv3_small_050", 64),
    ("timm:vit_tiny_patch16_224", 32),
]


@pytest.mark.parametrize(("name", "size"), NETWORKS)
def test_a_network_answers_for_the_classes_and_the_size_asked_for(name, size):
    pytest.importorskip(name.partition(":")[0])
    network = create_model(name, num_classes=6, seed=0, image_size=size).eval()
    with torch.inference_mode():
        said = network.represent(torch.zeros(2, 3, size, size), network.extra_names)
    assert said.logits.shape == (2, 6)
    found = {layer: tuple(tensor.shape[1:]) for layer, tensor in said.features.items()}
    assert found == {layer: shape for layer, shape in network_shape(name, 6, size).outputs.items() if layer != "logits"}
    assert len(found) >= 4


@pytest.mark.parametrize(("name", "size"), NETWORKS)
def test_a_seed_makes_the_same_network_and_leaves_the_callers_numbers_alone(name, size):
    pytest.importorskip(name.partition(":")[0])
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    ours, again = (create_model(name, 6, seed=1, image_size=size).state_dict() for _ in range(2))
    torch.testing.assert_close(torch.rand(3), expected, rtol=0, atol=0)
    for key, value in ours.items():
        torch.testing.assert_close(again[key], value, rtol=0, atol=0)


def test_a_name_of_another_library_is_kept_as_it_is():
    assert canonical_name("timm:tf_efficientnet_lite0") == "timm:tf_efficientnet_lite0"


def test_an_unknown_origin_or_network_is_refused_with_the_nearest():
    with pytest.raises(UnknownName, match="no origin of networks is called 'tim'; did you mean timm"):
        canonical_name("tim:resnet18")
    with pytest.raises(UnknownName, match="no network of torchvision is called 'resnet81'; did you mean resnet18"):
        create_model("torchvision:resnet81", 10)


def test_a_library_that_is_not_installed_is_named_with_what_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(
        InvalidInput, match=r"needs the package timm; install it with: pip install 'teacher-cache\[timm\]'"
    ):
        create_model("timm:resnet18", 10)


def test_a_network_that_needs_larger_images_is_refused_by_name():
    with pytest.raises(InvalidInput, match="torchvision:inception_v3: the network does not take 32-pixel images"):
        create_model("torchvision:inception_v3", 10, image_size=32)


def test_a_network_that_was_published_with_squashed_images_says_so():
    pytest.importorskip("timm")
    found = {name: preprocessing_of(f"timm:{name}") for name in ("coat_lite_medium_384", "resnet18")}
    assert {name: (own.shape, own.remark) for name, own in found.items()} == {
        "coat_lite_medium_384": ("squashed", None),
        "resnet18": ("centre", None),
    }


@pytest.mark.slow
def test_a_network_with_classifiers_beside_its_last_one_is_trained_without_them():
    network = create_model("torchvision:googlenet", num_classes=4, seed=0, image_size=64).train()
    assert network.represent(torch.zeros(2, 3, 64, 64)).logits.shape == (2, 4)


def test_published_weights_are_taken_with_their_classes(monkeypatch):
    torch.manual_seed(0)
    module = torchvision.models.get_model("mobilenet_v3_small", weights=None, num_classes=1000).eval()
    monkeypatch.setattr(WeightsEnum, "get_state_dict", lambda *_, **__: module.state_dict())
    network = open_trained("torchvision:mobilenet_v3_small", Asked(name="mobilenet_v3_small", image_size=64)).eval()
    assert class_names_of("torchvision:mobilenet_v3_small")[:2] == ("tench", "goldfish")
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(network(images), module(images), rtol=0, atol=0)


def test_published_weights_that_cannot_be_had_are_said_with_the_reason(monkeypatch):
    def offline(*_, **__):
        raise OSError("Name or service not known")

    monkeypatch.setattr(WeightsEnum, "get_state_dict", offline)
    with pytest.raises(
        InvalidInput,
        match=r"published weights of torchvision:mobilenet_v3_small cannot be had \(Name or service not known\); give "
        "--weights FILE",
    ):
        open_trained("torchvision:mobilenet_v3_small", Asked(name="mobilenet_v3_small", image_size=64))


def test_a_tag_names_one_of_several_published_weights():
    assert preprocessing_of("torchvision:resnet50").resize_size == 256
    assert preprocessing_of("torchvision:resnet50.IMAGENET1K_V2").resize_size == 232
    with pytest.raises(UnknownName, match="no weights of torchvision:resnet50 is called 'IMAGENET1K_V3'; did you mean"):
        preprocessing_of("torchvision:resnet50.IMAGENET1K_V3")
    pytest.importorskip("timm")
    assert preprocessing_of("timm:resnet50.a1_in1k").input_size == 224
    with pytest.raises(UnknownName, match=r"did you mean resnet50\.a1_in1k"):
        preprocessing_of("timm:resnet50.a1_in2k")
    assert class_names_of("timm:resnet50.a1_in1k")[0] == "n01440764"


def test_a_published_body_of_timm_gives_features_and_no_logits(monkeypatch):
    timm = pytest.importorskip("timm")
    made = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained, **size: made(name, num_classes=0, **size))
    network = open_trained("timm:resnet10t", Asked(name="resnet10t", image_size=32))
    assert network.num_classes == 0
    assert "pooled" in network.feature_names
