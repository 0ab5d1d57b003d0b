"""What an origin is: a place that networks come from, by ORIGIN:NAME."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import nn

from ground.geometry import Normalisation
from ground.user_code import UserCode


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """How a network of another library is shown an image: resized, its centre cropped, normalised.

    Args:
        resize_size: the image's shorter side, or both sides, in pixels.
        input_size: side of the central square.
        interpolation: of the resizing.
        normalisation: None is that of the data set.
        shape: of `ground.geometry.FIT_SHAPES`, how a square is made of an image.
        remark: what a user has to know of it, as a sentence without its full stop; None for nothing.
    """

    resize_size: int
    input_size: int
    interpolation: str
    normalisation: Normalisation | None
    shape: str = "centre"
    remark: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What of an origin is asked for.

    Args:
        name: without the origin: of a library's network, of a file, or of a factory.
        image_size: H and W of the network's input; 0 where that is not known yet.
        code: what is done with networks that are code from outside this program.
        prompts: lines "class,prompt", where the answers are likenesses to texts.
    """

    name: str
    image_size: int
    code: UserCode = UserCode.REFUSED
    prompts: Sequence[tuple[str, str]] | None = None


class Origin(Protocol):
    """Where networks come from.

    Attributes:
        package: what has to be installed.
        extra: of this package, that installs it; None where it is always there.
    """

    @property
    def package(self) -> str | None:
        """What has to be installed."""

    @property
    def extra(self) -> str | None:
        """Of this package, that installs it; None where it is always there."""

    def check(self, name: str) -> None:
        """Raise `UnknownName` or `InvalidInput` for a network that it does not have; cheap."""

    def preprocessing(self, asked: Asked) -> Preprocessing | None:
        """How the published weights are shown images; None where that is not known."""

    def class_names(self, asked: Asked) -> tuple[str, ...] | None:
        """Of the published weights; None where they are not known."""

    def untrained(self, asked: Asked, num_classes: int) -> nn.Module:
        """A new network of this many classes; raises `InvalidInput` where there are only trained ones."""

    def trained(self, asked: Asked) -> nn.Module:
        """The network with its published weights and their classes; raises `InvalidInput` where they cannot be had."""
