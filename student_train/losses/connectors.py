"""Learned layers that bring a student's output to the shape of the teacher's."""

from __future__ import annotations

from torch import nn

from student_train.binding import Binding, Shape
from student_train.needs import LayerPair


def to_channels(student: Shape, teacher: Shape) -> nn.Module:
    """A linear map of channels, of vectors (D,) or maps (C, H, W); nothing where there are as many already."""
    if student[0] == teacher[0]:
        return nn.Identity()
    return nn.Linear(student[0], teacher[0]) if len(student) == 1 else nn.Conv2d(student[0], teacher[0], 1)


def resizing_layers(loss: str, binding: Binding, pair: LayerPair, student: Shape, teacher: Shape) -> list[nn.Module]:
    """A convolution to the teacher's shape, and its batch norm.

    Raises:
        InvalidInput: no convolution leads there.
    """
    convolution = resizing_convolution(student, teacher)
    if convolution is None:
        reason = "the teacher's map is larger, and not twice as large in both directions; choose other layers"
        raise binding.misfit(loss, reason, [pair])
    return [convolution, nn.BatchNorm2d(teacher[0])]


def resizing_convolution(student: Shape, teacher: Shape) -> nn.Module | None:
    """A convolution from maps of one shape (C, H, W) to another, or None where the sizes do not allow it.

    1x1 where the size stays, 3x3 with stride 2 to half, 4x4 transposed to double, and without padding to any
    smaller size: the regressors of the CRD benchmark's code.
    """
    (channels, height, width), (outputs, *size) = student, teacher
    if [height, width] == size:
        return nn.Conv2d(channels, outputs, 1)
    if [height, width] == [2 * side for side in size]:
        return nn.Conv2d(channels, outputs, 3, stride=2, padding=1)
    if [2 * height, 2 * width] == size:
        return nn.ConvTranspose2d(channels, outputs, 4, stride=2, padding=1)
    if height >= size[0] and width >= size[1]:
        return nn.Conv2d(channels, outputs, (1 + height - size[0], 1 + width - size[1]))
    return None
