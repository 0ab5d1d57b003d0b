"""FSP against its matrices, written out entry by entry."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ground.errors import InvalidInput
from student_train.losses.fsp import FSP, fsp
from tests.student_train.losses.checks import (
    assert_finite,
    assert_gradient_is_right,
    assert_is_a_loss,
    binding_for,
    drawn,
    map_edges,
    signals_for,
)

# Two maps of the student, two of the teacher.
SHAPES = [
    ((2, 3, 4, 4), (2, 5, 4, 4), (2, 3, 4, 4), (2, 5, 4, 4)),
    ((3, 2, 4, 4), (3, 3, 2, 2), (3, 2, 8, 8), (3, 3, 2, 2)),
    ((1, 1, 2, 2), (1, 4, 6, 4), (1, 1, 1, 1), (1, 4, 1, 1)),
    ((2, 2, 2, 6), (2, 2, 4, 3), (2, 2, 3, 3), (2, 2, 3, 3)),
]


def slow_matrix(first, second):
    height, width = np.minimum(first.shape[1:], second.shape[1:])

    def pooled(maps):
        channels, rows, columns = maps.shape
        return maps.reshape(channels, height, rows // height, width, columns // width).mean(axis=(2, 4))

    first, second = pooled(first), pooled(second)
    matrix = np.zeros((len(first), len(second)))
    for i in range(len(first)):
        for j in range(len(second)):
            products = [first[i, y, x] * second[j, y, x] for y in range(height) for x in range(width)]
            matrix[i, j] = sum(products) / len(products)
    return matrix


def slow_fsp(maps):
    ours, our_next, theirs, their_next = (tensor.numpy() for tensor in maps)
    gaps = [slow_matrix(ours[b], our_next[b]) - slow_matrix(theirs[b], their_next[b]) for b in range(len(ours))]
    return np.mean(np.square(gaps))


@pytest.mark.parametrize("shapes", SHAPES)
def test_fsp_is_its_matrices(shapes):
    maps = [drawn(seed, *shape) for seed, shape in enumerate(shapes)]
    first, second, *theirs = maps
    np.testing.assert_allclose(fsp((first, second), tuple(theirs)).item(), slow_fsp(maps), rtol=1e-10)
    assert_gradient_is_right(lambda *ours: fsp(ours, tuple(theirs)), first, second)


def test_fsp_is_zero_for_equal_inputs():
    pair = drawn(0, 3, 2, 4, 4).float(), drawn(1, 3, 3, 2, 2).float()
    assert fsp(pair, (pair[0].clone(), pair[1].clone())).item() == 0


@pytest.mark.parametrize("case", map_edges((3, 4, 4), (3, 2, 2)), ids=lambda case: case[0])
def test_fsp_is_finite_at_the_edges(case):
    _, student, teacher = case
    assert_finite(lambda maps: fsp((maps, maps), (teacher, teacher)), student)


@pytest.mark.parametrize(
    "shapes",
    [
        ((2, 3, 4, 4), (2, 5, 4, 4), (2, 3, 4, 4), (2, 6, 4, 4)),
        ((2, 3, 4, 4), (2, 5, 4, 4), (1, 3, 4, 4), (1, 5, 4, 4)),
    ],
)
def test_fsp_refuses_other_channels_and_batches(shapes):
    first, second, third, fourth = map(torch.zeros, shapes)
    with pytest.raises(ValueError, match="FSP matrices"):
        fsp((first, second), (third, fourth))


@pytest.mark.parametrize("shapes", [((2, 3, 4, 4), (3, 3, 4, 4)), ((2, 3), (2, 3))])
def test_fsp_refuses_pairs_that_are_no_maps_of_one_batch(shapes):
    first, second = map(torch.zeros, shapes)
    with pytest.raises(ValueError, match="maps of a pair"):
        fsp((first, second), (first, second))


SHAPES_OF_ONE = {"stem": (2, 8, 8), "layer1": (3, 8, 8), "layer2": (4, 4, 4)}


def test_fsp_is_a_loss_over_consecutive_maps():
    binding = binding_for(SHAPES_OF_ONE, {"stem": (2, 4, 4), "layer1": (3, 8, 8), "layer2": (4, 2, 2)})
    value, signals = assert_is_a_loss(FSP(), binding), signals_for(binding)
    maps = [signals.pair(name, name) for name in ("stem", "layer1", "layer2")]
    steps = [fsp((maps[i][0], maps[i + 1][0]), (maps[i][1], maps[i + 1][1])) for i in range(2)]
    torch.testing.assert_close(value, sum(steps).detach())
    assert_is_a_loss(FSP(layers="stages"), binding)


@pytest.mark.parametrize(
    ("layers", "teacher", "reason"),
    [
        ("maps", SHAPES_OF_ONE | {"layer1": (6, 8, 8)}, "as many channels"),
        ("layer1", SHAPES_OF_ONE, "two at least"),
        ("layer1+logits", SHAPES_OF_ONE, "must be maps"),
    ],
)
def test_fsp_refuses_layers_with_a_table(layers, teacher, reason):
    with pytest.raises(InvalidInput, match=rf"fsp: .*{reason}.*\n.*student layer .*\n(.*\n)?.*layer1 +3 x 8 x 8"):
        FSP(layers=layers).bind(binding_for(SHAPES_OF_ONE, teacher))
