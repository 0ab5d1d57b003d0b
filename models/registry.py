"""The zoo by name: a table from the CRD benchmark's names to constructors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial

import torch

from ground.errors import InvalidInput, UnknownName
from ground.layers import LOGITS
from models.mobilenet import MobileNetV2
from models.network import Network
from models.resnet import ResNet, ResNet50
from models.shufflenet import ShuffleV1, ShuffleV2
from models.vgg import VGG
from models.wide_resnet import WideResNet

_NARROW, _WIDE = (16, 16, 32, 64), (32, 64, 128, 256)

_NETWORKS: dict[str, Callable[..., Network]] = {
    **{f"resnet{depth}": partial(ResNet, depth, _NARROW) for depth in (8, 14, 20, 32, 44, 56, 110)},
    **{f"resnet{depth}x4": partial(ResNet, depth, _WIDE) for depth in (8, 32)},
    "ResNet50": ResNet50,
    **{f"wrn_{depth}_{factor}": partial(WideResNet, depth, factor) for depth in (16, 40) for factor in (1, 2)},
    "vgg8": partial(VGG, (1, 1, 1, 1, 1)),
    "vgg11": partial(VGG, (1, 1, 2, 2, 2)),
    "vgg13": partial(VGG, (2, 2, 2, 2, 2)),
    "vgg16": partial(VGG, (2, 2, 3, 3, 3)),
    "vgg19": partial(VGG, (2, 2, 4, 4, 4)),
    "MobileNetV2": MobileNetV2,
    "ShuffleV1": ShuffleV1,
    "ShuffleV2": ShuffleV2,
}


def model_names() -> tuple[str, ...]:
    """Every network, in the benchmark's spelling."""
    return tuple(_NETWORKS)


def canonical_name(name: str) -> str:
    """The benchmark's spelling: case, `_` and `-` do not matter, so wrn40_2 is wrn_40_2.

    Raises:
        UnknownName: there is no such network; the message lists the nearest.
    """
    plain = {_plain(known): known for known in _NETWORKS}
    if _plain(name) in plain:
        return plain[_plain(name)]
    raise UnknownName("network", name, _NETWORKS, _plain)


def create_model(name: str, num_classes: int, seed: int | None = None) -> Network:
    """A freshly initialised network.

    Args:
        name: in any spelling.
        num_classes: K, at least 1.
        seed: of the initialisation, which then leaves the global generator alone; None draws from that.
    """
    if num_classes < 1:
        raise InvalidInput(f"a network needs at least 1 class, got {num_classes}")
    make = _NETWORKS[canonical_name(name)]
    if seed is None:
        return make(num_classes=num_classes)
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed: that would reseed the accelerators' generators too.
        torch.default_generator.manual_seed(seed)
        return make(num_classes=num_classes)


@dataclass(frozen=True, slots=True)
class NetworkShape:
    """What a network of the zoo can give, without one.

    Args:
        outputs: "logits" and every layer, in order -> shape of one image's.
        num_bytes: of its weights and buffers.
    """

    outputs: Mapping[str, tuple[int, ...]]
    num_bytes: int

    @property
    def layers(self) -> tuple[str, ...]:
        """See `Network.layers`."""
        return tuple(name for name in self.outputs if name != LOGITS)


@cache
def network_shape(name: str, num_classes: int = 2, image_size: int = 32) -> NetworkShape:
    """Shapes of what a network says of images of a size; no memory is taken and no random number drawn.

    Raises:
        UnknownName: there is no such network.
    """
    with torch.device("meta"), torch.inference_mode():
        network = create_model(name, num_classes).eval()
        said = network.represent(torch.empty(1, 3, image_size, image_size), network.extra_names)
    shapes = {LOGITS: said.logits.shape} | {layer: tensor.shape for layer, tensor in said.features.items()}
    return NetworkShape(
        outputs={output: tuple(shape[1:]) for output, shape in shapes.items()},
        num_bytes=sum(tensor.numel() * tensor.element_size() for tensor in network.state_dict().values()),
    )


def _plain(name: str) -> str:
    return name.lower().replace("_", "").replace("-", "")
