"""What is kept of a teacher: which outputs of each call, which parameters of its own, and as which numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from ground.errors import InvalidInput, UnknownName
from ground.layers import LOGITS, is_before, is_extra, layer_of
from storage.manifest import TeacherIdentity
from storage.schema import HEAD_BIAS, HEAD_WEIGHT, OutputSpec, norm_parameters, parameter_array
from teacher_cache.teachers import Answers, Card


def choose_outputs(card: Card, features: str, feature_dtype: str) -> tuple[OutputSpec, ...]:
    """What to keep of each call: logits, and the feature maps that `features` names, in the teacher's order.

    Args:
        features: see `choose_layers`.
        feature_dtype: "float16" or "float32".

    Raises:
        UnknownName: the teacher has no such layer.
    """
    layers = choose_layers(card.identity, features)
    kept = (OutputSpec(layer, card.outputs[layer], feature_dtype) for layer in layers)
    return (OutputSpec(LOGITS, card.outputs[LOGITS], "float32"), *kept)


def choose_layers(teacher: TeacherIdentity, features: str) -> list[str]:
    """The layers that a text names, in the teacher's order.

    Args:
        features: "none", or names with commas between: "all" (stem, stages and pooled vector), any of these, and what
            "all" leaves out: pre-activations ("layer1.pre") and the map that is pooled ("last").

    Raises:
        UnknownName: the teacher has no such layer.
    """
    wanted = set() if features == "none" else set(features.split(","))
    if "all" in wanted:
        wanted = wanted - {"all"} | {layer for layer in teacher.layers if not is_extra(layer)}
    for layer in sorted(wanted):
        if layer not in teacher.layers:
            raise UnknownName(f"layer of {teacher.name}", layer, teacher.layers)
    return [layer for layer in teacher.layers if layer in wanted]


def kept_parameters(card: Card, outputs: Sequence[OutputSpec]) -> dict[str, np.ndarray]:
    """What is kept of the teacher itself beside these outputs: its head, and the norms of kept pre-activations."""
    names = [HEAD_WEIGHT, HEAD_BIAS]
    for output in outputs:
        if is_before(output.name):
            names += norm_parameters(layer_of(output.name))
    return {name: card.parameters[name] for name in names if name in card.parameters}


def parameter_specs(parameters: Mapping[str, np.ndarray]) -> tuple[OutputSpec, ...]:
    """What a manifest says of a teacher's parameters."""
    return tuple(OutputSpec(name, values.shape, values.dtype.name) for name, values in parameters.items())


def parameter_rows(parameters: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A teacher's parameters as arrays of a store, one row each: array name -> (1, ...)."""
    return {parameter_array(name): values[None] for name, values in parameters.items()}


def to_arrays(said: Answers, outputs: Sequence[OutputSpec]) -> dict[str, np.ndarray]:
    """What is kept of C calls: name -> (C, ...) in the stored type.

    Raises:
        InvalidInput: a value is not finite or does not fit the stored type.
    """
    arrays = {}
    for output in outputs:
        tensor, kind = said[output.name], getattr(torch, output.dtype)
        if not tensor.float().abs().amax() <= torch.finfo(kind).max:  # false for NaN too
            advice = "check the weights" if output.dtype == "float32" else "use --feature-dtype float32"
            raise InvalidInput(f"the teacher's {output.name} holds values that {output.dtype} cannot keep; {advice}")
        arrays[output.name] = tensor.to(kind).cpu().contiguous().numpy()
    return arrays
