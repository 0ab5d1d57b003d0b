"""What a user can name: the networks of the zoo, after the CRD benchmark, and number formats.

Nothing here needs torch, so that a command which only reads names starts at once; `models.registry` makes the networks.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from ground.errors import UnknownName
from models.remote_names import REMOTE_ORIGINS, is_remote, remote_identity, require_remote

# Of trainings, and of a teacher's calls.
PRECISIONS = ("fp32", "bf16")
CALL_PRECISIONS = (*PRECISIONS, "fp16")
# Where networks called ORIGIN:NAME come from -> the module of `models.origins` that knows them.
ORIGINS = {
    "export": "export_file",
    "hf": "huggingface",
    "onnx": "onnx_file",
    "python": "python_networks",
    "timm": "timm_networks",
    "torchvision": "torchvision_networks",
}
# Of these NAME is a file that holds network and weights.
_FILES = ("onnx", "export")
# Of these it is a path, or ends as one.
_PATHS = ("hf", *_FILES)
# And of these an address of code.
_CODE = ("python",)
_GROUP = "ckd.teachers"

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


@cache
def registered_origins() -> Mapping[str, EntryPoint]:
    """Origins that installed packages add, by name."""
    return {entry.name: entry for entry in entry_points(group=_GROUP)}


def canonical_name(name: str) -> str:
    """The benchmark's spelling: case, `_` and `-` do not matter, so wrn40_2 is wrn_40_2.

    ORIGIN:NAME stays as it is; whether that origin has such a network is asked when it is made.

    Raises:
        UnknownName: there is no such network, or origin; the message lists the nearest.
        InvalidInput: it answers over a network, and the name leads to no server.
    """
    origin, colon, _ = name.partition(":")
    if colon:
        known = {*ORIGINS, *REMOTE_ORIGINS, *registered_origins()}
        if origin not in known:
            raise UnknownName("origin of networks", origin, known)
        if origin in REMOTE_ORIGINS:
            require_remote(name)
        return name
    if name in NETWORKS:
        return name
    plain = {_plain(known): known for known in NETWORKS}
    if _plain(name) in plain:
        return plain[_plain(name)]
    raise UnknownName("network", name, NETWORKS, _plain)


def identity_name(name: str) -> str:
    """What stores, ledgers and files know a network by: the canonical name, without any path of this machine.

    Of onnx:/home/me/teacher.onnx it is onnx:teacher.onnx, of python:package.module:factory
    python:package.module.factory, of v2:http://host:8080/model v2:host-8080-model; which one it is in truth, its
    fingerprint says.

    Raises:
        UnknownName: see `canonical_name`.
    """
    origin, colon, own = canonical_name(name).partition(":")
    if not colon:
        return origin
    if is_remote(name):
        return remote_identity(name)
    if origin in _PATHS:
        file, key = locate(own)
        own = file.name if key is None else f"{file.name}#{key}"
    else:
        own = own.replace(":", ".")
    return f"{origin}:{re.sub(r'[^A-Za-z0-9_.-]+', '-', own)}"


def absolute_name(name: str) -> str:
    """The same network by a name that leads to it from any working directory."""
    origin, colon, own = name.partition(":")
    file, key = locate(own)
    if origin not in _PATHS or not file.exists():
        return name
    return f"{origin}{colon}{file.absolute()}{'' if key is None else f'#{key}'}"


def locate(path: str | Path) -> tuple[Path, str | None]:
    """The file that `FILE` or `FILE#key` means, and the key; a file whose own name has a # is that file."""
    text = str(path)
    marks = [place for place, letter in enumerate(text) if letter == "#"]
    if not marks or Path(path).exists():
        return Path(path), None
    # From the right, so that of a file's name as much is taken as there is.
    place = next((place for place in reversed(marks) if Path(text[:place]).is_file()), marks[-1])
    return Path(text[:place]), text[place + 1 :]


def is_file(name: str) -> bool:
    """Whether a network comes in one file with its weights."""
    return name.partition(":")[0] in _FILES


def is_code(name: str) -> bool:
    """Whether making a network runs code from outside this program."""
    return name.partition(":")[0] in (*_CODE, "export")


def is_path(name: str) -> bool:
    """Whether a network is called by the file or folder that its weights are in, or by where such a folder is kept."""
    return name.partition(":")[0] in _PATHS


def is_placed(name: str) -> bool:
    """Whether only the user can say where a teacher that a store knows by this name is: in a file, in his code, or
    behind a network, where nobody is sent images, let alone a key, because a manifest says so.
    """
    return name.partition(":")[0] in (*_PATHS, *_CODE, *REMOTE_ORIGINS)


def _plain(name: str) -> str:
    return name.lower().replace("_", "").replace("-", "")
