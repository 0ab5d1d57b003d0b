"""A teacher from the CRD benchmark's zoo, with weights from a file."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ground.errors import InvalidInput
from ground.geometry import Rendering
from ground.layers import BEFORE, LOGITS
from ground.terminal import plain
from ground.views import resize
from models import (
    Network,
    canonical_name,
    create_model,
    load_weights,
    network_shape,
    read_metadata,
    weights_digest,
)
from models.compute import Compute
from models.origins import preprocessing_of
from models.trained_on import TrainedOn
from storage.manifest import TeacherIdentity
from storage.schema import HEAD_BIAS, HEAD_WEIGHT, norm_parameters
from teacher_cache.teachers.contract import Answers, Card
from teacher_cache.teachers.weights import DatasetFacts, find_weights, remarks, require_trained_for

log = logging.getLogger(__name__)

_PROBE_SIZE = 64
_PROBES = 3


class ZooTeacher:
    """A trained network that answers for views; see `Teacher`.

    Args:
        network: in evaluation mode, on the compute's device.
        compute: device and precision.
    """

    def __init__(self, card: Card, network: Network, compute: Compute) -> None:
        self._card, self._network, self._compute = card, network, compute

    @property
    def card(self) -> Card:
        """See `Teacher.card`."""
        return self._card

    def call(self, views: Tensor, outputs: Sequence[str]) -> Answers:
        """See `Teacher.call`; the network is asked for extras among the outputs, and for no others."""
        return _say(self._network, self._card, self._compute, views, outputs)

    def seconds_per_call(self, outputs: Sequence[str], batch_size: int) -> float:
        """Of an untrained copy, on black images."""
        identity, rendering = self._card.identity, self._card.rendering
        size = rendering.geometry.crop_size
        copy = create_model(identity.name, identity.num_classes, seed=0, image_size=rendering.size).eval()
        self._compute.place(copy)
        batch = torch.zeros(min(batch_size, _PROBE_SIZE), 3, size, size, dtype=torch.uint8)
        seconds = []
        for _ in range(_PROBES):
            started = time.perf_counter()
            _say(copy, self._card, self._compute, batch, outputs)
            self._compute.synchronise()
            seconds.append(time.perf_counter() - started)
        return min(seconds) / len(batch)

    def close(self) -> None:
        """Nothing is held that others wait for."""


def open_teacher(
    name: str, weights: Path | None, dataset: DatasetFacts, compute: Compute, input_size: int | None = None
) -> ZooTeacher:
    """A teacher from its weights; what is known of its training comes from the file.

    Args:
        name: in any spelling.
        weights: FILE, or FILE#key for one of several sets in it; None looks where `train-teacher` puts them.
        dataset: whose images it is shown.
        input_size: of its input, in pixels; None is its library's, or that of the views.

    Raises:
        UnknownName: there is no such network.
        CheckpointError, CheckpointMismatch: the weights are not those of such a network for this many classes.
        InvalidInput: there are no weights, or by what their file says they were trained on other classes, or on images
            of another size, than the data set's.
    """
    path = find_weights(name, dataset, weights)
    said = TrainedOn.read(read_metadata(path), path)
    rendering = _rendering(name, dataset, input_size)
    require_trained_for(said, name, dataset, rendering, path)
    network = create_model(name, num_classes=len(dataset.classes), image_size=rendering.size)
    loaded = load_weights(network, path)
    for remark in remarks(said, loaded, dataset, rendering, path):
        log.info("%s", plain(remark))
    rendering = replace(rendering, normalisation=said.normalisation or rendering.normalisation)
    return _teacher(name, network, rendering, compute)


def untrained_teacher(name: str, dataset: DatasetFacts, compute: Compute) -> ZooTeacher:
    """A stand-in for one that is yet to be trained: it costs what that one will cost."""
    rendering = _rendering(name, dataset, None)
    network = create_model(name, num_classes=len(dataset.classes), seed=0, image_size=rendering.size)
    return _teacher(name, network, rendering, compute)


def _rendering(name: str, dataset: DatasetFacts, input_size: int | None) -> Rendering:
    """How a network is shown views: as its library shows it images, unless a size is given or known of it already."""
    rendering, own = dataset.rendering, preprocessing_of(canonical_name(name))
    if own is not None and rendering.input_size is None:
        rendering = replace(
            rendering,
            normalisation=own.normalisation,
            input_size=own.input_size,
            interpolation=own.interpolation,
        )
    return rendering if input_size is None else replace(rendering, input_size=input_size)


def fingerprint(name: str, digest: str, rendering: Rendering) -> str:
    """SHA-256 over architecture, digest of weights and buffers, and how it is shown a view: 64 hex digits.

    The size of the views is not part of it: they are what the ledger's input digests are of.
    """
    normalisation = rendering.normalisation
    parts: list[object] = [name, digest, list(normalisation.mean), list(normalisation.std)]
    if rendering.input_size is not None:
        parts += [rendering.input_size, rendering.interpolation]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _teacher(name: str, network: Network, rendering: Rendering, compute: Compute) -> ZooTeacher:
    name = canonical_name(name)
    shape = network_shape(name, network.num_classes, rendering.size)
    card = Card(
        identity=TeacherIdentity(
            name=name,
            fingerprint=fingerprint(name, weights_digest(network), rendering),
            num_classes=network.num_classes,
            normalisation=rendering.normalisation,
            precision=compute.precision,
            layers=network.layers,
            input_size=rendering.input_size,
            interpolation=None if rendering.input_size is None else rendering.interpolation,
        ),
        rendering=rendering,
        outputs=shape.outputs,
        parameters=_parameters(network),
        device=compute.describe(),
    )
    compute.place(network.eval())
    if compute.precision != "fp32":
        _require_precision(network, card, compute)
    return ZooTeacher(card, network, compute)


def _require_precision(network: Network, card: Card, compute: Compute) -> None:
    """Raise `InvalidInput` where the device cannot run the network in a precision; a black image is no call."""
    size = card.rendering.geometry.crop_size
    try:
        _say(network, card, compute, torch.zeros(1, 3, size, size, dtype=torch.uint8), list(card.outputs))
    except (RuntimeError, NotImplementedError) as error:
        why = str(error).partition("\n")[0]
        raise InvalidInput(
            f"{card.identity.name} cannot run in {compute.precision} on {card.device} ({why}); give another "
            "--precision, or another --device"
        ) from error


def _parameters(network: Network) -> dict[str, np.ndarray]:
    found: dict[str, Tensor] = {}
    if network.head is not None:
        found = {HEAD_WEIGHT: network.head.weight, HEAD_BIAS: network.head.bias}
    for layer, norm in network.stage_norms.items():
        if f"{layer}{BEFORE}" in network.layers:
            found |= zip(norm_parameters(layer), (norm.weight, norm.bias), strict=True)
    return {name: tensor.detach().float().cpu().contiguous().numpy() for name, tensor in found.items()}


def _say(network: Network, card: Card, compute: Compute, views: Tensor, outputs: Sequence[str]) -> Answers:
    extras = [name for name in outputs if name in network.extra_names]
    with torch.inference_mode(), compute.exact(), compute.autocast():
        rendering = card.rendering
        # Resized before they are sent: bytes, and on the CPU the same ones everywhere.
        resized = resize(views, rendering.size, rendering.interpolation)
        pixels = rendering.normalisation.apply(compute.to_device(resized))
        said = network.represent(pixels, extras)
    known = {LOGITS: said.logits, **said.features}
    return {name: known[name] for name in outputs}
