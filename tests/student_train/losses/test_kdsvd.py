"""KDSVD against numpy's singular vectors and its relations written out; its gradient where LAPACK's is not finite."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from ground.errors import InvalidInput
from student_train.losses.kdsvd import KDSVD, kdsvd, leading_vectors
from tests.student_train.losses.checks import (
    assert_finite,
    assert_gradient_is_right,
    assert_is_a_loss,
    binding_for,
    drawn,
    map_edges,
    signals_for,
)


def with_values(seed, channels, size, values, samples=2):
    """Maps whose singular values are given; the vectors are random."""
    rank, positions = len(values), size[0] * size[1]
    left = torch.linalg.qr(drawn(seed, samples, channels, rank))[0]
    right = torch.linalg.qr(drawn(seed + 1, samples, positions, rank))[0]
    return (left * torch.tensor(values, dtype=torch.float64) @ right.mT).view(samples, channels, *size)


def separated(seed, channels, size, samples=2):
    """Maps whose singular values are far apart."""
    values = [5.0 * 0.6**place for place in range(min(channels, math.prod(size)))]
    return with_values(seed, channels, size, values, samples)


# Channels of each layer, and sizes of the student's and the teacher's maps: more positions than channels, and fewer.
LAYERS = [(3, (4, 4), (2, 3)), (6, (2, 2), (4, 4)), (5, (1, 4), (2, 2))]


def layers(samples=2):
    places = enumerate(LAYERS)
    both = [
        (separated(10 * place, channels, ours, samples), separated(100 + 10 * place, channels, theirs, samples))
        for place, (channels, ours, theirs) in places
    ]
    return [student for student, _ in both], [teacher for _, teacher in both]


def slow_vectors(maps, count):
    """Right singular vectors of one sample's (positions, channels) matrix, as rows, and values."""
    channels = len(maps)
    _, values, rows = np.linalg.svd(maps.reshape(channels, -1).T, full_matrices=False)
    return rows[:count], values[:count]


def slow_matched(student, teacher, rank, spare):
    """Of one sample: entries of each matched pair of vectors."""
    candidates, _ = slow_vectors(student, rank + spare)
    targets, values = slow_vectors(teacher, rank)
    matched = []
    for target, value in zip(targets, values / np.linalg.norm(values), strict=True):
        target = target * np.sign(target[np.argmax(np.abs(target))])
        best = max(candidates, key=lambda candidate: abs(candidate @ target))
        matched.append((best * np.sign(best @ target) * value, target * value))
    return matched


def slow_kdsvd(student, teacher, rank=1, spare=3):
    total, samples = 0.0, len(student[0])
    for sample in range(samples):
        pairs = zip(student, teacher, strict=True)
        found = [slow_matched(ours[sample].numpy(), theirs[sample].numpy(), rank, spare) for ours, theirs in pairs]
        for layer in range(len(found) - 1):
            for (ours, theirs), (our_next, their_next) in zip(found[layer], found[layer + 1], strict=True):
                for i in range(len(ours)):
                    for j in range(len(our_next)):
                        relation = math.exp(-((ours[i] - our_next[j]) ** 2) / 8)
                        wanted = math.exp(-((theirs[i] - their_next[j]) ** 2) / 8)
                        total += (relation - wanted) ** 2
    return total / samples


@pytest.mark.parametrize(("rank", "spare"), [(1, 3), (2, 1), (1, 0), (3, 2)])
def test_kdsvd_is_its_relations(rank, spare):
    student, teacher = layers()
    wanted = slow_kdsvd(student, teacher, rank, spare)
    assert wanted > 1e-4
    np.testing.assert_allclose(kdsvd(student, teacher, rank, spare).item(), wanted, rtol=1e-8)


@pytest.mark.parametrize(("rank", "spare"), [(1, 3), (2, 1)])
def test_its_gradient_is_right_where_singular_values_are_apart(rank, spare):
    student, teacher = layers(samples=1)
    assert_gradient_is_right(lambda *ours: kdsvd(ours, teacher, rank, spare), *student)


