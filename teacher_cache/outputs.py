"""What is kept of a teacher: which outputs of each call, which parameters of its own, and as which numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from ground.errors import InvalidInput, UnknownName
from ground.layers import LOGITS, is_before, is_extra, layer_of
from storage.answers import NO_CLASS, AnswerForm, is_empty
from storage.float_types import INTEGER_TYPE, as_float32, is_integer
from storage.identity import TeacherIdentity
from storage.schema import HEAD_BIAS, HEAD_WEIGHT, OutputSpec, norm_parameters, parameter_array
from teacher_cache.answers import chosen_form, gives_answers, num_answered
from teacher_cache.teachers import Answers, Card

_DEFAULT_TYPE = "float16"


def choose_outputs(
    card: Card,
    features: str,
    feature_dtype: str | None,
    kept: Sequence[OutputSpec] = (),
    *,
    features_only: bool = False,
    keep: AnswerForm | None = None,
) -> tuple[OutputSpec, ...]:
    """What to keep of each call: answers over the classes, and the feature maps that `features` names, in the teacher's
    order.

    Args:
        features: see `choose_layers`.
        feature_dtype: of `storage.float_types`; None leaves each layer in the type that a store keeps it in, and adds
            others in that of its first one: float16 where it has none.
        kept: layers that the store keeps.
        features_only: no answers over the classes.
        keep: how these are kept; None for as the teacher gives them.

    Raises:
        UnknownName: the teacher has no such layer.
        InvalidInput: it gives no answers, or none that could be kept so, and they are to be kept.
    """
    layers = choose_layers(card.identity, features)
    types = {output.name: output.dtype for output in kept}
    usual = next(iter(types.values()), _DEFAULT_TYPE)
    chosen = tuple(
        OutputSpec(layer, card.outputs[layer], types.get(layer, usual) if feature_dtype is None else feature_dtype)
        for layer in layers
    )
    if features_only:
        return chosen
    if not gives_answers(card):
        raise InvalidInput(
            f"{card.identity.name} gives no {card.answer.text}; keep its features alone, with --features LAYERS "
            "--features-only"
        )
    return (*chosen_form(card, keep).outputs(num_answered(card)), *chosen)


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


def further_layers(features: str) -> tuple[str, ...]:
    """Layers that a text names one by one, which a network from elsewhere may have to read beside its own choice."""
    return tuple(sorted({*features.split(",")} - {"none", "all", LOGITS}))


def kept_parameters(card: Card, outputs: Sequence[OutputSpec]) -> dict[str, np.ndarray]:
    """What is kept of the teacher itself beside these outputs: the head of its logits, in whatever form these are kept,
    and the norms of pre-activations.
    """
    keeps_answers = any(output.name not in card.identity.layers for output in outputs)
    names = [HEAD_WEIGHT, HEAD_BIAS] if keeps_answers else []
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


@dataclass(frozen=True, slots=True)
class Misfit:
    """What keeps an answer out of a store: a value of one output that its stored type does not hold.

    Args:
        value: inf or NaN where the teacher itself said so.
    """

    output: OutputSpec
    value: float

    @property
    def is_too_large(self) -> bool:
        """Whether it is a number, which a wider type would hold."""
        return math.isfinite(self.value)


def find_misfit(
    values: Mapping[str, np.ndarray], outputs: Sequence[OutputSpec], *, is_refusal: bool = False
) -> Misfit | None:
    """The first output of an answer that its stored type cannot keep; None if all can be kept.

    Args:
        values: name -> (1, ...) or (...), of any stored type.
        is_refusal: whether the answer may have no content, which it then has in no output.
    """
    said = {output.name: np.atleast_1d(values[output.name]) for output in outputs}
    if is_refusal and is_empty({name: _numbers(array)[None] for name, array in said.items()})[0]:
        return None
    for output in outputs:
        if output.dtype == INTEGER_TYPE:
            ids = said[output.name]
            if ids.min() < NO_CLASS or ids.max() <= NO_CLASS:
                return Misfit(output, math.nan)
            continue
        largest = np.abs(as_float32(said[output.name])).max()  # NaN if one is
        if not largest <= torch.finfo(getattr(torch, output.dtype)).max:
            return Misfit(output, float(largest))
    return None


def _numbers(values: np.ndarray) -> np.ndarray:
    return values if is_integer(values.dtype) else as_float32(values)


def rows_that_fit(said: Answers, outputs: Sequence[OutputSpec], refused: np.ndarray | None = None) -> np.ndarray:
    """Which of C answers can be kept in the stored types: (C,) bool.

    Args:
        refused: (C,) bool, which of them are refusals and may have no content; None for none.
    """
    fits = torch.ones(len(said[outputs[0].name]), dtype=torch.bool)
    for output in outputs:
        values = _as_they_lie(said[output.name])
        if output.dtype == INTEGER_TYPE:
            fits &= ((values.amin(dim=1) >= NO_CLASS) & (values.amax(dim=1) > NO_CLASS)).cpu()
        else:
            most = values.to(torch.float32, copy=True).abs_().amax(dim=1)
            fits &= (most <= torch.finfo(getattr(torch, output.dtype)).max).cpu()  # false for NaN too
    if refused is not None and refused.any():
        fits[torch.from_numpy(refused)] = torch.from_numpy(is_empty(as_said(said, outputs, refused)))
    return fits.numpy()


def _as_they_lie(values: torch.Tensor) -> torch.Tensor:
    """The numbers of C answers, (C, ...), in the order of memory: (C, N).

    Channels-last maps in their own order would be copied first, which takes ten times as long as to look at them.
    """
    order = sorted(range(1, values.dim()), key=values.stride, reverse=True)
    return values.permute(0, *order).reshape(len(values), -1)


def to_arrays(said: Answers, outputs: Sequence[OutputSpec], rows: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """What is kept of C calls: name -> (C, ...) as it lies in the store, whose types all values fit.

    Args:
        rows: (C,) bool; None for all calls.
    """
    chosen = None if rows is None or rows.all() else torch.from_numpy(np.flatnonzero(rows))
    arrays = {}
    for output in outputs:
        tensor = said[output.name] if chosen is None else said[output.name][chosen]
        kept = tensor.to(getattr(torch, output.dtype)).cpu().contiguous()
        is_bfloat16 = kept.dtype == torch.bfloat16
        arrays[output.name] = kept.view(torch.int16).numpy().view(np.uint16) if is_bfloat16 else kept.numpy()
    return arrays


def as_said(said: Answers, outputs: Sequence[OutputSpec], rows: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """The same in float32, whatever the stored types are; ids stay ids."""
    wide = [output if output.dtype == INTEGER_TYPE else replace(output, dtype="float32") for output in outputs]
    return to_arrays(said, wide, rows)
