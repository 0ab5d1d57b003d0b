"""timm's networks: NAME, or NAME.TAG for one of several published weights, as resnet50.a1_in1k."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import Any

from torch import nn

from ground.errors import UnknownName
from ground.geometry import Normalisation
from models.origins.contract import Asked, Preprocessing
from models.origins.published import published


class Timm:
    """See `models.origins.contract.Origin`; without a tag, timm's default weights are meant."""

    package = extra = "timm"

    def check(self, name: str) -> None:
        """See `Origin.check`."""
        own, _, tag = name.partition(".")
        if own not in _names():
            raise UnknownName("network of timm", own, _names())
        if tag and name not in _tagged():
            raise UnknownName(f"weights of timm:{own}", name, [known for known in _tagged() if known.startswith(own)])

    def preprocessing(self, asked: Asked) -> Preprocessing:
        """See `Origin.preprocessing`."""
        from timm.data.config import resolve_data_config

        config = _config(asked.name)
        shown = resolve_data_config(pretrained_cfg=config.to_dict() if config is not None else {})
        size = shown["input_size"][-1]
        is_other = shown["crop_mode"] == "border" or len({*shown["input_size"][1:]}) > 1
        return Preprocessing(
            resize_size=math.floor(size / shown["crop_pct"]),
            input_size=size,
            interpolation=shown["interpolation"],
            normalisation=Normalisation(mean=tuple(shown["mean"]), std=tuple(shown["std"])),
            shape="squashed" if shown["crop_mode"] == "squash" else "centre",
            remark=f"timm:{asked.name} was published with images that are no squares, and is shown squares of them"
            if is_other
            else None,
        )

    def class_names(self, asked: Asked) -> tuple[str, ...] | None:
        """See `Origin.class_names`: WordNet ids, as ImageNet's folders are called; its words are not unique."""
        from timm.data.imagenet_info import ImageNetInfo, infer_imagenet_subset

        config = _config(asked.name)
        subset = None if config is None else infer_imagenet_subset(config.to_dict())
        return None if subset is None else tuple(ImageNetInfo(subset).label_names())

    def untrained(self, asked: Asked, num_classes: int) -> nn.Module:
        """See `Origin.untrained`."""
        import timm

        module: nn.Module = timm.create_model(
            asked.name, pretrained=False, num_classes=num_classes, **_size(asked.name, asked.image_size)
        )
        return module

    def trained(self, asked: Asked) -> nn.Module:
        """See `Origin.trained`."""
        import timm

        size = _size(asked.name, asked.image_size)
        module: nn.Module = published(
            f"timm:{asked.name}", lambda: timm.create_model(asked.name, pretrained=True, **size)
        )
        if not getattr(module, "num_classes", 1):
            # It answers with the vector that it pools.
            module.classifies = False  # type: ignore[assignment]
        return module


@cache
def _names() -> Sequence[str]:
    import timm

    names: list[str] = timm.list_models()
    return names


@cache
def _tagged() -> Sequence[str]:
    import timm

    names: list[str] = timm.list_pretrained()
    return names


def _config(name: str) -> Any:
    import timm

    return timm.get_pretrained_cfg(name)


def _size(name: str, image_size: int) -> dict[str, Any]:
    """A network with learned positions is made for one size."""
    config = _config(name)
    return {"img_size": image_size} if config is not None and config.fixed_input_size else {}


ORIGIN = Timm()
