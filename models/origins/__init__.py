"""Networks from elsewhere, by ORIGIN:NAME; a library is loaded when one of its networks is asked for.

One module an origin. An installed package adds its own as an entry point of the group `ckd.teachers`, whose name is the
origin's and whose object is an `Origin`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib import import_module
from typing import TypeVar

from torch import nn

from ground.errors import InvalidInput, UnknownName
from ground.geometry import INTERPOLATIONS, MAX_INPUT_SIZE
from ground.user_code import import_address
from models.module_network import ModuleNetwork
from models.names import ORIGINS, registered_origins
from models.network import Network
from models.origins.contract import Asked, Origin, Preprocessing
from models.remote_names import is_remote

__all__ = ["Asked", "Origin", "Preprocessing", "class_names_of", "open_trained", "open_untrained", "preprocessing_of"]

_Result = TypeVar("_Result")
_NEXT_BEST = "bicubic"
# Of a base image, whose centre the input is.
_MAX_RESIZE = 4 * MAX_INPUT_SIZE
# Of the origins here, those that have networks which compare images with texts.
_PROMPTED = ("hf",)


def open_untrained(name: str, num_classes: int, asked: Asked, further: Sequence[str] = ()) -> Network:
    """A new network.

    Args:
        name: ORIGIN:NAME.
        further: layers to be read beside its own choice.

    Raises:
        UnknownName: the origin has no such network, or the network no such layer.
        InvalidInput: what it needs is not installed, it is code that was not allowed, has only trained networks, or
            the network does not take images of this size.
    """
    return _made(name, lambda origin: origin.untrained(asked, num_classes), asked, further)


def open_trained(name: str, asked: Asked, further: Sequence[str] = ()) -> Network:
    """A network with its published weights; see `open_untrained`, and `InvalidInput` where they cannot be had."""
    scheme = name.partition(":")[0]
    if asked.prompts is not None and scheme in ORIGINS and scheme not in _PROMPTED:
        raise InvalidInput(f"{name} does not compare images with texts; leave out --prompts")
    return _made(name, lambda origin: origin.trained(asked), asked, further)


def preprocessing_of(name: str, asked: Asked | None = None) -> Preprocessing | None:
    """How a network is shown images where it comes from; None for the zoo, which is shown them as its data set says.

    Raises:
        UnknownName, InvalidInput: as `open_untrained`.
    """
    if ":" not in name:
        return None
    found = _within(name, lambda origin: origin.preprocessing(_own(name, asked)))
    if found is None:
        return None
    if not (1 <= found.input_size <= MAX_INPUT_SIZE and 1 <= found.resize_size <= _MAX_RESIZE):
        raise InvalidInput(
            f"{name} is said to be shown {found.input_size} of {found.resize_size} pixels; its input has 1 to "
            f"{MAX_INPUT_SIZE} pixels, of images of at most {_MAX_RESIZE}"
        )
    if found.resize_size < found.input_size:
        remark = (
            f"{name} was published with images of {found.resize_size} pixels on a black square of {found.input_size}, "
            "and is shown them without a border, so its answers differ a little from those it gives in its library"
        )
        found = replace(found, resize_size=found.input_size, remark=remark)
    if found.interpolation in INTERPOLATIONS:
        return found
    # Of a few networks that were published with another filter; this one comes next to most.
    remark = (
        f"{name} was published with images resized by {found.interpolation} interpolation, and is shown them by "
        f"{_NEXT_BEST}, so its answers differ a little from those it gives in its library"
    )
    return replace(found, interpolation=_NEXT_BEST, remark=remark)


def class_names_of(name: str, asked: Asked | None = None) -> tuple[str, ...] | None:
    """Names of the classes of a network's published weights; None where they are not known.

    Raises:
        UnknownName, InvalidInput: as `open_untrained`.
    """
    return None if ":" not in name else _within(name, lambda origin: origin.class_names(_own(name, asked)))


def _own(name: str, asked: Asked | None) -> Asked:
    return Asked(name=name.partition(":")[2], image_size=0) if asked is None else asked


def _made(name: str, make: Callable[[Origin], nn.Module], asked: Asked, further: Sequence[str]) -> Network:
    module = _within(name, make)
    if isinstance(module, Network):
        return module
    try:
        return ModuleNetwork(module, asked.image_size, further, classifies=getattr(module, "classifies", True))
    except UnknownName:
        raise
    except InvalidInput as error:
        raise InvalidInput(f"{name}: {error}") from error


def _within(name: str, what: Callable[[Origin], _Result]) -> _Result:
    """What an origin, which has such a network, does."""
    origin = _origin(name)
    try:
        origin.check(name.partition(":")[2])
        return what(origin)
    except ImportError as error:
        if origin.package is None or (error.name or "").partition(".")[0] != origin.package:
            raise
        raise InvalidInput(
            f"{name} needs the package {origin.package}; install it with: pip install 'teacher-cache[{origin.extra}]'"
        ) from error


def _origin(name: str) -> Origin:
    scheme = name.partition(":")[0]
    if is_remote(name):
        raise InvalidInput(f"{name} answers over a network, so it is a teacher alone; name a network that runs here")
    if scheme in ORIGINS:
        found: Origin = import_module(f"models.origins.{ORIGINS[scheme]}").ORIGIN
        return found
    entry = registered_origins()[scheme]
    made: Origin = import_address(f"the origin {scheme}", entry.value)  # type: ignore[assignment]
    return made
