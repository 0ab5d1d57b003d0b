"""The zoo against the CRD benchmark: keys, shapes, sizes and numbers."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ground.errors import InvalidInput
from models import Network, Representation, create_model, model_names
from tests.models.formula import fill_by_formula, formula_images

HERE = Path(__file__).parent
BENCHMARK: dict[str, Any] = json.loads((HERE / "crd_benchmark.json").read_text())
GOLDEN: dict[str, Any] = json.loads((HERE / "golden.json").read_text())
FULL_TABLES = HERE.parents[2] / "shared" / "data" / "crd_benchmark_networks.json"
LIGHT = ("resnet8", "wrn_16_1", "vgg8", "MobileNetV2", "ShuffleV1", "ShuffleV2")


def meta_model(name: str, num_classes: int = 100) -> Network:
    """Shapes without memory or arithmetic."""
    with torch.device("meta"):
        return create_model(name, num_classes=num_classes).eval()


def shape_table(network: nn.Module) -> dict[str, list[int]]:
    return {key: list(tensor.shape) for key, tensor in network.state_dict().items()}


def batch_norms(network: nn.Module) -> list[nn.BatchNorm2d]:
    return [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]


def checksums(tensor: Tensor) -> list[float]:
    """Mean, mean of magnitudes, and a mean weighted by position, which notices swapped channels."""
    weights = torch.arange(1, tensor.numel() + 1, dtype=torch.float64) / tensor.numel()
    return [tensor.mean().item(), tensor.abs().mean().item(), (tensor.reshape(-1) * weights).mean().item()]


def assert_same_numbers(actual: list[list[float]], expected: list[list[float]]) -> None:
    """Equal to 1e-9 of each tensor's magnitude: its mean may cancel to almost nothing."""
    assert len(actual) == len(expected)
    for ours, theirs in zip(actual, expected, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-9, abs=1e-9 * theirs[1])


def test_the_zoo_is_the_benchmarks_22_networks() -> None:
    assert sorted(model_names()) == sorted(BENCHMARK)
    assert len(model_names()) == 22


@pytest.mark.parametrize("name", model_names())
def test_keys_shapes_and_sizes_are_the_benchmarks(name: str) -> None:
    network = meta_model(name)
    expected = BENCHMARK[name]
    table = json.dumps(shape_table(network), sort_keys=True, separators=(",", ":"))
    features = network.represent(torch.empty(2, 3, 32, 32, device="meta")).features
    assert sum(parameter.numel() for parameter in network.parameters()) == expected["parameters"]
    assert hashlib.sha256(table.encode()).hexdigest() == expected["keys_sha256"]
    assert [list(feature.shape) for feature in features.values()] == expected["features"]


@pytest.mark.skipif(not FULL_TABLES.exists(), reason="the full tables lie outside the repository")
def test_full_key_tables_match_where_they_are_at_hand() -> None:
    for name, expected in json.loads(FULL_TABLES.read_text()).items():
        assert list(shape_table(meta_model(name)).items()) == list(expected["state_dict"].items()), name


@pytest.mark.parametrize("name", model_names())
def test_numbers_are_the_benchmarks(name: str) -> None:
    """Golden values: a transcription of RepDistiller's definitions, run once, in float64 and eval mode.

    Weights and the 1x3x32x32 input come from `formula.py`. Kept per network: the first five of 100 logits,
    and `checksums` of logits, of all features (`is_feat=True`) and of the preactivations (`preact=True`).
    """
    network = meta_model(name)
    fill_by_formula(network)
    with torch.no_grad():
        seen = network.represent(formula_images(1, 32), network.extra_names)
    expected = GOLDEN[name]
    assert seen.logits[0, :5].tolist() == pytest.approx(expected["logits"], rel=1e-9)
    assert_same_numbers([checksums(seen.logits)], [expected["logits_sums"]])
    plain = [checksums(seen.features[layer]) for layer in network.feature_names]
    assert_same_numbers(plain, expected["features"])
    before = [checksums(tensor) for tensor in preactivations(seen).values()]
    assert_same_numbers(before, expected["preactivations"])


