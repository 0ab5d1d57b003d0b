"""What every row of a store has in common: which teacher was shown which images, how, and what is kept of it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from ground.documents import Hex64, Line, shown, typed
from ground.errors import IdentityMismatch, InvalidInput, store_command
from ground.geometry import (
    FIT_SHAPES,
    VIEW_POLICIES,
    Fit,
    Normalisation,
    Rendering,
    ViewGeometry,
    numbers_of_view,
    shows_boxes,
)
from ground.layers import POOLED, is_before, is_layer_name, layer_of
from ground.places import Place
from storage.answers import AnswerForm, Kind
from storage.float_types import FLOAT_TYPES
from storage.schema import (
    HEAD_BIAS,
    HEAD_WEIGHT,
    ArraySpec,
    OutputSpec,
    norm_parameters,
    output_array,
    parameter_arrays,
    sample_arrays,
)

_MAX_DIMENSIONS = 8
_MAX_VALUES = 1 << 28
_MAX_LAYERS = 1 << 10
_PARAMETER = re.compile(r"[A-Za-z0-9_./-]{1,160}")
MAX_VIEWS = 1 << 10
_MAX_SIZE = 1 << 14
# The data set whose images are resized to squares whatever their shape.
_SQUASHED = "stanford_cars"

_Name = Annotated[
    str,
    Meta(pattern=r"\A([a-z][a-z0-9]{0,63}:)?[A-Za-z0-9_.-]{1,4096}\Z", description="a name of letters, digits and _.-"),
]
Seed = Annotated[int, Meta(ge=0, le=1 << 40, description=f"a seed from 0 to {1 << 40}")]
_Views = Annotated[int, Meta(ge=1, le=MAX_VIEWS, description=f"a number of views from 1 to {MAX_VIEWS}")]


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherIdentity:
    """Which teacher.

    Args:
        fingerprint: covers architecture, all weights and buffers, and how it is shown a view.
        input_size: of its input, to which views are resized; None where it takes them as they are.
        interpolation: of that.
        layers: every layer it can give, in order, whether it is kept or not.
        num_classes: of its own head; 0 for a network without one.
        class_map: for each class of the data, those of the teacher that mean it, in order; None where both have the
            same ones. Logits are kept as mapped by it.
    """

    name: _Name
    fingerprint: Hex64
    num_classes: int
    normalisation: Normalisation
    precision: Line
    layers: tuple[str, ...]
    input_size: int | None = None
    interpolation: str | None = None
    class_map: tuple[tuple[int, ...], ...] | None = None

    def answers_as(self, other: TeacherIdentity) -> bool:
        """Whether both say the same of a view; which layers are read, and what a file is called, does not matter."""
        # Where the name means anything, the fingerprint covers it.
        return replace(self, layers=other.layers, name=other.name) == other


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetIdentity:
    """Which images.

    Args:
        digest: of the content of both splits.
        squares: of `ground.geometry.FIT_SHAPES`, how base images were made of photographs of any shape; None is the
            usual way.
    """

    name: Line
    digest: Hex64
    classes: tuple[Line, ...]
    squares: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """What every row of a store has in common.

    Args:
        seed: of the sample's order and of the views.
        views: V, teacher calls per image.
        view_policy: "augmented" or "plain" squares, or "resized" boxes.
        outputs: what is kept of each call, answers over the classes first, then layers in the teacher's order; either
            may be left out.
        parameters: what is kept of the teacher itself: its head, where its answers are kept and each of its logits is
            of one of the data's classes, and the norms of kept pre-activations.
        answer: how answers over the classes are kept; None is as logits, where they are.
    """

    teacher: TeacherIdentity
    dataset: DatasetIdentity
    geometry: ViewGeometry
    seed: Seed
    views: _Views
    view_policy: str
    outputs: tuple[OutputSpec, ...]
    parameters: tuple[OutputSpec, ...]
    answer: AnswerForm | None = None

    @property
    def teacher_rendering(self) -> Rendering:
        """How the teacher was shown the images."""
        teacher = self.teacher
        own = {} if teacher.interpolation is None else {"interpolation": teacher.interpolation}
        return Rendering(
            geometry=self.geometry, normalisation=teacher.normalisation, input_size=teacher.input_size, **own
        )

    @property
    def fit(self) -> Fit:
        """How base images were made of photographs: the user's own as the teacher's library prepares them, if one does.

        Named data sets have a fit of their own, and images that are squares already keep their pixels in any.
        """
        if self.dataset.name.startswith(_SQUASHED):
            return Fit(shape="squashed")
        is_own, own = ":" in self.dataset.name, self.teacher.interpolation
        if not is_own or own is None:
            return Fit()
        return Fit(shape=self.dataset.squares or Fit().shape, interpolation=own)

    @property
    def answer_names(self) -> tuple[str, ...]:
        """What outputs of answers over the classes are called here, kept or not; any other is a layer."""
        return (self.answer or AnswerForm()).names

    @property
    def answers(self) -> tuple[OutputSpec, ...]:
        """The outputs that answers over the classes are kept in; none where features alone are."""
        return tuple(output for output in self.outputs if output.name in self.answer_names)

    @property
    def answer_form(self) -> AnswerForm | None:
        """How answers over the classes are kept; None where none are."""
        return (self.answer or AnswerForm()) if self.keeps_answers else None

    @property
    def keeps_answers(self) -> bool:
        """Whether answers over the classes of the data are kept, of whatever kind; features always may be."""
        return bool(self.answers)

    @property
    def keeps_logits(self) -> bool:
        """Whether they are kept as logits, (K,)."""
        return self.answer is None and self.keeps_answers

    def array_of(self, name: str) -> str:
        """Path of the array of one kept output."""
        return output_array(name, self.answer_names)

    @property
    def settled_class_map(self) -> tuple[tuple[int, ...], ...] | None:
        """What the teacher's classes were settled to mean, also where that changes nothing and is no part of it."""
        count = len(self.dataset.classes)
        if self.teacher.class_map is not None or not self.keeps_answers or self.teacher.num_classes != count:
            return self.teacher.class_map
        return tuple((place,) for place in range(count))

    @property
    def kept_layers(self) -> tuple[OutputSpec, ...]:
        """The outputs that layers are kept in."""
        return tuple(output for output in self.outputs if output.name not in self.answer_names)

    @property
    def features(self) -> dict[str, tuple[int, ...]]:
        """Layer name -> shape of one view's map, without the answers over the classes."""
        return {output.name: output.shape for output in self.kept_layers}


