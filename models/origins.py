"""Networks of other libraries, by ORIGIN:NAME; a library is loaded when one of its networks is asked for."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from ground.errors import InvalidInput, UnknownName
from ground.geometry import INTERPOLATIONS, Normalisation
from models.module_network import ModuleNetwork

_WITH_AUXILIARY = ("googlenet", "inception_v3")


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """How a network of another library is shown an image: resized, its centre cropped, normalised.

    Args:
        resize_size: the image's shorter side, in pixels.
        input_size: side of the central square.
        interpolation: of the resizing.
    """

    resize_size: int
    input_size: int
    interpolation: str
    normalisation: Normalisation


@dataclass(frozen=True, slots=True)
class Origin:
    """A library of networks.

    Args:
        names: of all its classifiers.
        make: (name, classes, side of the input in pixels) -> an untrained one.
        preprocessing: name -> how its published weights are shown images.
        extra: what installs the library, where this package does not.
    """

    names: Callable[[], Sequence[str]]
    make: Callable[[str, int, int], nn.Module]
    preprocessing: Callable[[str], Preprocessing]
    extra: str | None = None


def open_origin(name: str, num_classes: int, image_size: int) -> ModuleNetwork:
    """An untrained network of another library.

    Args:
        name: ORIGIN:NAME.

    Raises:
        UnknownName: the library has no such network.
        InvalidInput: the library is not installed, or the network does not take images of this size.
    """
    library, own = _find(name)
    try:
        return ModuleNetwork(library.make(own, num_classes, image_size), image_size)
    except InvalidInput as error:
        raise InvalidInput(f"{name}: {error}") from error


def preprocessing_of(name: str) -> Preprocessing | None:
    """How a network's library shows it images; None for the zoo, which is shown them as its data set says.

    Raises:
        UnknownName, InvalidInput: as `open_origin`.
    """
    if ":" not in name:
        return None
    library, own = _find(name)
    found = library.preprocessing(own)
    # Of a few networks that were published with another filter; one of those that are offered comes next to it.
    known = found.interpolation if found.interpolation in INTERPOLATIONS else "bicubic"
    return replace(found, interpolation=known)


def _find(name: str) -> tuple[Origin, str]:
    """The library of ORIGIN:NAME, which has such a network, and its name there."""
    origin, _, own = name.partition(":")
    library = LIBRARIES[origin]
    try:
        names = library.names()
    except ImportError as error:
        raise InvalidInput(
            f"{name} needs the package {error.name}; install it with: pip install 'teacher-cache[{library.extra}]'"
        ) from error
    if own not in names:
        raise UnknownName(f"network of {origin}", own, names)
    return library, own


def _torchvision_names() -> Sequence[str]:
    from torchvision import models

    names: list[str] = models.list_models(module=models)
    return names


def _make_torchvision(name: str, num_classes: int, image_size: int) -> nn.Module:
    from torchvision import models

    # These two would warn that their initialisation is slow, and have classifiers beside the last one, which their own
    # recipe trains: they add no answer, and need images of one size.
    plain: dict[str, Any] = {"init_weights": True, "aux_logits": False} if name in _WITH_AUXILIARY else {}
    module: nn.Module = models.get_model(name, weights=None, num_classes=num_classes, **plain)
    return module


def _torchvision_preprocessing(name: str) -> Preprocessing:
    from torchvision import models

    shown = next(iter(models.get_model_weights(name))).transforms()
    return Preprocessing(
        resize_size=shown.resize_size[0],
        input_size=shown.crop_size[0],
        interpolation=shown.interpolation.value,
        normalisation=Normalisation(mean=tuple(shown.mean), std=tuple(shown.std)),
    )


def _timm_names() -> Sequence[str]:
    import timm

    names: list[str] = timm.list_models()
    return names


def _make_timm(name: str, num_classes: int, image_size: int) -> nn.Module:
    import timm

    config = timm.get_pretrained_cfg(name)
    # A network with learned positions is made for one size.
    size: dict[str, Any] = {"img_size": image_size} if config is not None and config.fixed_input_size else {}
    module: nn.Module = timm.create_model(name, pretrained=False, num_classes=num_classes, **size)
    return module


def _timm_preprocessing(name: str) -> Preprocessing:
    import timm
    from timm.data.config import resolve_data_config

    config = timm.get_pretrained_cfg(name)
    shown = resolve_data_config(pretrained_cfg=config.to_dict() if config is not None else {})
    size = shown["input_size"][-1]
    return Preprocessing(
        resize_size=math.floor(size / shown["crop_pct"]),
        input_size=size,
        interpolation=shown["interpolation"],
        normalisation=Normalisation(mean=tuple(shown["mean"]), std=tuple(shown["std"])),
    )


LIBRARIES: Mapping[str, Origin] = {
    "timm": Origin(_timm_names, _make_timm, _timm_preprocessing, "timm"),
    "torchvision": Origin(_torchvision_names, _make_torchvision, _torchvision_preprocessing),
}