def preactivations(seen: Representation) -> dict[str, Tensor]:
    """Layer -> its map before the last ReLU, for layers whose extra was asked for."""
    return {name.removesuffix(".pre"): tensor for name, tensor in seen.features.items() if name.endswith(".pre")}


@pytest.mark.parametrize("name", model_names())
def test_feature_names_are_one_scheme(name: str) -> None:
    network = meta_model(name)
    images = torch.empty(1, 3, 32, 32, device="meta")
    seen = network.represent(images)
    layers = tuple(f"layer{number}" for number in range(1, len(seen.features) - 1))
    assert network.feature_names == tuple(seen.features) == ("stem", *layers, "pooled")
    assert network.extra_names == (*(f"{layer}.pre" for layer in layers), "last")
    everything = network.represent(images, network.extra_names)
    assert tuple(everything.features) == network.feature_names + network.extra_names
    assert isinstance(network.head, nn.Linear)
    assert list(network.modules())[-1] is network.head
    assert network.head.in_features == seen.features["pooled"].shape[1]


@pytest.mark.parametrize(("size", "num_classes"), [(32, 1), (56, 2), (64, 7)])
@pytest.mark.parametrize("name", model_names())
def test_any_size_and_class_count_works(name: str, size: int, num_classes: int) -> None:
    network = meta_model(name, num_classes)
    seen = network.represent(torch.empty(2, 3, size, size, device="meta"), network.extra_names)
    assert seen.logits.shape == (2, num_classes)
    assert network.num_classes == network.head.out_features == num_classes
    for layer, tensor in preactivations(seen).items():
        assert tensor.shape == seen.features[layer].shape


@pytest.mark.parametrize(("size", "last"), [(32, 4), (56, 7), (64, 4)])
def test_vgg_pools_a_fourth_time_only_at_64_pixels(size: int, last: int) -> None:
    seen = meta_model("vgg8").represent(torch.empty(1, 3, size, size, device="meta"))
    assert seen.features["layer4"].shape[2:] == (last, last)


def test_no_classes_is_refused() -> None:
    with pytest.raises(InvalidInput, match="at least 1 class, got 0"):
        create_model("resnet8", num_classes=0)


@pytest.mark.parametrize("name", LIGHT)
def test_forward_is_the_logits_of_represent_and_every_weight_learns(name: str) -> None:
    network = create_model(name, num_classes=3, seed=0)
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    network.eval()
    with torch.no_grad():
        torch.testing.assert_close(network(images), network.represent(images).logits, rtol=0, atol=0)
    network.train()
    seen = network.represent(images, network.extra_names)
    torch.autograd.backward([seen.logits.logsumexp(dim=1).sum(), *(t.mean() for t in preactivations(seen).values())])
    assert [key for key, weight in network.named_parameters() if weight.grad is None] == []
    assert all(bool(weight.grad.isfinite().all()) for weight in network.parameters() if weight.grad is not None)


@pytest.mark.parametrize("name", LIGHT)
def test_extras_do_not_update_running_statistics_twice(name: str) -> None:
    asked, plain = (create_model(name, num_classes=2, seed=1).train() for _ in range(2))
    images = formula_images(2, 32).float()
    with torch.no_grad():
        said = asked.represent(images, asked.extra_names)
        torch.testing.assert_close(said.logits, plain(images), rtol=0, atol=0)
    for ours, theirs in zip(batch_norms(asked), batch_norms(plain), strict=True):
        assert ours.num_batches_tracked == theirs.num_batches_tracked == 1
        assert torch.equal(ours.running_mean, theirs.running_mean)
        assert torch.equal(ours.running_var, theirs.running_var)