def require_same(found: Identity, wanted: Identity, folder: Place, ledger: str | None = None) -> None:
    """Refuse to add to a store that was made from something else.

    Args:
        ledger: the one that the store shares, for the command that is suggested.

    Raises:
        IdentityMismatch: names every field that differs, with both values.
    """
    if found.teacher.fingerprint == wanted.teacher.fingerprint:
        # A file that was renamed: where the name means anything, the fingerprint covers it.
        wanted = replace(wanted, teacher=replace(wanted.teacher, name=found.teacher.name))
    differing = list(_differences(_said(found), _said(wanted), ""))
    if not found.parameters and found == replace(wanted, parameters=()) and differing:
        raise IdentityMismatch(
            f"the store at {folder} keeps no last layer of its teacher, as it was upgraded without the teacher's "
            f"weights; add it with: {store_command('upgrade', folder, ledger=ledger, weights='FILE')}"
        )
    if differing:
        remedy = "leave out what the store says itself, or give another --store"
        if found == replace(wanted, teacher=replace(wanted.teacher, fingerprint=found.teacher.fingerprint)):
            remedy = (
                "give the very weights that it was built with, or another --store (a teacher whose weights are made "
                "anew each time is another one each time)"
            )
        raise IdentityMismatch(f"the store at {folder} was built with another {'; '.join(differing)}; {remedy}")


def _said(identity: Identity) -> dict[str, Any]:
    """An identity with its form of answers as users say it."""
    form = identity.answer_form
    return {**msgspec.to_builtins(identity), "answer": "none" if form is None else form.text}


def _differences(found: Mapping[str, Any], wanted: Mapping[str, Any], prefix: str) -> list[str]:
    lines = []
    for name, value in found.items():
        other = wanted[name]
        if isinstance(value, Mapping):
            lines += _differences(value, other, f"{prefix}{name}.")
        elif value != other:
            lines.append(f"{prefix}{name} (store: {_shown(value)}, asked: {_shown(other)})")
    return lines


def _shown(value: Any) -> str:
    if isinstance(value, (tuple, list)) and value and isinstance(value[0], Mapping):
        return ",".join(f"{item['name']}:{item['dtype']}" for item in value)
    text = str(value)
    return text if len(text) <= 40 else f"{text[:16]}..."


def require_storable(identity: Identity) -> None:
    """Refuse before any call what no reader of the store would accept, by the rules of the manifest.

    Raises:
        InvalidInput: names the value.
    """
    try:
        check_identity(typed(json.loads(json.dumps(msgspec.to_builtins(identity))), Identity, exact=True))
    except (ValueError, KeyError) as error:
        raise InvalidInput(
            f"a store of this teacher and data set could not be read again ({error}); give them other names"
        ) from error


def checked_arrays(identity: Identity) -> tuple[ArraySpec, ...]:
    """The arrays whose digests a manifest holds: of the samples, and the teacher's parameters."""
    size, numbers = identity.geometry.image_size, numbers_of_view(identity.view_policy)
    return (*sample_arrays(size, identity.views, numbers), *parameter_arrays(identity.parameters))


