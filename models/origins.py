"""Networks of other libraries, by ORIGIN:NAME; a library is loaded when one of its networks is asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from ground.errors import InvalidInput, UnknownName
from models.module_network import ModuleNetwork


@dataclass(frozen=True, slots=True)
class Origin:
    """A library of networks.

    Args:
        names: of all its classifiers.
        make: (name, classes, side of the input in pixels) -> an untrained one.
        extra: what installs the library, where this package does not.
    """

    names: Callable[[], Sequence[str]]
    make: Callable[[str, int, int], nn.Module]
    extra: str | None = None


def open_origin(name: str, num_classes: int, image_size: int) -> ModuleNetwork:
    """An untrained network of another library.

    Args:
        name: ORIGIN:NAME.

    Raises:
        UnknownName: the library has no such network.
        InvalidInput: the library is not installed, or the network does not take images of this size.
    """
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
    try:
        return ModuleNetwork(library.make(own, num_classes, image_size), image_size)
    except InvalidInput as error:
        raise InvalidInput(f"{name}: {error}") from error


def _torchvision_names() -> Sequence[str]:
    from torchvision import models

    names: list[str] = models.list_models(module=models)
    return names


def _make_torchvision(name: str, num_classes: int, image_size: int) -> nn.Module:
    from torchvision import models

    # These two would warn that their initialisation is slow.
    quiet: dict[str, Any] = {"init_weights": True} if name in ("googlenet", "inception_v3") else {}
    module: nn.Module = models.get_model(name, weights=None, num_classes=num_classes, **quiet)
    return module


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


LIBRARIES: Mapping[str, Origin] = {
    "timm": Origin(_timm_names, _make_timm, "timm"),
    "torchvision": Origin(_torchvision_names, _make_torchvision),
}