def rectified(name: str, network: Any, seen: Representation, layer: str) -> tuple[Tensor, Tensor]:
    """What must be equal, by family: ReLU of the preactivation, and where the network continues from it."""
    before, feature = seen.features[f"{layer}.pre"], seen.features[layer]
    if name == "MobileNetV2":
        return before, feature
    if name == "ShuffleV2":
        half = before.shape[1] // 2
        return torch.stack([before[:, :half], before[:, half:]], dim=2).flatten(1, 2).relu(), feature
    if name.startswith("wrn"):
        norms = {
            "layer1": network.block2.layer[0].bn1,
            "layer2": network.block3.layer[0].bn1,
            "layer3": network.bn1,
        }
        return before, norms[layer](feature)
    return before.relu(), feature


@pytest.mark.parametrize("name", LIGHT)
def test_preactivations_are_captured_before_any_relu(name: str) -> None:
    network = create_model(name, num_classes=2, seed=2).eval()
    with torch.no_grad():
        seen = network.represent(formula_images(2, 32).float(), network.extra_names)
        for layer, before in preactivations(seen).items():
            assert before.min() < 0
            torch.testing.assert_close(*rectified(name, network, seen, layer))


@pytest.mark.parametrize("name", ["resnet8", "ShuffleV1", "ShuffleV2", "wrn_16_1"])
def test_channels_last_gives_the_same_numbers_and_stays(name: str) -> None:
    network = create_model(name, num_classes=5, seed=3).double().eval()
    images = formula_images(2, 32)
    with torch.no_grad():
        expected = network(images)
        seen = network.to(memory_format=torch.channels_last).represent(images.to(memory_format=torch.channels_last))
    torch.testing.assert_close(seen.logits, expected)
    assert seen.features["layer2"].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("name", LIGHT)
def test_last_is_the_map_that_is_pooled(name: str) -> None:
    network = create_model(name, num_classes=2, seed=2).eval()
    with torch.no_grad():
        seen = network.represent(formula_images(2, 32).float(), ["last"])
    torch.testing.assert_close(seen.features["last"].mean(dim=(2, 3)), seen.features["pooled"])


def test_extras_come_last_in_one_order_and_only_where_asked() -> None:
    network, images = meta_model("resnet8"), torch.empty(1, 3, 32, 32, device="meta")
    asked = network.represent(images, {"last", "layer2.pre"})
    assert tuple(asked.features) == (*network.feature_names, "layer2.pre", "last")
    for name in ("layer4.pre", "stem.pre", "pooled"):
        with pytest.raises(ValueError, match=f"no extra is called '{name}'; known: layer1.pre, .*, last"):
            network.represent(images, [name])


# Layer by layer the attribute path of its batch norm, as the benchmark's `get_bn_before_relu` gives it to OFD.
STAGE_NORMS = {
    "resnet8": ["layer1.0.bn2", "layer2.0.bn2", "layer3.0.bn2"],
    "resnet32x4": ["layer1.4.bn2", "layer2.4.bn2", "layer3.4.bn2"],
    "ResNet50": ["layer1.2.bn3", "layer2.3.bn3", "layer3.5.bn3", "layer4.2.bn3"],
    "wrn_40_2": ["block2.layer.0.bn1", "block3.layer.0.bn1", "bn1"],
    "vgg8": ["block1.1", "block2.1", "block3.1", "block4.1"],
    "vgg13": ["block1.4", "block2.4", "block3.4", "block4.4"],
    "MobileNetV2": ["blocks.1.1.conv.7", "blocks.2.2.conv.7", "blocks.4.2.conv.7", "blocks.6.0.conv.7"],
    "ShuffleV1": [],
    "ShuffleV2": [],
}