def check_identity(identity: Identity) -> None:
    """Refuse what no build writes though its types are right; raises `ValueError` with what is wrong."""
    teacher, geometry = identity.teacher, identity.geometry
    sizes = (geometry.image_size, geometry.crop_size, geometry.padding)
    require(max(sizes) <= _MAX_SIZE, "geometry", geometry)
    require((teacher.input_size is None) == (teacher.interpolation is None), "interpolation", teacher.interpolation)
    _ = identity.teacher_rendering  # which refuses what no network has
    squares = identity.dataset.squares
    require(squares is None or squares in FIT_SHAPES, "dataset.squares", squares)
    require(identity.view_policy in VIEW_POLICIES, "view_policy", identity.view_policy)
    # Boxes have no size that a teacher could take them in.
    require(teacher.input_size is not None or not shows_boxes(identity.view_policy), "input_size", None)
    for output in identity.outputs:
        is_answer = output.name in identity.answer_names
        _check_spec(output, is_answer or is_layer_name(output.name))
        require(is_answer or output.dtype in FLOAT_TYPES, "the type of a layer", output.dtype)
    for parameter in identity.parameters:
        _check_spec(parameter, _PARAMETER.fullmatch(parameter.name) is not None and ".." not in parameter.name)
    require(bool(identity.outputs), "outputs", identity.outputs)
    _check_layers(teacher.layers, identity.answer_names, [output.name for output in identity.outputs])
    _check_classes(identity)
    _check_answer(identity)
    _check_parameters(identity)


def _check_spec(spec: OutputSpec, has_good_name: bool) -> None:
    require(has_good_name, "the name of a layer or parameter", spec.name)
    if len(spec.shape) > _MAX_DIMENSIONS or math.prod(spec.shape) > _MAX_VALUES:
        raise ValueError(f"{spec.name} has the impossible shape {shown(spec.shape)}")


def _check_layers(layers: tuple[str, ...], answers: tuple[str, ...], names: list[str]) -> None:
    """Refuse outputs other than those of answers and layers of the teacher, in its order."""
    are_plain = len(layers) <= _MAX_LAYERS and all(map(is_layer_name, layers))
    require(are_plain and len({*answers, *layers}) == len(answers) + len(layers), "teacher.layers", layers)
    require(names == [name for name in (*answers, *layers) if name in names], "outputs", names)


def _check_classes(identity: Identity) -> None:
    """Refuse a class map that is none, and answers over other classes than the data's; features may be of any
    teacher.
    """
    teacher, count = identity.teacher, len(identity.dataset.classes)
    require(teacher.num_classes >= 0, "teacher.num_classes", teacher.num_classes)
    if teacher.class_map is not None:
        mapped = [place for group in teacher.class_map for place in group]
        are_groups = all(group == tuple(sorted(group)) and group for group in teacher.class_map)
        are_classes = len(set(mapped)) == len(mapped) and all(0 <= place < teacher.num_classes for place in mapped)
        require(are_groups and are_classes and len(teacher.class_map) == count, "class_map", teacher.class_map)
    if identity.keeps_answers:
        own = teacher.num_classes if teacher.class_map is None else len(teacher.class_map)
        classes = {own, count, *(identity.outputs[0].shape if identity.keeps_logits else ())}
        require(classes == {count}, "the number of classes", classes)


def _check_answer(identity: Identity) -> None:
    """Refuse a form of answers that is not that of the outputs; logits have none, in a manifest."""
    form = identity.answer
    if form is not None:
        require(form.kind is not Kind.LOGITS, "answer.kind", form.kind.value)
        count = len(identity.dataset.classes)
        form.require_fits(count)
        require(identity.answers == form.outputs(count), "outputs", [output.name for output in identity.answers])


def _check_parameters(identity: Identity) -> None:
    """Refuse parameters other than the head's and those of the norms of kept pre-activations, in their order."""
    found = {spec.name: spec for spec in identity.parameters}
    wanted: dict[str, tuple[int, ...]] = {}
    # A teacher need not end in a linear layer.
    if HEAD_WEIGHT in found or HEAD_BIAS in found:
        width = found[HEAD_WEIGHT].shape[-1:] if HEAD_WEIGHT in found else ()
        require(identity.features.get(POOLED, width) == width, HEAD_WEIGHT, width)
        count = len(identity.dataset.classes)
        require(identity.keeps_answers, HEAD_WEIGHT, width)
        wanted = {HEAD_WEIGHT: (count, *width), HEAD_BIAS: (count,)}
    for layer, shape in identity.features.items():
        names = norm_parameters(layer_of(layer))
        if is_before(layer) and names[0] in found:
            wanted |= dict.fromkeys(names, shape[:1])
    expected = tuple(OutputSpec(name, shape, "float32") for name, shape in wanted.items())
    require(identity.parameters == expected, "parameters", identity.parameters)


def require(holds: bool, name: str, value: object) -> None:
    """Raise `ValueError` with what a document says of something, where that cannot be."""
    if not holds:
        raise ValueError(f"{name} is {shown(value)}")
