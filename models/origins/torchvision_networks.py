"""torchvision's classifiers: NAME, or NAME.TAG for one of several published weights, as resnet50.IMAGENET1K_V2."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from ground.errors import UnknownName
from ground.geometry import Normalisation
from models.origins.contract import Asked, Preprocessing
from models.origins.published import published

_WITH_AUXILIARY = ("googlenet", "inception_v3")


class Torchvision:
    """See `models.origins.contract.Origin`; without a tag, the weights that were published first are meant."""

    package, extra = "torchvision", None

    def check(self, name: str) -> None:
        """See `Origin.check`."""
        own, _, tag = name.partition(".")
        if own not in _names():
            raise UnknownName("network of torchvision", own, _names())
        if tag:
            _weights(name)

    def preprocessing(self, asked: Asked) -> Preprocessing:
        """See `Origin.preprocessing`."""
        shown = _weights(asked.name).transforms()
        return Preprocessing(
            resize_size=shown.resize_size[0],
            input_size=shown.crop_size[0],
            interpolation=shown.interpolation.value,
            normalisation=Normalisation(mean=tuple(shown.mean), std=tuple(shown.std)),
        )

    def class_names(self, asked: Asked) -> tuple[str, ...]:
        """See `Origin.class_names`."""
        return tuple(_weights(asked.name).meta["categories"])

    def untrained(self, asked: Asked, num_classes: int) -> nn.Module:
        """See `Origin.untrained`."""
        return _made(asked.name.partition(".")[0], num_classes)

    def trained(self, asked: Asked) -> nn.Module:
        """See `Origin.trained`."""
        weights = _weights(asked.name)
        module = _made(asked.name.partition(".")[0], len(weights.meta["categories"]))
        state = published(f"torchvision:{asked.name}", lambda: weights.get_state_dict(progress=False, check_hash=True))
        # Classifiers beside the last one, which are not made.
        module.load_state_dict({key: value for key, value in state.items() if not key.startswith(("aux", "AuxLogits"))})
        return module


def _names() -> Sequence[str]:
    from torchvision import models

    names: list[str] = models.list_models(module=models)
    return names


def _made(name: str, num_classes: int) -> nn.Module:
    from torchvision import models

    # These two would warn that their initialisation is slow, and have classifiers beside the last one, which their own
    # recipe trains: they add no answer, and need images of one size.
    plain: dict[str, Any] = {"init_weights": True, "aux_logits": False} if name in _WITH_AUXILIARY else {}
    module: nn.Module = models.get_model(name, weights=None, num_classes=num_classes, **plain)
    return module


def _weights(name: str) -> Any:
    from torchvision import models

    own, _, tag = name.partition(".")
    known = {found.name: found for found in models.get_model_weights(own)}
    if tag and tag not in known:
        raise UnknownName(f"weights of torchvision:{own}", tag, known)
    return known[tag] if tag else next(iter(known.values()))


ORIGIN = Torchvision()
