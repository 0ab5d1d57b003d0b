"""Learned layers that bring a student's output to the shape of the teacher's."""

from __future__ import annotations

from torch import nn

from student_train.binding import Shape


def to_channels(student: Shape, teacher: Shape) -> nn.Module:
    """A linear map of channels, of vectors (D,) or maps (C, H, W); nothing where there are as many already."""
    if student[0] == teacher[0]:
        return nn.Identity()
    return nn.Linear(student[0], teacher[0]) if len(student) == 1 else nn.Conv2d(student[0], teacher[0], 1)


def resizing_layers(student: Shape, teacher: Shape) -> list[nn.Module]:
    """A convolution to the teacher's channels and, as `resizing_convolution` says, size, and its batch norm."""
    return [resizing_convolution(student, teacher), nn.BatchNorm2d(teacher[0])]


def resizing_convolution(student: Shape, teacher: Shape) -> nn.Module:
    """A convolution from maps of one shape (C, H, W) to another's channels, and to its size where one leads there.

    1x1 where the size stays, 3x3 with stride 2 to half, 4x4 transposed to double, and without padding to any
    smaller size: the regressors of the CRD benchmark's code, which refuses all others. Where the teacher's map is
    larger in another way, the student's keeps its height or width, and the teacher's is to be average-pooled to what
    comes out (`pooled_like`), as that code does for AT and NST.
    """
    (channels, height, width), (outputs, *size) = student, teacher
    if [height, width] == [2 * side for side in size]:
        return nn.Conv2d(channels, outputs, 3, stride=2, padding=1)
    if [2 * height, 2 * width] == size:
        return nn.ConvTranspose2d(channels, outputs, 4, stride=2, padding=1)
    size = [min(height, size[0]), min(width, size[1])]
    return nn.Conv2d(channels, outputs, (1 + height - size[0], 1 + width - size[1]))
