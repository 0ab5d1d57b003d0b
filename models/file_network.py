"""A network that is a file: a program with its weights in it, which answers with named tensors.

Which of these are the logits, and which are layers, is found by one pass of noise. A program may take a fixed number of
images, or so many at most: larger batches are cut, and smaller ones filled with black images whose answers are dropped.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Protocol, Self

import torch
from torch import Tensor

from ground.documents import shown
from ground.errors import InvalidInput, UnknownName
from ground.layers import LOGITS, is_layer_name
from models.module_network import Layer, as_feature, layer_of_shape
from models.network import Network, require_extras
from models.representation import Representation

_PROBES = 2
_MOST_NAMED = 8
_SUMS_TO_ONE = 1e-3


class Program(Protocol):
    """What a file runs."""

    @property
    def batches(self) -> tuple[int, int | None]:
        """The fewest and the most images that it takes at once; None where there is no most."""

    def run(self, images: Tensor, outputs: Sequence[str] | None) -> Mapping[str, Tensor]:
        """What it says of (B, 3, H, W) float32 images on its device.

        Args:
            outputs: names of those that are needed; None for all.
        """

    def place(self, device: torch.device) -> None:
        """Move it; raises `InvalidInput` where it cannot run there."""


class FileNetwork(Network):
    """A classifier that is a file.

    Args:
        name: ORIGIN:FILE, for messages.
        size: H and W of its input.
        digest: of the content of its file.
        chosen: which output holds the logits; None is the one called logits, or the only one that could.

    Raises:
        InvalidInput: it does not take such images, or does not answer with logits.
        UnknownName: it has no output of this name that could be logits.
    """

    def __init__(self, name: str, program: Program, size: int, digest: str, chosen: str | None = None) -> None:
        super().__init__()
        self._name, self._program, self._size, self._digest = name, program, size, digest
        self._device = torch.device("cpu")
        said = self._said_of_noise()
        self._logits = _logits_among(name, said, chosen)
        self.num_classes = said[self._logits].shape[1]
        # Name of a layer -> of the output that it is, and its shape.
        self._layers = _layers_among(name, said, self._logits)

    @property
    def feature_names(self) -> tuple[str, ...]:
        """None that nobody asks for: what is not kept need not leave the program."""
        return ()

    @property
    def extra_names(self) -> tuple[str, ...]:
        """Its outputs beside the logits, in their order."""
        return tuple(self._layers)

    @property
    def source_digest(self) -> str:
        """See `Network.source_digest`: of the file, and of which output is taken for the logits."""
        return hashlib.sha256(json.dumps([self._digest, self._logits]).encode()).hexdigest()

    def represent(self, images: Tensor, extras: Collection[str] = ()) -> Representation:
        """See `Network.represent`."""
        require_extras(self, extras)
        wanted = {layer: self._layers[layer] for layer in self._layers if layer in extras}
        said = self._run(images, [self._logits, *(output for output, _ in wanted.values())])
        features = {layer: as_feature(said[output], shape) for layer, (output, shape) in wanted.items()}
        return Representation(logits=said[self._logits].float(), features=features)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Follow `Module.to`: what does not run on a device is found out here, and not by the first call."""
        super()._apply(fn, recurse)
        device = fn(torch.empty(0, device=self._device)).device
        if device != self._device:
            self._program.place(device)
            self._device = device
            self._said_of_noise()
        return self

    def _run(self, images: Tensor, outputs: Sequence[str] | None) -> Mapping[str, Tensor]:
        least, most = self._program.batches
        parts = images.split(most) if most is not None and len(images) > most else (images,)
        said = [self._program.run(_filled(part.contiguous(), least), outputs) for part in parts]
        if len(said) == 1 and len(images) >= least:
            return said[0]
        cut = [
            {name: tensor[: len(part)] for name, tensor in one.items()} for one, part in zip(said, parts, strict=True)
        ]
        return {name: torch.cat([one[name] for one in cut]) for name in cut[0]}

    def _said_of_noise(self) -> dict[str, Tensor]:
        """Floating-point outputs that have one row an image."""
        least, most = self._program.batches
        count = max(least, _PROBES if most is None else min(_PROBES, most))
        noise = torch.randn(count, 3, self._size, self._size, generator=torch.Generator().manual_seed(0))
        try:
            with torch.inference_mode():
                said = self._program.run(noise.to(self._device), None)
        except InvalidInput:
            raise
        except Exception as error:
            # Whatever runs it fails in ways of its own.
            raise InvalidInput(
                f"{self._name} does not take {self._size}-pixel images on {self._device} ({first_line(error)}); give "
                "another --input-size or --device, or another file"
            ) from error
        return {
            name: tensor
            for name, tensor in said.items()
            if tensor.is_floating_point() and tensor.ndim > 0 and len(tensor) == count
        }


def first_line(error: Exception) -> str:
    """Of what an error says."""
    return next(iter(str(error).strip().splitlines()), "")[:200] or type(error).__name__


def _filled(images: Tensor, least: int) -> Tensor:
    missing = least - len(images)
    return torch.cat([images, images.new_zeros(missing, *images.shape[1:])]) if missing > 0 else images


def _logits_among(name: str, said: Mapping[str, Tensor], chosen: str | None) -> str:
    vectors = [output for output, tensor in said.items() if tensor.ndim == 2]
    if not vectors:
        raise InvalidInput(f"{name} has no output (images, classes) that could be logits; give a file of a classifier")
    if chosen is not None and chosen not in vectors:
        raise UnknownName(f"output of {name} that could be logits", chosen, vectors)
    if chosen is None and len(vectors) > 1 and LOGITS not in vectors:
        listed = ", ".join(map(shown, vectors[:_MOST_NAMED]))
        raise InvalidInput(
            f"{name} has {len(vectors)} outputs that could be logits ({listed}); say which, as {name}#OUTPUT"
        )
    found = chosen or (LOGITS if LOGITS in vectors else vectors[0])
    values = said[found].float()
    if values.min() >= 0 and (values.sum(dim=1) - 1).abs().max() < _SUMS_TO_ONE:
        raise InvalidInput(
            f"the output {shown(found)} of {name} adds up to 1 for each image: it holds probabilities and not logits; "
            "write the file again without its softmax, or choose another output, as FILE#OUTPUT"
        )
    return found


def _layers_among(name: str, said: Mapping[str, Tensor], logits: str) -> dict[str, tuple[str, Layer]]:
    found: dict[str, tuple[str, Layer]] = {}
    for place, (output, tensor) in enumerate(said.items()):
        layer = None if output == logits else layer_of_shape(_layer_name(output, place), tensor.shape, None)
        if layer is None:
            continue
        if layer.name in found:
            raise InvalidInput(
                f"{name} has two outputs that would both be called {layer.name} ({shown(found[layer.name][0])} and "
                f"{shown(output)}); write the file again with other names"
            )
        found[layer.name] = output, layer
    return found


def _layer_name(output: str, place: int) -> str:
    """An output's own name where a layer may be called so, else what is left of it; /layer1/Relu is layer1.Relu."""
    if is_layer_name(output):
        return output
    joined = ".".join(re.findall(r"[A-Za-z0-9_]+", output))
    return joined if is_layer_name(joined) else f"output_{place}"
