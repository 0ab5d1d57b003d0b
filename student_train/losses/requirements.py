"""What losses require of the outputs they are bound to: a class lists its own in `requires`.

Each raises `Binding.misfit` where they do not fit, with a table of those in the way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from student_train.binding import Binding, Shape
from student_train.needs import LayerPair

# Whose, for the message; the facts; (student's, teacher's) names of the loss's outputs.
Requirement = Callable[[str, Binding, Sequence[LayerPair]], None]

_MAPS = "both must be maps of channels x height x width; choose other layers"


def are_maps(loss: str, binding: Binding, pairs: Sequence[LayerPair]) -> None:
    """All must be maps (C, H, W)."""
    _require(loss, binding, pairs, lambda *both: all(len(shape) == 3 for shape in both), _MAPS)


def are_vectors_or_maps(loss: str, binding: Binding, pairs: Sequence[LayerPair]) -> None:
    """All must be vectors (D,) or maps (C, H, W)."""
    reason = "both must be vectors or maps; choose other outputs"
    _require(loss, binding, pairs, lambda *both: all(len(shape) in (1, 3) for shape in both), reason)


def are_of_one_kind(loss: str, binding: Binding, pairs: Sequence[LayerPair]) -> None:
    """Both of a pair must be vectors, or both maps."""
    reason = "both must be maps, or both vectors; choose other layers"
    _require(loss, binding, pairs, lambda ours, theirs: len(ours) == len(theirs) and len(ours) in (1, 3), reason)


def have_equal_channels(loss: str, binding: Binding, pairs: Sequence[LayerPair]) -> None:
    """All must be maps, of as many channels in both networks."""
    shapes = binding.shapes(pairs)
    # With all layers in the table, since each is related to its neighbours.
    if any(len(shape) != 3 for both in shapes for shape in both):
        raise binding.misfit(loss, _MAPS, pairs)
    if any(student[0] != teacher[0] for student, teacher in shapes):
        reason = "student and teacher must have as many channels in each; choose other layers or networks of one width"
        raise binding.misfit(loss, reason, pairs)


def are_consecutive(loss: str, binding: Binding, pairs: Sequence[LayerPair]) -> None:
    """There must be two at least: a single layer has no neighbour."""
    if len(pairs) < 2:
        raise binding.misfit(loss, "it relates one layer to the next and needs two at least; name more", pairs)


def is_one_output(reason: str) -> Requirement:
    """There must be a single pair; the reason says what to give."""

    def require(loss: str, binding: Binding, pairs: Sequence[LayerPair]) -> None:
        if len(pairs) != 1:
            raise binding.misfit(loss, reason, pairs)

    return require


def has_other_classes(loss: str, binding: Binding, pairs: Sequence[LayerPair]) -> None:
    """There must be two classes at least."""
    if binding.num_classes < 2:
        raise binding.misfit(loss, "there must be another class besides the target", pairs)


def _require(
    loss: str, binding: Binding, pairs: Sequence[LayerPair], fits: Callable[[Shape, Shape], bool], reason: str
) -> None:
    others = [pair for pair, shapes in zip(pairs, binding.shapes(pairs), strict=True) if not fits(*shapes)]
    if others:
        raise binding.misfit(loss, reason, others)
