"""What images are compared by: features of an encoder of the user's own, which answers for nothing.

`pixels` are random features of pixels; else it is the student of a finished run, or a network of any origin with
weights of its own. The paid teacher is none: its features are what calls are paid for.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ground.errors import CheckpointMismatch, InvalidInput
from ground.geometry import Normalisation, Rendering
from ground.layers import POOLED
from ground.views import plain_pixels
from models import Network, canonical_name, create_model, load_weights, num_classes_in, read_metadata, weights_digest
from models.origins import Asked, open_trained, preprocessing_of
from models.registry import shape_of
from models.trained_on import TrainedOn
from teacher_cache.selection.candidates import images_of
from teacher_cache.selection.contract import Pool
from teacher_cache.selection.students import Student
from teacher_cache.teachers.zoo import fingerprint

PIXELS = "pixels"
# Of random features: height and width that images are shown at, filters, their side, and the grid of their means.
_SIDE, _FILTERS, _KERNEL, _GRID = 32, 64, 5, 2
_EVEN = Normalisation(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
# Below it an image has one colour, but for rounding.
_FLAT = 1e-2


@dataclass(frozen=True, slots=True, eq=False)
class Encoder:
    """What makes features of images.

    Args:
        digest: of its weights, in hex.
        rendering: how it is shown base images.
        width: D.
        encode: inputs (B, 3, h, w) float32, on the pool's device -> (B, D).
    """

    digest: str
    rendering: Rendering
    width: int
    encode: Callable[[Tensor], Tensor]

    def features(self, pool: Pool, index: np.ndarray) -> Tensor:
        """Of the plain view of images: (M, D) float32 on the CPU; raises `InvalidInput` where one is no number."""
        found = torch.empty(len(index), self.width)
        with torch.inference_mode(), pool.compute.exact():
            for places, images in images_of(pool, index):
                inputs = self.rendering.normalisation.apply(plain_pixels(images, self.rendering))
                with pool.compute.autocast():
                    found[places] = self.encode(inputs).float().cpu()
        if not all(part.isfinite().all() for part in found.split(1 << 16)):
            raise InvalidInput("features of the encoder are no numbers; give another encoder")
        return found


def open_encoder(text: str, pool: Pool) -> Encoder:
    """The encoder of a text: `pixels`, the folder of a finished run, NAME@FILE, or ORIGIN:NAME as it is published.

    Raises:
        UnknownName, CheckpointError, CheckpointMismatch: there is no such network, or the weights are not of it.
        IdentityMismatch: the run is of other data, or of another store.
        InvalidInput: there is no such thing, it is the paid teacher, or it has no pooled features.
    """
    if text == PIXELS:
        return _pixels(pool)
    if Path(text).is_dir():
        student = Student.of(Path(text))
        student.require_of(pool)
        network = student.open(pool)
        _require_not_the_teacher(text, network, pool)
        return _of_network(text, network, student.digest, student.rendering, pool)
    name, at, file = text.partition("@")
    if not at and ":" not in name:
        raise InvalidInput(
            f"there is no encoder {text!a}; give {PIXELS}, the folder of a finished run, NAME@FILE for a network with "
            "the file of its weights, or ORIGIN:NAME for one that is published with its weights"
        )
    name = canonical_name(name)
    rendering = _rendering_of(name, pool)
    network, rendering = _with_weights(name, Path(file), rendering, pool) if at else _published(name, rendering, pool)
    network.eval()
    _require_not_the_teacher(text, network, pool)
    pool.compute.place(network)
    return _of_network(text, network, weights_digest(network), rendering, pool)


def _rendering_of(name: str, pool: Pool) -> Rendering:
    """As its origin shows it images; a network of the zoo as the data's teacher, at the size of the views."""
    usual = replace(pool.identity.teacher_rendering, input_size=None)
    own = preprocessing_of(name, _asked(name, 0, pool))
    if own is None:
        return usual
    return replace(
        usual,
        normalisation=own.normalisation or usual.normalisation,
        input_size=own.input_size,
        interpolation=own.interpolation,
    )


