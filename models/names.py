"""What a user can name: the networks of the zoo, after the CRD benchmark, and number formats.

Nothing here needs torch, so that a command which only reads names starts at once; `models.registry` makes the networks.
"""

from __future__ import annotations

from typing import Any

from ground.errors import UnknownName

# Of trainings, and of a teacher's calls.
PRECISIONS = ("fp32", "bf16")
CALL_PRECISIONS = (*PRECISIONS, "fp16")
# Libraries whose networks are called ORIGIN:NAME.
ORIGINS = ("timm", "torchvision")

_NARROW, _WIDE = (16, 16, 32, 64), (32, 64, 128, 256)

# Name -> class and its arguments.
NETWORKS: dict[str, tuple[str, tuple[Any, ...]]] = {
    **{f"resnet{depth}": ("ResNet", (depth, _NARROW)) for depth in (8, 14, 20, 32, 44, 56, 110)},
    **{f"resnet{depth}x4": ("ResNet", (depth, _WIDE)) for depth in (8, 32)},
    "ResNet50": ("ResNet50", ()),
    **{f"wrn_{depth}_{factor}": ("WideResNet", (depth, factor)) for depth in (16, 40) for factor in (1, 2)},
    "vgg8": ("VGG", ((1, 1, 1, 1, 1),)),
    "vgg11": ("VGG", ((1, 1, 2, 2, 2),)),
    "vgg13": ("VGG", ((2, 2, 2, 2, 2),)),
    "vgg16": ("VGG", ((2, 2, 3, 3, 3),)),
    "vgg19": ("VGG", ((2, 2, 4, 4, 4),)),
    "MobileNetV2": ("MobileNetV2", ()),
    "ShuffleV1": ("ShuffleV1", ()),
    "ShuffleV2": ("ShuffleV2", ()),
}


def model_names() -> tuple[str, ...]:
    """Every network, in the benchmark's spelling."""
    return tuple(NETWORKS)


def canonical_name(name: str) -> str:
    """The benchmark's spelling: case, `_` and `-` do not matter, so wrn40_2 is wrn_40_2.

    ORIGIN:NAME stays as it is; whether that library has such a network is asked when it is made.

    Raises:
        UnknownName: there is no such network, or origin; the message lists the nearest.
    """
    origin, colon, _ = name.partition(":")
    if colon:
        if origin not in ORIGINS:
            raise UnknownName("origin of networks", origin, ORIGINS)
        return name
    plain = {_plain(known): known for known in NETWORKS}
    if _plain(name) in plain:
        return plain[_plain(name)]
    raise UnknownName("network", name, NETWORKS, _plain)


def _plain(name: str) -> str:
    return name.lower().replace("_", "").replace("-", "")
