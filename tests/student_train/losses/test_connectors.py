"""The learned layers between a student's output and the teacher's: where they lead, and where none does."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from student_train.losses.connectors import resizing_convolution, to_channels


@pytest.mark.parametrize(
    ("student", "teacher", "kind"),
    [
        ((3,), (5,), nn.Linear),
        ((3, 4, 4), (5, 2, 2), nn.Conv2d),
        ((3,), (3,), nn.Identity),
        ((3, 4, 4), (3, 2, 2), nn.Identity),
    ],
)
def test_channels_are_mapped_where_they_differ(student, teacher, kind):
    layer = to_channels(student, teacher)
    assert type(layer) is kind
    assert layer(torch.zeros(2, *student)).shape == (2, teacher[0], *student[1:])


@pytest.mark.parametrize(
    ("size", "kind", "kernel", "stride", "padding"),
    [
        ((8, 6), nn.Conv2d, (1, 1), (1, 1), (0, 0)),
        ((4, 3), nn.Conv2d, (3, 3), (2, 2), (1, 1)),
        ((16, 12), nn.ConvTranspose2d, (4, 4), (2, 2), (1, 1)),
        ((5, 5), nn.Conv2d, (4, 2), (1, 1), (0, 0)),
        ((2, 2), nn.Conv2d, (7, 5), (1, 1), (0, 0)),
        ((4, 6), nn.Conv2d, (5, 1), (1, 1), (0, 0)),
    ],
)
def test_the_regressor_reaches_the_teachers_shape_as_in_the_benchmark(size, kind, kernel, stride, padding):
    convolution = resizing_convolution((3, 8, 6), (6, *size))
    assert convolution(torch.zeros(2, 3, 8, 6)).shape == (2, 6, *size)
    assert type(convolution) is kind
    assert (convolution.kernel_size, convolution.stride, convolution.padding) == (kernel, stride, padding)


@pytest.mark.parametrize(
    ("size", "reached"),
    [((32, 24), (8, 6)), ((9, 7), (8, 6)), ((16, 6), (8, 6)), ((8, 12), (8, 6)), ((4, 12), (4, 6)), ((28, 28), (8, 6))],
)
def test_where_the_teachers_map_is_larger_the_student_keeps_its_own_size(size, reached):
    convolution = resizing_convolution((3, 8, 6), (6, *size))
    assert convolution(torch.zeros(2, 3, 8, 6)).shape == (2, 6, *reached)
