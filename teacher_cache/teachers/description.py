"""What a network would be as a teacher, without its weights and without a data set."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ground.geometry import Normalisation, Rendering, ViewGeometry
from ground.layers import LOGITS, is_extra
from models import canonical_name
from models.compute import Compute
from models.module_network import ModuleNetwork
from models.names import is_file
from models.origins import Preprocessing, class_names_of, preprocessing_of
from teacher_cache.teachers.elsewhere import open_remote
from teacher_cache.teachers.zoo import TeacherSource, own_preprocessing, remote_asked, trained_or_not

_LOGIT_BYTES, _FEATURE_BYTES = 4, 2
# Of a network whose classes nobody names: as many as its weights have.
_ANY_CLASSES = 2
_IMAGENET = Normalisation(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
_PLAIN = Preprocessing(32, 32, "bilinear", _IMAGENET)


@dataclass(frozen=True, slots=True)
class _NoImages:
    """A data set of which nothing is known but how a network is shown it."""

    classes: tuple[str, ...]
    rendering: Rendering
    name: str = "no data set"
    digest: str = ""
    options: Mapping[str, str] = field(default_factory=dict)


def describe_teacher(source: TeacherSource, compute: Compute, batch_size: int = 16) -> dict[str, Any]:
    """What `ckd-cache teacher --json` prints; no call is made.

    Weights are fetched only of a network of Hugging Face, whose kind they decide.

    Raises:
        UnknownName, InvalidInput: as `open_teacher`, but for weights.
    """
    own = preprocessing_of(canonical_name(source.name), source.asked(0))
    names = class_names_of(canonical_name(source.name), source.asked(0))
    shown = own or _PLAIN
    size = shown.input_size if source.rendering.input_size is None else source.rendering.input_size
    classes = names or tuple(map(str, range(_ANY_CLASSES)))
    rendering = Rendering(
        geometry=ViewGeometry(image_size=size, crop_size=size, padding=0),
        normalisation=shown.normalisation or _IMAGENET,
    )
    teacher = trained_or_not(source, _NoImages(classes, rendering), compute)
    card, network = teacher.card, teacher.network
    further = network.survey.layers if isinstance(network, ModuleNetwork) else ()
    return {
        "name": card.identity.name,
        "classes": len(names) if names else None,
        "class_names": list(names[:5]) if names else None,
        "preparation": None if own is None else _prepared(own),
        "input_size": card.rendering.size,
        "mean": list(card.rendering.normalisation.mean),
        "std": list(card.rendering.normalisation.std),
        "parameters": None if is_file(source.name) else sum(part.numel() for part in network.parameters()),
        "precision": card.identity.precision,
        "device": card.device,
        "calls_per_second": round(1 / teacher.seconds_per_call([*card.outputs], batch_size), 2),
        "layers": [
            {"name": name, "shape": list(shape), "bytes": _row_bytes(name, shape), "in_all": not is_extra(name)}
            for name, shape in card.outputs.items()
        ],
        "further_layers": [
            {"name": layer.name, "shape": list(layer.shape), "bytes": _row_bytes(layer.name, layer.shape)}
            for layer in further
            if layer.name not in card.outputs
        ],
    }


def describe_remote(source: TeacherSource) -> dict[str, Any]:
    """What `ckd-cache teacher --json` prints of one that answers over a network; no call is made.

    Its server may be asked for metadata.

    Raises:
        CKDError: as `open_remote`.
    """
    own = own_preprocessing(source)
    size = own.input_size if own is not None else _PLAIN.input_size
    geometry = ViewGeometry(image_size=size, crop_size=size, padding=0)
    teacher = open_remote(remote_asked(source, _NoImages((), Rendering(geometry=geometry, normalisation=_IMAGENET))))
    card = teacher.card
    return {
        "name": card.identity.name,
        "answer": card.answer.text,
        "classes": card.identity.num_classes or None,
        "preparation": None if own is None else _prepared(own),
        "input_size": None if own is None else card.rendering.size,
        "max_batch": teacher.max_batch,
        "max_tokens_in": teacher.max_tokens_in,
        "max_tokens_out": teacher.max_tokens_out,
        "tolerance": teacher.tolerance,
        "strength": card.strength,
    }


def _prepared(own: Preprocessing) -> dict[str, Any]:
    return {
        "resize": own.resize_size,
        "squashed": own.shape == "squashed",
        "crop": own.input_size,
        "interpolation": own.interpolation,
    }


def _row_bytes(name: str, shape: tuple[int, ...]) -> int:
    """Of one view, as a store keeps it by default."""
    return math.prod(shape) * (_LOGIT_BYTES if name == LOGITS else _FEATURE_BYTES)