@pytest.mark.parametrize("case", LAYERS, ids=str)
def test_the_vectors_and_their_gradient_are_those_of_a_singular_value_decomposition(case):
    channels, size, _ = case
    maps = separated(3, channels, size).requires_grad_()
    values, vectors = leading_vectors(maps, 3)
    _, wanted_values, rows = torch.linalg.svd(maps.flatten(2).mT, full_matrices=False)
    wanted = rows.mT[:, :, :3]
    signs = (vectors * wanted).sum(dim=1, keepdim=True).sign().detach()
    norms = torch.linalg.vector_norm(maps.flatten(1), dim=1, keepdim=True)
    torch.testing.assert_close(values, (wanted_values[:, :3] / norms).detach())
    torch.testing.assert_close(vectors, wanted * signs)
    weights = drawn(9, *vectors.shape)
    (gradient,) = torch.autograd.grad((vectors * weights).sum(), maps, retain_graph=True)
    (theirs,) = torch.autograd.grad((wanted * signs * weights).sum(), maps)
    torch.testing.assert_close(gradient, theirs)


@pytest.mark.parametrize("size", [(4, 4), (2, 2)])
def test_kdsvd_does_not_depend_on_the_signs_that_lapack_chooses(monkeypatch, size):
    student = [separated(0, 6, size), separated(10, 5, size)]
    teacher = [separated(20, 6, size), separated(30, 5, size)]
    before = kdsvd(student, teacher, rank=2)
    eigh, calls = torch.linalg.eigh, []

    def flipped(matrices):
        values, vectors = eigh(matrices)
        calls.append(1)
        return values, vectors * drawn(len(calls), len(vectors), 1, vectors.shape[2]).sign()

    monkeypatch.setattr(torch.linalg, "eigh", flipped)
    torch.testing.assert_close(kdsvd(student, teacher, rank=2), before)
    assert calls


def test_kdsvd_ignores_scale_and_the_order_of_positions():
    student, teacher = layers()
    changed = [maps.flip(2, 3) * 7 for maps in student]
    torch.testing.assert_close(kdsvd(changed, teacher), kdsvd(student, teacher))


def test_kdsvd_is_zero_for_equal_inputs():
    maps = [drawn(0, 4, 5, 3, 3).float(), drawn(1, 4, 6, 2, 2).float()]
    assert kdsvd(maps, [tensor.clone() for tensor in maps], rank=2).item() < 1e-6


def test_missing_vectors_are_zero():
    values, vectors = leading_vectors(with_values(0, 4, (3, 3), [2.0, 1.0]), 5)
    assert values.shape == (2, 5)
    assert vectors.shape == (2, 4, 5)
    assert (vectors[:, :, 2:] == 0).all()
    torch.testing.assert_close(values[0, :2], torch.tensor([2.0, 1.0], dtype=torch.float64) / 5**0.5)


SPECTRA = {
    "all equal": [1.0, 1.0, 1.0, 1.0],
    "leading two equal": [2.0, 2.0, 1.0, 0.5],
    "nearly equal": [1.0, 1.0 - 1e-7, 1.0 - 2e-7, 0.1],
    "rank one": [1.0],
    "tiny": [1e-20, 1e-21],
}