@pytest.mark.parametrize("name", STAGE_NORMS)
def test_stage_norms_are_the_benchmarks(name: str) -> None:
    network = meta_model(name)
    paths = {norm: path for path, norm in network.named_modules()}
    assert [paths[norm] for norm in network.stage_norms.values()] == STAGE_NORMS[name]
    assert tuple(network.stage_norms) == network.feature_names[1:-1][: len(STAGE_NORMS[name])]


@pytest.mark.parametrize("name", model_names())
def test_a_stages_norm_has_the_channels_of_its_preactivation(name: str) -> None:
    network = meta_model(name)
    seen = network.represent(torch.empty(1, 3, 32, 32, device="meta"), network.extra_names)
    for stage, norm in network.stage_norms.items():
        assert norm.num_features == seen.features[f"{stage}.pre"].shape[1]


@pytest.mark.parametrize("name", ["resnet8", "wrn_16_1", "vgg8", "MobileNetV2"])
def test_a_stages_norm_makes_its_preactivation(name: str) -> None:
    """A larger shift of the norm is a larger pre-activation, by the same amount, and of no other stage before it."""
    network, images = create_model(name, num_classes=2, seed=2).eval(), formula_images(2, 32).float()
    with torch.no_grad():
        before = network.represent(images, network.extra_names)
        for stage, norm in network.stage_norms.items():
            norm.bias += 0.5
            after = network.represent(images, network.extra_names)
            torch.testing.assert_close(after.features[f"{stage}.pre"], before.features[f"{stage}.pre"] + 0.5)
            norm.bias -= 0.5


def test_map_reaches_every_tensor_and_keeps_names() -> None:
    network, images = meta_model("resnet8", 2), torch.empty(3, 3, 32, 32, device="meta")
    seen = network.represent(images, network.extra_names)
    first = seen.map(lambda tensor: tensor[:1])
    assert first.logits.shape == (1, 2)
    assert tuple(first.features) == tuple(seen.features)
    assert all(len(tensor) == 1 for tensor in first.features.values())


def test_only_keeps_the_named_features_in_the_order_of_the_names() -> None:
    seen = meta_model("resnet8", 2).represent(torch.empty(3, 3, 32, 32, device="meta"), ["last"])
    some = seen.only(["last", "stem"])
    assert some.logits is seen.logits
    assert list(some.features.items()) == [(name, seen.features[name]) for name in ("last", "stem")]
    assert seen.only(()).features == {}
    with pytest.raises(KeyError):
        seen.only(["layer9"])


@pytest.mark.parametrize("name", ["resnet20", "wrn_16_2", "vgg8", "MobileNetV2"])
def test_convolutions_start_at_he_fan_out(name: str) -> None:
    network = create_model(name, num_classes=100, seed=4)
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 4000:
            fan_out = module.out_channels * module.kernel_size[0] * module.kernel_size[1]
            assert module.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.05)
            assert module.bias is None or not module.bias.any()


@pytest.mark.parametrize(
    ("name", "std", "zero_bias"),
    [("vgg8", 0.01, True), ("MobileNetV2", 0.01, True), ("wrn_16_2", (1 / 128 / 3) ** 0.5, True),
     ("resnet8x4", (1 / 256 / 3) ** 0.5, False), ("ShuffleV1", (1 / 960 / 3) ** 0.5, False)],
)  # fmt: skip
def test_heads_start_as_in_the_benchmark(name: str, std: float, zero_bias: bool) -> None:
    # torch's own Linear is uniform within 1 / sqrt(fan_in): standard deviation 1 / sqrt(3 fan_in).
    head = create_model(name, num_classes=100, seed=5).head
    assert head.weight.std().item() == pytest.approx(std, rel=0.03)
    assert head.bias.any().item() is not zero_bias


def test_shufflenet_starts_at_torchs_default() -> None:
    weight = create_model("ShuffleV2", num_classes=10, seed=6).get_parameter("conv2.weight")
    assert weight.std().item() == pytest.approx((1 / 464 / 3) ** 0.5, rel=0.01)
