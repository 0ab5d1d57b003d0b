"""The user's own networks: python:package.module:factory, which makes a `torch.nn.Module`.

A factory takes what it names of `num_classes` and `image_size`. One that does not take `num_classes` makes a network of
its own classes. A factory may say how its network is shown images, by an attribute `preprocessing`: a dict with keys of
timm's data configs: input_size, crop_pct, interpolation, mean and std; and the names of its classes, by `classes`.
"""

from __future__ import annotations

import inspect
import logging
import math
from typing import Any

from PIL import Image
from torch import nn

from ground.errors import InvalidInput
from ground.geometry import Normalisation
from ground.terminal import plain
from ground.user_code import import_user_code
from models.checkpoint import tensors_digest
from models.origins.contract import Asked, Preprocessing

_IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225), "interpolation": "bilinear", "crop_pct": 1.0}
_USED_AS = "they are used as float32"

log = logging.getLogger(__name__)


class Python:
    """See `models.origins.contract.Origin`."""

    package = extra = None

    def check(self, name: str) -> None:
        """See `Origin.check`; whether there is such a factory is known when it may be imported."""
        module, colon, factory = name.partition(":")
        if not (module and colon and factory):
            raise InvalidInput(f"python:{name} names no factory; give it as python:package.module:factory")

    def preprocessing(self, asked: Asked) -> Preprocessing | None:
        """See `Origin.preprocessing`: the attribute `preprocessing` of the factory."""
        factory = _factory(asked)
        said = getattr(factory, "preprocessing", None)
        return None if said is None else _preprocessing(asked.name, said)

    def class_names(self, asked: Asked) -> tuple[str, ...] | None:
        """See `Origin.class_names`."""
        said = getattr(_factory(asked), "classes", None)
        if not isinstance(said, tuple | list | None):
            raise InvalidInput(f"python:{asked.name} says that its classes are {said!r}; give a list of their names")
        return None if said is None else tuple(map(str, said))

    def untrained(self, asked: Asked, num_classes: int) -> nn.Module:
        """See `Origin.untrained`."""
        return _made(asked, num_classes)

    def trained(self, asked: Asked) -> nn.Module:
        """See `Origin.trained`: a factory that takes no number of classes has a network of its own."""
        if "num_classes" in _taken(asked, _factory(asked)):
            raise InvalidInput(
                f"python:{asked.name} makes a network of any number of classes, which is not trained; give --weights "
                "FILE, or a factory without num_classes that loads them"
            )
        module = _made(asked, None)
        if tensors_digest(module.state_dict()) != tensors_digest(_made(asked, None).state_dict()):
            raise InvalidInput(
                f"python:{asked.name} makes other weights each time, so no later build could go on with its answers; "
                "let it load weights, or seed it"
            )
        return module


def _factory(asked: Asked) -> Any:
    return import_user_code(f"the network python:{asked.name}", asked.name, asked.code)


def _taken(asked: Asked, factory: Any) -> set[str]:
    try:
        return {*inspect.signature(factory).parameters}
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"python:{asked.name} is no factory ({error}); give a function or a class") from error


def _made(asked: Asked, num_classes: int | None) -> nn.Module:
    factory = _factory(asked)
    known = {"num_classes": num_classes, "image_size": asked.image_size}
    given = {name: value for name, value in known.items() if name in _taken(asked, factory)}
    try:
        module = factory(**given)
    except (Exception, SystemExit) as error:
        # Code that is not ours may fail in any way, and may not end the command as if all were done.
        raise InvalidInput(
            f"python:{asked.name} failed when it was called with {given} ({type(error).__name__}: {error}); mend it, "
            "or give another network"
        ) from error
    if not isinstance(module, nn.Module):
        raise InvalidInput(f"python:{asked.name} made a {type(module).__name__}; it has to make a torch.nn.Module")
    kept_as = {str(part.dtype).removeprefix("torch.") for part in module.parameters() if part.is_floating_point()}
    if other := kept_as - {"float32"}:
        log.info("%s", plain(f"python:{asked.name} keeps its weights as {' and '.join(sorted(other))}; {_USED_AS}"))
    # What it is given is float32.
    return module.float()


def _preprocessing(name: str, said: Any) -> Preprocessing:
    try:
        config = {**_IMAGENET, **said}
        size = config["input_size"]
        if isinstance(size, (tuple, list)) and len({*size[-2:]}) > 1:
            raise ValueError("its input is no square")
        side = int(size[-1] if isinstance(size, (tuple, list)) else size)
        if str(config["interpolation"]).upper() not in Image.Resampling.__members__:
            raise ValueError(f"no interpolation of Pillow is called {config['interpolation']}")
        mean, std = (tuple(float(value) for value in config[key]) for key in ("mean", "std"))
        return Preprocessing(
            resize_size=math.floor(side / float(config["crop_pct"])),
            input_size=side,
            interpolation=str(config["interpolation"]),
            normalisation=Normalisation(mean=mean, std=std),  # type: ignore[arg-type]
        )
    except (TypeError, ValueError, KeyError, ZeroDivisionError, OverflowError, IndexError) as error:
        raise InvalidInput(
            f"python:{name} says of its images {said!r}, which cannot be ({error}); give input_size, and as needed "
            "crop_pct, interpolation, mean and std"
        ) from error


ORIGIN = Python()