@pytest.mark.parametrize("size", [(4, 4), (2, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("values", SPECTRA.values(), ids=SPECTRA)
def test_kdsvd_and_its_gradient_are_finite_where_singular_values_meet(values, dtype, size):
    student = [with_values(seed, 6, size, values).to(dtype) for seed in (0, 10)]
    teacher = [with_values(seed, 6, size, values).to(dtype) for seed in (20, 30)]
    assert_finite(lambda *ours: kdsvd(ours, teacher, rank=2), *student)


def test_the_gradient_is_bounded_where_singular_values_meet():
    sizes = []
    for gap in (1e-3, 1e-5, 1e-7, 0.0):
        maps = with_values(0, 4, (4, 4), [1.0, 1.0 - gap, 0.5, 0.2]).requires_grad_()
        _, vectors = leading_vectors(maps, 1)
        (gradient,) = torch.autograd.grad((vectors * drawn(5, *vectors.shape)).sum(), maps)
        sizes.append(gradient.abs().max().item())
    assert max(sizes) < 1e3
    # Exactly equal ones turn into one another in no direction more than in any other.
    assert sizes[3] < sizes[0]


def test_a_diverged_student_gives_nan_instead_of_an_error_from_lapack():
    teacher = [drawn(0, 2, 3, 2, 2), drawn(1, 2, 3, 2, 2)]
    assert kdsvd([teacher[0] * math.nan, teacher[1]], teacher).isnan()
    assert kdsvd([teacher[0], teacher[1] * math.inf], teacher).isnan()


@pytest.mark.parametrize(
    "case", map_edges((3, 4, 4), (3, 2, 2)) + map_edges((6, 2, 2), (6, 3, 3)), ids=lambda case: case[0]
)
def test_kdsvd_is_finite_at_the_edges(case):
    _, student, teacher = case
    assert_finite(lambda maps: kdsvd([maps, maps.flip(1)], [teacher, teacher.flip(1)], rank=2), student)


@pytest.mark.parametrize(
    ("student", "teacher", "reason"),
    [
        ([(2, 3, 4, 4)], [(2, 3, 4, 4)], "two at least; got 1 and 1"),
        ([(2, 3, 4, 4)] * 2, [(2, 3, 4, 4)] * 3, "got 2 and 3"),
        ([(2, 3, 4, 4)] * 2, [(2, 4, 4, 4)] * 2, "channels must be the same"),
        ([(2, 3, 4, 4)] * 2, [(1, 3, 4, 4)] * 2, "channels must be the same"),
        ([(2, 3)] * 2, [(2, 3)] * 2, "maps"),
    ],
)
def test_kdsvd_refuses_layers_that_do_not_fit(student, teacher, reason):
    with pytest.raises(ValueError, match=reason):
        kdsvd([torch.zeros(shape) for shape in student], [torch.zeros(shape) for shape in teacher])


@pytest.mark.parametrize("setting", [{"rank": 0}, {"spare": -1}])
def test_kdsvd_refuses_settings_out_of_range(setting):
    maps = [torch.zeros(2, 3, 2, 2)] * 2
    with pytest.raises(ValueError, match=next(iter(setting))):
        kdsvd(maps, maps, **setting)
    with pytest.raises(ValueError, match=next(iter(setting))):
        KDSVD(**setting)


STUDENT = {"layer1": (3, 8, 8), "layer2": (6, 4, 4), "layer3": (7, 2, 2)}


def test_kdsvd_is_a_loss_over_consecutive_maps():
    binding = binding_for(STUDENT, STUDENT | {"layer2": (6, 8, 8)})
    value, signals = assert_is_a_loss(KDSVD(), binding), signals_for(binding)
    ours, theirs = zip(*(signals.pair(name, name) for name in STUDENT), strict=True)
    torch.testing.assert_close(value, kdsvd(ours, theirs).detach())
    assert_is_a_loss(KDSVD(layers="layer1+layer3", rank=2, spare=0), binding)


@pytest.mark.parametrize(
    ("layers", "teacher", "reason"),
    [
        ("stages", STUDENT | {"layer1": (6, 8, 8)}, "as many channels"),
        ("layer1", STUDENT, "two at least"),
        ("layer1+logits", STUDENT, "must be maps"),
    ],
)
def test_kdsvd_refuses_layers_with_a_table(layers, teacher, reason):
    with pytest.raises(InvalidInput, match=rf"kdsvd: .*{reason}.*\n.*student layer .*\n.*layer1 +3 x 8 x 8"):
        KDSVD(layers=layers).bind(binding_for(STUDENT, teacher))
