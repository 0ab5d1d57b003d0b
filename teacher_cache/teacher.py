"""The teacher: the one place where a forward on data happens, so the one place where calls are made."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ground.errors import InvalidInput, UnknownName
from ground.geometry import Normalisation, ViewGeometry
from ground.layers import is_before, layer_of
from models import Network, Representation, canonical_name, create_model, load_weights, weights_digest
from models.compute import Compute
from storage.manifest import TeacherIdentity
from storage.schema import HEAD_BIAS, HEAD_WEIGHT, OutputSpec, norm_parameters, parameter_array


class DatasetFacts(Protocol):
    """What has to be known of a data set to load a teacher for it: an `ImageDataset`, or what a store says of one."""

    @property
    def name(self) -> str:
        """Canonical name."""

    @property
    def classes(self) -> tuple[str, ...]:
        """The name of each label."""

    @property
    def geometry(self) -> ViewGeometry:
        """How views are cut from its images."""

    @property
    def normalisation(self) -> Normalisation:
        """What networks trained on it expect."""


@dataclass(frozen=True, slots=True)
class Teacher:
    """A trained network that answers for views.

    Args:
        identity: which teacher it is.
        network: in evaluation mode, on the compute's device.
        compute: device and precision.
    """

    identity: TeacherIdentity
    network: Network
    compute: Compute

    def call(self, views: Tensor, outputs: Sequence[OutputSpec] = ()) -> Representation:
        """One teacher call per view: (C, 3, h, w) uint8 in, logits and feature maps out, on the device.

        Args:
            outputs: what will be kept; the network is asked for extras among them, and for no others.
        """
        extras = [output.name for output in outputs if output.name in self.network.extra_names]
        with torch.inference_mode(), self.compute.exact(), self.compute.autocast():
            pixels = self.identity.normalisation.apply(self.compute.to_device(views))
            return self.network.represent(pixels, extras)

    def parameters(self, outputs: Sequence[OutputSpec]) -> dict[str, np.ndarray]:
        """What is kept of the teacher itself beside these outputs: see `Store.read_parameters`."""
        head, norms = self.network.head, self.network.stage_norms
        found = {HEAD_WEIGHT: head.weight, HEAD_BIAS: head.bias}
        for output in outputs:
            layer = layer_of(output.name)
            if is_before(output.name) and layer in norms:
                found |= zip(norm_parameters(layer), (norms[layer].weight, norms[layer].bias), strict=True)
        return {name: tensor.detach().float().cpu().contiguous().numpy() for name, tensor in found.items()}


def load_teacher(name: str, weights: Path, dataset: DatasetFacts, compute: Compute) -> Teacher:
    """A teacher from its weights; what is known of its training comes from the file.

    Raises:
        InvalidInput: the weights are not those of such a network for this many classes.
        InvalidInput: the weights were trained on other classes than the data set's.
    """
    network = create_model(name, num_classes=len(dataset.classes))
    metadata = load_weights(network, weights)
    classes = _from_metadata(metadata, "classes", weights)
    if classes is not None and classes != list(dataset.classes):
        raise InvalidInput(
            f"{weights} was trained on {metadata.get('dataset', 'other data')}, whose classes are not those of "
            f"{dataset.name}; give that data set, or other --weights"
        )
    normalisation = _normalisation(metadata, dataset, weights)
    identity = TeacherIdentity(
        name=canonical_name(name),
        fingerprint=fingerprint(canonical_name(name), weights_digest(network), normalisation),
        num_classes=len(dataset.classes),
        normalisation=normalisation,
        precision=compute.precision,
        layers=(*network.feature_names, *network.extra_names),
    )
    compute.place(network.eval())
    return Teacher(identity, network, compute)


def fingerprint(name: str, digest: str, normalisation: Normalisation) -> str:
    """SHA-256 over architecture, digest of weights and buffers, and normalisation: 64 hex digits."""
    parts = [name, digest, list(normalisation.mean), list(normalisation.std)]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def default_weights(name: str, dataset: DatasetFacts) -> Path:
    """Where `train-teacher` puts a teacher, and `build` looks for one: under `CKD_TEACHERS` or ./teachers."""
    folder = Path(os.environ.get("CKD_TEACHERS", "teachers"))
    return folder / dataset.name.replace(":", "-") / f"{canonical_name(name)}.safetensors"


def find_weights(name: str, dataset: DatasetFacts, weights: Path | None) -> Path:
    """The weights to use; raises `InvalidInput` that says how to get some."""
    path = default_weights(name, dataset) if weights is None else weights
    if not path.is_file():
        how = f"ckd-cache train-teacher --teacher {name} --dataset {dataset.name}"
        reason = "there are no weights at" if weights is not None else "no --weights given and no teacher at"
        raise InvalidInput(f"{reason} {path}; give --weights FILE, or train a teacher with: {how}")
    return path


def choose_outputs(name: str, dataset: DatasetFacts, features: str, feature_dtype: str) -> tuple[OutputSpec, ...]:
    """What to keep of each call: logits, and the feature maps that `features` names, in the network's order.

    Args:
        features: "none", or names with commas between: "all" for stem, stages and pooled vector, any of these, and
            what is kept only where it is named: pre-activations ("layer1.pre") and the map that is pooled ("last").
        feature_dtype: "float16" or "float32".

    Raises:
        UnknownName: the network has no such layer.
    """
    # An untrained copy on a random image: not a teacher call.
    network = create_model(name, num_classes=len(dataset.classes), seed=0).eval()
    size = dataset.geometry.crop_size
    with torch.inference_mode():
        probe = network.represent(torch.randn(1, 3, size, size), network.extra_names)
    logits = OutputSpec("logits", tuple(probe.logits.shape[1:]), "float32")
    wanted = [] if features == "none" else features.split(",")
    if "all" in wanted:
        wanted = [layer for layer in wanted if layer != "all"] + list(network.feature_names)
    for layer in wanted:
        if layer not in probe.features:
            raise UnknownName(f"layer of {name}", layer, probe.features)
    shapes = {layer: tuple(said.shape[1:]) for layer, said in probe.features.items() if layer in wanted}
    return (logits, *(OutputSpec(layer, shape, feature_dtype) for layer, shape in shapes.items()))


def parameter_specs(parameters: Mapping[str, np.ndarray]) -> tuple[OutputSpec, ...]:
    """What a manifest says of a teacher's parameters."""
    return tuple(OutputSpec(name, values.shape, values.dtype.name) for name, values in parameters.items())


