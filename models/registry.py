"""The zoo by name: from the table of `models.names` to networks."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ground.errors import InvalidInput
from models.mobilenet import MobileNetV2
from models.names import NETWORKS, canonical_name
from models.network import Network
from models.resnet import ResNet, ResNet50
from models.shufflenet import ShuffleV1, ShuffleV2
from models.vgg import VGG
from models.wide_resnet import WideResNet

_CLASSES: dict[str, Callable[..., Network]] = {
    kind.__name__: kind for kind in (ResNet, ResNet50, WideResNet, VGG, MobileNetV2, ShuffleV1, ShuffleV2)
}


def create_model(name: str, num_classes: int, seed: int | None = None) -> Network:
    """A freshly initialised network.

    Args:
        name: in any spelling.
        num_classes: K, at least 1.
        seed: of the initialisation, which then leaves the global generator alone; None draws from that.
    """
    if num_classes < 1:
        raise InvalidInput(f"a network needs at least 1 class, got {num_classes}")
    kind, arguments = NETWORKS[canonical_name(name)]
    if seed is None:
        return _CLASSES[kind](*arguments, num_classes=num_classes)
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed: that would reseed the accelerators' generators too.
        torch.default_generator.manual_seed(seed)
        return _CLASSES[kind](*arguments, num_classes=num_classes)
