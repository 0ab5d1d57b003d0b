"""A teacher that runs here: a network with its weights."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ground.errors import CheckpointMismatch, InvalidInput
from ground.geometry import Rendering
from ground.layers import BEFORE, LOGITS
from ground.terminal import plain
from ground.user_code import UserCode
from ground.views import resize
from models import (
    Loaded,
    Network,
    canonical_name,
    create_model,
    load_weights,
    num_classes_in,
    read_metadata,
    weights_digest,
)
from models.compute import Compute
from models.names import identity_name, is_file, is_path
from models.origins import Asked, Preprocessing, open_trained, preprocessing_of
from models.registry import shape_of
from models.remote_names import is_remote
from models.representation import Representation
from models.trained_on import TrainedOn
from storage.identity import TeacherIdentity
from storage.schema import HEAD_BIAS, HEAD_WEIGHT, norm_parameters
from teacher_cache.class_map import ClassMap, mapped_logits, rows_of_head
from teacher_cache.rendering import RenderingOverrides
from teacher_cache.teachers.classes import ClassChoice, TeacherClasses, agree
from teacher_cache.teachers.contract import Answers, Card
from teacher_cache.teachers.elsewhere import RemoteAsked, RemoteOptions, preprocessing
from teacher_cache.teachers.prompts import read_prompts
from teacher_cache.teachers.weights import (
    DatasetFacts,
    find_weights,
    is_published,
    remarks,
    require_normalisation,
    require_trained_for,
)

log = logging.getLogger(__name__)

_PROBE_SIZE = 64
_PROBES = 3
# Of the largest number in an answer; float16 rounds to a tenth of it.
_ROUNDING = 1e-2


class ZooTeacher:
    """A trained network that answers for views; see `Teacher`.

    Args:
        network: in evaluation mode, on the compute's device.
        compute: device and precision.
    """

    def __init__(self, card: Card, network: Network, compute: Compute) -> None:
        self._card, self._network, self._compute = card, network, compute
        self._measured: dict[tuple[tuple[str, ...], int], float] = {}

    @property
    def card(self) -> Card:
        """See `Teacher.card`."""
        return self._card

    @property
    def network(self) -> Network:
        """What answers."""
        return self._network

    def call(self, views: Tensor, outputs: Sequence[str]) -> Answers:
        """See `Teacher.call`; the network is asked for extras among the outputs, and for no others."""
        return _say(self._network, self._card, self._compute, views, outputs)

    def seconds_per_call(self, outputs: Sequence[str], batch_size: int) -> float:
        """Measured once, on black images, which are nobody's data."""
        probed = tuple(outputs), min(batch_size, _PROBE_SIZE)
        if probed not in self._measured:
            self._measured[probed] = self._measure(*probed)
        return self._measured[probed]

    def _measure(self, outputs: Sequence[str], size: int) -> float:
        side = self._card.rendering.geometry.crop_size
        batch = torch.zeros(size, 3, side, side, dtype=torch.uint8)
        seconds = []
        for _ in range(_PROBES):
            started = time.perf_counter()
            _say(self._network, self._card, self._compute, batch, outputs)
            self._compute.synchronise()
            seconds.append(time.perf_counter() - started)
        return min(seconds) / len(batch)

    def close(self) -> None:
        """Nothing is held that others wait for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherSource:
    """Which teacher, and where it comes from.

    Args:
        name: in any spelling.
        weights: FILE, or FILE#key for one of several sets in it; None looks where `train-teacher` puts them, and then
            for those that its origin has published.
        rendering: how it is shown images, where that is not its origin's way, its file's or the data set's.
        boxes: whether views are boxes, which have no size that it could take them in.
        code: what is done with teachers that are code from outside this program.
        further: layers to be read beside its own choice; others that are no layers of it are refused.
        prompts: file of lines "class,prompt", where its answers are likenesses to texts.
        classes: how its classes become those of the data set.
        remote: what is said of one that answers over a network.
    """

    name: str
    weights: Path | None = None
    rendering: RenderingOverrides = field(default_factory=RenderingOverrides)
    boxes: bool = False
    code: UserCode = UserCode.REFUSED
    further: tuple[str, ...] = ()
    prompts: Path | None = None
    classes: ClassChoice = field(default_factory=ClassChoice)
    remote: RemoteOptions = field(default_factory=RemoteOptions)

    def __post_init__(self) -> None:
        if self.weights is not None and is_file(self.name):
            raise InvalidInput(f"{self.name} has its weights in it; leave out --weights")
        if not is_remote(self.name):
            self.remote.require_none(self.name)
        elif self.weights is not None or self.prompts is not None:
            option = "--prompts" if self.weights is None else "--weights"
            raise InvalidInput(f"{identity_name(self.name)} answers over a network; leave out {option}")

    def asked(self, image_size: int, classes: Sequence[str] | None = None) -> Asked:
        """What its origin is asked for.

        Args:
            image_size: 0 where it is not known yet; then it is what the user says, if he does.
            classes: that it is to answer for, where that is by prompts; None takes those that have some.

        Raises:
            InvalidInput: the prompts are not those of these classes.
        """
        return Asked(
            name=canonical_name(self.name).partition(":")[2],
            image_size=image_size or self.rendering.input_size or 0,
            code=self.code,
            prompts=None if self.prompts is None else read_prompts(self.prompts, classes),
        )


def open_teacher(source: TeacherSource, dataset: DatasetFacts, compute: Compute) -> ZooTeacher:
    """A trained teacher; what is known of its training comes from the file of its weights.

    Args:
        dataset: whose images it is shown.

    Raises:
        UnknownName: there is no such network, or it has no such layer.
        CheckpointError, CheckpointMismatch: the weights are not those of such a network.
        InvalidInput: there are no weights, they are of other classes than the data set's and the source does not say
            what those mean, or by what their file says they were trained on images of another size, or with another
            mean and deviation than the user says.
    """
    if is_remote(source.name):
        raise InvalidInput(f"{identity_name(source.name)} answers over a network, and has no layers to give")
    rendering = rendering_of(source, dataset)
    if source.weights is None and is_published(source.name, dataset):
        asked = source.asked(rendering.size, dataset.classes)
        network = open_trained(canonical_name(source.name), asked, source.further)
        own = TeacherClasses.published(source.name, network.num_classes, asked)
        settled = agree(own, dataset.name, dataset.classes, source.classes)
        if settled.taken is not None:
            log.info("%s does not say what its classes are called; they are taken to be %s", source.name, settled.taken)
        return _teacher(source.name, network, rendering, compute, settled.class_map)
    if source.prompts is not None:
        raise InvalidInput(
            f"--prompts is for networks that compare images with texts, by weights of their own; {source.name} is to "
            "have those of a file: leave out --prompts, or --weights"
        )
    path = find_weights(source.name, dataset, source.weights)
    said = TrainedOn.read(read_metadata(path), path)
    require_trained_for(said, source.name, dataset, rendering, path)
    require_normalisation(said, source.rendering, path)
    known = TeacherClasses.said_by(said, path)
    # Before weights are read, where that can be.
    agreed = None if known is None else agree(known, dataset.name, dataset.classes, source.classes)
    network, loaded = _loaded(source, path, len(said.classes or dataset.classes), rendering.size)
    if agreed is None:
        likely = TeacherClasses.of_weights(source.name, network.num_classes, source.asked(rendering.size), path)
        agreed = agree(likely, dataset.name, dataset.classes, source.classes)
    for remark in remarks(said, loaded, dataset, rendering, path, agreed.taken):
        log.info("%s", plain(remark))
    rendering = replace(rendering, normalisation=said.normalisation or rendering.normalisation)
    return _teacher(source.name, network, rendering, compute, agreed.class_map)


def _loaded(source: TeacherSource, path: Path, num_classes: int, image_size: int) -> tuple[Network, Loaded]:
    """The network with its weights, made for as many classes as they are of."""

    def made(count: int) -> Network:
        return create_model(source.name, count, image_size=image_size, code=source.code, further=source.further)

    network = made(num_classes)
    try:
        return network, load_weights(network, path)
    except CheckpointMismatch:
        found = num_classes_in(path, network)
        if found is None or found == network.num_classes:
            raise
    network = made(found)
    return network, load_weights(network, path)


def untrained_teacher(source: TeacherSource, dataset: DatasetFacts, compute: Compute) -> ZooTeacher:
    """A stand-in for one whose weights are not at hand: it costs what that one will cost."""
    rendering = rendering_of(source, dataset)
    network = create_model(
        source.name, len(dataset.classes), 0, rendering.size, code=source.code, further=source.further
    )
    return _teacher(source.name, network, rendering, compute)


def trained_or_not(source: TeacherSource, dataset: DatasetFacts, compute: Compute) -> ZooTeacher:
    """A stand-in where the network can be made without weights; the teacher itself where they lie beside it."""
    if not is_path(source.name):
        return untrained_teacher(source, dataset, compute)
    rendering = rendering_of(source, dataset)
    network = open_trained(canonical_name(source.name), source.asked(rendering.size), source.further)
    return _teacher(source.name, network, rendering, compute)


def own_preprocessing(source: TeacherSource) -> Preprocessing | None:
    """How a teacher is shown images where it comes from; None where nothing says it.

    Raises:
        CKDError: there is no such teacher, or what is said of it cannot be used.
    """
    if is_remote(canonical_name(source.name)):
        return preprocessing(source.name, source.remote, source.rendering.input_size)
    return preprocessing_of(canonical_name(source.name), source.asked(0))


def rendering_of(source: TeacherSource, dataset: DatasetFacts) -> Rendering:
    """How it is shown views: as its origin shows it images, unless a size is given or known of it already."""
    rendering, own = dataset.rendering, own_preprocessing(source)
    if own is not None and own.remark is not None:
        log.info("%s", plain(own.remark))
    if own is not None and rendering.input_size is None:
        rendering = replace(
            rendering,
            normalisation=own.normalisation or rendering.normalisation,
            input_size=own.input_size,
            interpolation=own.interpolation,
        )
    return source.rendering.rendering(rendering, boxes=source.boxes)


def remote_asked(source: TeacherSource, dataset: DatasetFacts) -> RemoteAsked:
    """What `elsewhere.open_remote` is asked for, of a source that answers over a network."""
    return RemoteAsked(
        name=source.name,
        dataset=dataset,
        rendering=rendering_of(source, dataset),
        classes=source.classes,
        options=source.remote,
    )


def fingerprint(name: str, digest: str, rendering: Rendering, class_map: ClassMap | None = None) -> str:
    """SHA-256 over architecture, digest of weights and buffers, how it is shown a view, and its class map, where it has
    one: 64 hex digits.

    The size of the views is not part of it: they are what the ledger's input digests are of. Of a file with its weights
    in it, the name counts as little.
    """
    if is_file(name):
        name = name.partition(":")[0]
    normalisation = rendering.normalisation
    parts: list[object] = [name, digest, list(normalisation.mean), list(normalisation.std)]
    if rendering.input_size is not None:
        parts += [rendering.input_size, rendering.interpolation]
    if class_map is not None:
        parts.append({"class_map": class_map})
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _teacher(
    name: str, network: Network, rendering: Rendering, compute: Compute, class_map: ClassMap | None = None
) -> ZooTeacher:
    if network.source_digest is not None and compute.precision != "fp32":
        raise InvalidInput(
            f"{name} runs in the numbers of its file and not in {compute.precision}; leave out --precision"
        )
    name = identity_name(name)
    shape = shape_of(network.eval(), rendering.size)
    mapped = {} if class_map is None else {LOGITS: (len(class_map),)}
    card = Card(
        identity=TeacherIdentity(
            name=name,
            fingerprint=fingerprint(name, weights_digest(network), rendering, class_map),
            num_classes=network.num_classes,
            normalisation=rendering.normalisation,
            precision=compute.precision,
            layers=network.layers,
            input_size=rendering.input_size,
            interpolation=None if rendering.input_size is None else rendering.interpolation,
            class_map=class_map,
        ),
        rendering=rendering,
        outputs={**shape.outputs, **mapped},
        parameters=_parameters(network, class_map),
        device=compute.describe(),
    )
    compute.place(network)
    if ":" in name:
        _require_same_answers(network, card, compute)
    if compute.precision != "fp32":
        _require_precision(network, card, compute)
    return ZooTeacher(card, network, compute)


def _require_same_answers(network: Network, card: Card, compute: Compute) -> None:
    """Raise `InvalidInput` for a network that says something else of the same noise with other noise beside it.

    It drops units at random, say, or normalises by the batch, because it was exported before `eval()`.
    """
    noise = torch.randn(3, 3, card.rendering.size, card.rendering.size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode(), compute.exact():
        first, second = (network.represent(compute.to_device(noise[chosen])) for chosen in ([0, 1], [0, 2]))
    for one, other in zip(_numbers(first), _numbers(second), strict=True):
        if (one[0] - other[0]).abs().max() > _ROUNDING * one[0].abs().max():
            raise InvalidInput(
                f"{card.identity.name} says something else of an image when another one is beside it, or at another "
                "time; export it after eval(), or give another network"
            )


def _numbers(said: Representation) -> list[Tensor]:
    """The logits, where there are some, and every layer."""
    return [each for each in (said.logits, *said.features.values()) if each.shape[1]]


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


def _parameters(network: Network, class_map: ClassMap | None) -> dict[str, np.ndarray]:
    found: dict[str, Tensor] = {}
    if network.head is not None:
        rows, weight, bias = rows_of_head(network.num_classes, class_map), network.head.weight, network.head.bias
        # Some have none, which adds nothing.
        bias = weight.new_zeros(len(weight)) if bias is None else bias
        found = {HEAD_WEIGHT: weight[rows], HEAD_BIAS: bias[rows]} if rows else {}
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
        class_map = card.identity.class_map
        logits = said.logits if class_map is None else mapped_logits(said.logits, class_map)
    known = {LOGITS: logits, **said.features}
    return {name: known[name] for name in outputs}
