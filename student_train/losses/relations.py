"""What losses on relations share: inputs of which only the number of samples must match, and refusals of layers."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from student_train.binding import Binding
from student_train.losses.tensors import raised
from student_train.needs import LayerPair


def same_batch(
    student: Tensor, teacher: Tensor, what: str, dimensions: int | None = None, *, channels: bool = False
) -> tuple[Tensor, Tensor]:
    """Both raised, after checking that they are of as many samples.

    Args:
        what: what they are, for the message, as "maps (samples, channels, height, width)".
        dimensions: how many each must have; None for at least two, not necessarily as many.
        channels: whether the second dimension must match too.

    Raises:
        ValueError: they do not fit.
    """
    leading = 2 if channels else 1
    fits = student.shape[:leading] == teacher.shape[:leading] and all(
        tensor.dim() >= 2 if dimensions is None else tensor.dim() == dimensions for tensor in (student, teacher)
    )
    if not fits:
        wanted = "number of samples and of channels" if channels else "number of samples"
        raise ValueError(
            f"the student's {what} are {tuple(student.shape)}, the stored ones of the teacher {tuple(teacher.shape)}; "
            f"the {wanted} must be the same in both, and the dimensions must be as named"
        )
    student, teacher = raised(student, teacher)
    return student, teacher


def require_same_channels(loss: str, binding: Binding, pairs: Sequence[LayerPair]) -> None:
    """Raise `Binding.misfit` unless all of them are maps, of as many channels in both networks."""
    shapes = binding.shapes(pairs)
    # With all layers in the table, since each is related to its neighbours.
    if any(len(shape) != 3 for both in shapes for shape in both):
        raise binding.misfit(loss, "both must be maps of channels x height x width; choose other layers", pairs)
    if any(student[0] != teacher[0] for student, teacher in shapes):
        reason = "student and teacher must have as many channels in each; choose other layers or networks of one width"
        raise binding.misfit(loss, reason, pairs)


def require_consecutive(loss: str, binding: Binding, pairs: Sequence[LayerPair]) -> None:
    """Raise `Binding.misfit` for a single layer, which has no neighbour."""
    if len(pairs) < 2:
        raise binding.misfit(loss, "it relates one layer to the next and needs two at least; name more", pairs)
