"""The zoo by name: from the table of `models.names` to networks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import torch

from ground.errors import InvalidInput
from ground.layers import LOGITS
from ground.user_code import UserCode
from models.mobilenet import MobileNetV2
from models.names import NETWORKS, canonical_name
from models.network import Network
from models.origins import Asked, open_untrained
from models.resnet import ResNet, ResNet50
from models.shufflenet import ShuffleV1, ShuffleV2
from models.vgg import VGG
from models.wide_resnet import WideResNet

_CLASSES: dict[str, Callable[..., Network]] = {
    kind.__name__: kind for kind in (ResNet, ResNet50, WideResNet, VGG, MobileNetV2, ShuffleV1, ShuffleV2)
}


def create_model(
    name: str,
    num_classes: int,
    seed: int | None = None,
    image_size: int = 32,
    *,
    code: UserCode = UserCode.REFUSED,
    further: Sequence[str] = (),
) -> Network:
    """A freshly initialised network.

    Args:
        name: in any spelling.
        num_classes: K, at least 1.
        seed: of the initialisation, which then leaves the global generator alone; None draws from that.
        image_size: H and W of its input; the zoo's networks take any.
        code: what is done with a network that is code from outside this program.
        further: layers of a network from elsewhere to be read beside its own choice.

    Raises:
        UnknownName: there is no such network, or it has no such layer.
        InvalidInput: its library is not installed, it is code that was not allowed, or it does not take images of this
            size.
    """
    if num_classes < 1:
        raise InvalidInput(f"a network needs at least 1 class, got {num_classes}")
    name = canonical_name(name)
    asked = Asked(name=name.partition(":")[2], image_size=image_size, code=code)
    if seed is None:
        return _make(name, num_classes, asked, further)
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed: that would reseed the accelerators' generators too.
        torch.default_generator.manual_seed(seed)
        return _make(name, num_classes, asked, further)


def _make(name: str, num_classes: int, asked: Asked, further: Sequence[str]) -> Network:
    if name not in NETWORKS:
        return open_untrained(name, num_classes, asked, further)
    kind, arguments = NETWORKS[name]
    return _CLASSES[kind](*arguments, num_classes=num_classes)


@dataclass(frozen=True, slots=True)
class NetworkShape:
    """What a network of the zoo can give, without one.

    Args:
        outputs: "logits", where there are classes, and every layer, in order -> shape of one image's.
        num_bytes: of its weights and buffers.
    """

    outputs: Mapping[str, tuple[int, ...]]
    num_bytes: int

    @property
    def layers(self) -> tuple[str, ...]:
        """See `Network.layers`."""
        return tuple(name for name in self.outputs if name != LOGITS)


def shape_of(network: Network, image_size: int) -> NetworkShape:
    """Shapes of what a network in evaluation mode says of images of a size, found with a black one."""
    device = next((tensor.device for tensor in network.state_dict().values()), torch.device("cpu"))
    with torch.inference_mode():
        said = network.represent(torch.zeros(1, 3, image_size, image_size, device=device), network.extra_names)
    shapes = {LOGITS: said.logits.shape} if network.num_classes else {}
    shapes |= {layer: tensor.shape for layer, tensor in said.features.items()}
    return NetworkShape(
        outputs={output: tuple(shape[1:]) for output, shape in shapes.items()},
        num_bytes=sum(tensor.numel() * tensor.element_size() for tensor in network.state_dict().values()),
    )


@cache
def network_shape(
    name: str, num_classes: int = 2, image_size: int = 32, code: UserCode = UserCode.REFUSED
) -> NetworkShape:
    """Shapes of what a network says of images of a size; the caller's random numbers stay as they are.

    Raises:
        UnknownName: there is no such network.
        InvalidInput: see `create_model`.
    """
    # Not on the meta device: torch then imports its compiler, which takes longer than to make the largest network.
    return shape_of(create_model(name, num_classes, 0, image_size, code=code).eval(), image_size)
