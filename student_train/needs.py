"""What a loss needs of student, teacher and store, declared before anything is loaded."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ground.errors import InvalidInput, UnknownName
from ground.layers import BEFORE, LOGITS, STEM, is_before, is_stage, layer_of

STAGES, MAPS = "stages", "maps"
LayerPair = tuple[str, str]
_NUMBERED = re.compile(rf"layer([0-9]{{1,3}})({re.escape(BEFORE)})?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """What a loss needs.

    Args:
        outputs: of student and teacher, paired: `logits`, `pooled`, `last` or layer names with + between, as
            "logits+layer2". `layer2:layer3` pairs a student's layer with another one of the teacher. `layer2` is the
            second stage of a network that names its stages otherwise. `stages` is every stage that both have, or where
            they share no name the last ones of both; `maps` the stem too, `stages.pre` their pre-activations. Empty: no
            teacher.
        head: the teacher's last layer.
        norms: scale and shift of the batch norms before the outputs' pre-activations.
        labels: the class of every single sample; differences between samples have none.
        targets: labels in a form that differences have too; either way every row must have one.
        index: which row of the store a sample is; differences have none either.
        views: all stored views of an image in one batch.
    """

    outputs: str = ""
    head: bool = False
    norms: bool = False
    labels: bool = False
    targets: bool = False
    index: bool = False
    views: bool = False

    @property
    def comparable(self) -> bool:
        """Whether differences between samples can give it."""
        return not (self.labels or self.index or self.views)

    @property
    def reads_labels(self) -> bool:
        """Whether it cannot do with images that have no label."""
        return self.labels or self.targets

    @property
    def answers(self) -> bool:
        """Whether what the teacher answers over the classes is read: its logits, or what a store keeps of them."""
        return any(item.rpartition(":")[2] == LOGITS for item in self.outputs.split("+"))

    @property
    def teacher(self) -> bool:
        """Whether any answer of the teacher is involved."""
        return bool(self.outputs)

    def pairs(self, student: Sequence[str], teacher: Sequence[str]) -> tuple[LayerPair, ...]:
        """(student's, teacher's) output names, in order.

        Args:
            student, teacher: layer names that either can give.

        Raises:
            UnknownName: one of them has no such layer.
            InvalidInput: they have no layers of that kind in common.
        """
        pairs: list[LayerPair] = []
        for item in filter(None, self.outputs.split("+")):
            group = _group(item, student, teacher)
            pairs += [_named(item, student, teacher)] if group is None else group
        if self.outputs and not pairs:
            raise InvalidInput(f"{self.outputs!r} names no layer; give one, or several with + between")
        return tuple(dict.fromkeys(pairs))

    def describe(self) -> str:
        """For a table: outputs, then what else."""
        flags = {"head": "teacher/head", "norms": "teacher/norm", "labels": "labels", "index": "sample index"}
        flags |= {"views": "several views"}
        return ", ".join(
            [*filter(None, [self.outputs]), *(text for name, text in flags.items() if getattr(self, name))]
        )


def _group(item: str, student: Sequence[str], teacher: Sequence[str]) -> list[LayerPair] | None:
    kind = layer_of(item)
    if kind not in (STAGES, MAPS):
        return None
    ours, theirs = (
        [name for name in known if is_stage(layer_of(name)) and is_before(name) == is_before(item)]
        for known in (student, teacher)
    )
    stages = [(name, name) for name in ours if name in theirs]
    if not stages:
        # Networks of two libraries: their last stages have seen the same share of the image.
        count = min(len(ours), len(theirs))
        stages = list(zip(ours[len(ours) - count :], theirs[len(theirs) - count :], strict=True))
    if kind == MAPS and STEM in student and STEM in teacher:
        stages.insert(0, (STEM, STEM))
    if not stages:
        raise InvalidInput(f"student or teacher has no {item}; pair layers, as layers=layer2:layer3")
    return stages


def _named(item: str, student: Sequence[str], teacher: Sequence[str]) -> LayerPair:
    ours, colon, theirs = item.partition(":")
    return (
        _known_as(ours, student, "student"),
        _known_as(theirs if colon else ours, teacher, "teacher"),
    )


def _known_as(name: str, known: Sequence[str], whose: str) -> str:
    """A network's own name of a layer: of its N-th stage for layerN, where it has no layer that is called so."""
    if name == LOGITS or name in known:
        return name
    stages, number = [layer for layer in known if is_stage(layer)], _NUMBERED.fullmatch(name)
    if number is not None and 1 <= int(number[1]) <= len(stages):
        named = stages[int(number[1]) - 1] + (number[2] or "")
        if named in known:
            return named
    raise UnknownName(f"layer of the {whose}", name, [LOGITS, *known])


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a method needs, for one student and one teacher.

    Args:
        student: layer names of the student.
        teacher: output names of the teacher; empty for methods without one.
        parameters: whether the teacher's stored parameters are needed.
        rest: whether images are wanted that the teacher was not asked about.
        rest_labels: whether the labels of some of those are learned from.
        unstreamable: why rows that come in a stream do not do and what to do, or None where they do.
    """

    student: tuple[str, ...]
    teacher: tuple[str, ...]
    parameters: bool
    unstreamable: str | None = None
    rest: bool = False
    rest_labels: bool = False