def parameter_rows(parameters: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A teacher's parameters as arrays of a store, one row each: array name -> (1, ...)."""
    return {parameter_array(name): values[None] for name, values in parameters.items()}


def to_arrays(said: Representation, outputs: tuple[OutputSpec, ...]) -> dict[str, np.ndarray]:
    """What is kept of C calls: name -> (C, ...) in the stored type.

    Raises:
        InvalidInput: a value is not finite or does not fit the stored type.
    """
    arrays = {}
    for output in outputs:
        tensor = said.logits if output.name == "logits" else said.features[output.name]
        kind = getattr(torch, output.dtype)
        if not tensor.float().abs().amax() <= torch.finfo(kind).max:  # false for NaN too
            advice = "check the weights" if output.dtype == "float32" else "use --feature-dtype float32"
            raise InvalidInput(f"the teacher's {output.name} holds values that {output.dtype} cannot keep; {advice}")
        arrays[output.name] = tensor.to(kind).cpu().contiguous().numpy()
    return arrays


def _normalisation(metadata: Mapping[str, str], dataset: DatasetFacts, weights: Path) -> Normalisation:
    constants = _from_metadata(metadata, "normalisation", weights)
    if constants is None:
        return dataset.normalisation
    try:
        return Normalisation(mean=tuple(constants["mean"]), std=tuple(constants["std"]))
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidInput(
            f"{weights} says in its metadata that it was trained with the normalisation {constants}, which cannot be; "
            "correct it, or remove it there"
        ) from error


def _from_metadata(metadata: Mapping[str, str], name: str, weights: Path) -> Any:
    try:
        return json.loads(metadata[name]) if name in metadata else None
    except ValueError as error:
        raise InvalidInput(
            f"{weights} has {name} in its metadata that is not JSON; correct it, or remove it"
        ) from error