def _asked(name: str, size: int, pool: Pool) -> Asked:
    return Asked(name=name.partition(":")[2], image_size=size, code=pool.code)


def _published(name: str, rendering: Rendering, pool: Pool) -> tuple[Network, Rendering]:
    return open_trained(name, _asked(name, rendering.size, pool)), rendering


def _with_weights(name: str, file: Path, rendering: Rendering, pool: Pool) -> tuple[Network, Rendering]:
    """A network with the weights of a file, shown images as the file says, where it does."""
    said = TrainedOn.read(read_metadata(file), file)
    rendering = replace(
        rendering,
        normalisation=said.normalisation or rendering.normalisation,
        input_size=said.input_size or rendering.input_size,
    )

    def made(num_classes: int) -> Network:
        return create_model(name, num_classes, 0, rendering.size, code=pool.code)

    network = made(len(said.classes or pool.identity.dataset.classes))
    try:
        load_weights(network, file)
    except CheckpointMismatch:
        found = num_classes_in(file, network)
        if found is None or found == network.num_classes:
            raise
        network = made(found)
        load_weights(network, file)
    return network, rendering


def _require_not_the_teacher(text: str, network: Network, pool: Pool) -> None:
    """Refuse the very weights that answer for calls, whatever they are called here, and however shown images."""
    teacher = pool.identity.teacher
    known_by = fingerprint(teacher.name, weights_digest(network), pool.identity.teacher_rendering, teacher.class_map)
    if known_by == teacher.fingerprint:
        raise InvalidInput(
            f"the encoder {text} is the teacher {teacher.name} itself, whose features are what calls are paid for: to "
            "look at them for every image would be a call for every image; give an encoder of your own, or pixels"
        )


def _of_network(text: str, network: Network, digest: str, rendering: Rendering, pool: Pool) -> Encoder:
    shape = shape_of(network, rendering.size).outputs.get(POOLED)
    if shape is None:
        raise InvalidInput(f"the encoder {text} has no pooled features to compare images by; give another network")

    def pooled(inputs: Tensor) -> Tensor:
        return network.represent(inputs).features[POOLED].flatten(1)

    return Encoder(digest, rendering, math.prod(shape), pooled)


def _pixels(pool: Pool) -> Encoder:
    """Random features of pixels: 64 random filters on 32 x 32 pixels, what is positive of them, means of quarters.

    Each image has its mean taken out and its contrast made 1 before; the filters are the same ones always.
    Source: random filters that are rectified and pooled, Saxe et al. 2011, On Random Weights and Unsupervised Feature
    Learning; contrast normalisation as in Coates et al. 2011, section 3.2.
    """
    # The legacy generator's stream is frozen, unlike those of numpy's new ones and of torch.
    drawn = np.random.RandomState(0).standard_normal((_FILTERS, 3, _KERNEL, _KERNEL)).astype(np.float32)
    digest = hashlib.sha256(drawn.tobytes()).hexdigest()
    filters = torch.from_numpy(drawn / math.sqrt(3 * _KERNEL**2)).to(pool.compute.device)
    rendering = replace(
        pool.identity.teacher_rendering, normalisation=_EVEN, input_size=_SIDE, interpolation="bilinear"
    )

    def encode(inputs: Tensor) -> Tensor:
        flat = inputs.flatten(1)
        deviation = flat.std(dim=1).clamp_min(_FLAT)
        even = (inputs - flat.mean(dim=1).view(-1, 1, 1, 1)) / deviation.view(-1, 1, 1, 1)
        return F.adaptive_avg_pool2d(F.conv2d(even, filters).relu_(), _GRID).flatten(1)

    return Encoder(digest, rendering, _FILTERS * _GRID**2, encode)
