"""SemCKD against similarities, association and errors written out with loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ground.errors import InvalidInput
from student_train.losses.semckd import SemCKD, association, semckd, similarities
from tests.student_train.losses.checks import (
    assert_finite,
    assert_gradient_is_right,
    assert_is_a_loss,
    binding_for,
    drawn,
    map_edges,
    signals_for,
)

# (samples, shapes of the compared maps, by student and teacher layer)
CASES = [
    (3, [[(2, 4, 4), (3, 2, 2)], [(2, 2, 2), (3, 2, 2)]]),
    (1, [[(2, 1, 1)]]),
    (4, [[(1, 2, 3), (2, 3, 2), (2, 1, 1)]]),
]


def maps_of(samples, shapes, seed):
    return [[drawn(seed + 10 * i + j, samples, *shape) for j, shape in enumerate(row)] for i, row in enumerate(shapes)]


@pytest.mark.parametrize(("samples", "shapes"), CASES)
def test_semckd_is_its_formula(samples, shapes):
    projected, targets = maps_of(samples, shapes, 0), maps_of(samples, shapes, 100)
    weights = drawn(7, samples, len(shapes), len(shapes[0])).softmax(dim=2)
    wanted = 0.0
    for sample in range(samples):
        for i, row in enumerate(shapes):
            for j, _ in enumerate(row):
                differences = (projected[i][j][sample] - targets[i][j][sample]).flatten().tolist()
                error = sum(value * value for value in differences) / len(differences)
                wanted += weights[sample, i, j].item() * error
    wanted /= samples * len(shapes)
    np.testing.assert_allclose(semckd(projected, targets, weights).item(), wanted, rtol=1e-12)
    first = projected[0][0]
    assert_gradient_is_right(lambda maps: semckd([[maps, *projected[0][1:]], *projected[1:]], targets, weights), first)
    assert_gradient_is_right(lambda w: semckd(projected, targets, w), weights)


@pytest.mark.parametrize("case", map_edges((2, 3, 3), (2, 3, 3)), ids=lambda case: case[0])
def test_semckd_is_finite_at_the_edges(case):
    _, student, teacher = case
    weights = torch.ones(len(student), 1, 1)
    assert_finite(lambda maps: semckd([[maps]], [[teacher]], weights), student)


def test_semckd_refuses_what_does_not_fit():
    maps = torch.zeros(2, 3, 4, 4)
    with pytest.raises(ValueError, match=r"weights are \(2, 1, 2\).*\(2, 1, 1\)"):
        semckd([[maps]], [[maps]], torch.ones(2, 1, 2))
    with pytest.raises(ValueError, match="as many targets"):
        semckd([[maps, maps]], [[maps]], torch.ones(2, 1, 2))
    with pytest.raises(ValueError, match="at least one"):
        semckd([], [], torch.ones(2, 1, 1))
    with pytest.raises(ValueError, match=r"\(2, 3, 2, 2\)"):
        semckd([[maps]], [[maps[:, :, :2, :2]]], torch.ones(2, 1, 1))


def test_association_is_a_softmax_over_the_teachers_layers():
    queries, keys = drawn(0, 3, 2, 4), drawn(1, 3, 5, 4)
    found = association(queries, keys)
    for sample in range(3):
        for i in range(2):
            powers = [
                math.exp(sum(a * b for a, b in zip(queries[sample, i], key, strict=True))) for key in keys[sample]
            ]
            np.testing.assert_allclose(found[sample, i], [power / sum(powers) for power in powers], rtol=1e-12)


@pytest.mark.parametrize("others", [2, 4, 6])
def test_similarities_are_inner_products_with_the_first_samples(others):
    maps = drawn(0, 4, 2, 3, 1)
    rows = maps.flatten(1).tolist()
    found = similarities(maps, others)
    assert found.shape == (4, others)
    for sample, row in enumerate(rows):
        for other in range(others):
            wanted = sum(a * b for a, b in zip(row, rows[other], strict=True)) if other < 4 else 0.0
            np.testing.assert_allclose(found[sample, other].item(), wanted, rtol=1e-12)


STUDENT = {"layer1": (2, 8, 8), "layer2": (3, 4, 4)}
TEACHER = {"layer1": (4, 4, 4), "layer2": (2, 4, 4), "layer3": (5, 2, 2)}
ALL = "layer1:layer1+layer2:layer2+layer2:layer3"


def bound(**settings) -> SemCKD:
    loss = SemCKD(**settings)
    torch.manual_seed(0)
    loss.bind(binding_for(STUDENT, TEACHER))
    return loss


def test_every_student_layer_meets_every_teacher_layer():
    loss = bound(layers=ALL, batch=8)
    assert loss.student_layers == ["layer1", "layer2"]
    assert loss.teacher_layers == ["layer1", "layer2", "layer3"]
    assert [projection[-1].out_channels for projection in loss.projections] == [4, 2, 5, 4, 2, 5]
    assert [projection[0].in_channels for projection in loss.projections] == [2, 2, 2, 3, 3, 3]


def test_the_class_puts_similarities_embeddings_and_projections_together():
    loss = bound(layers=ALL, batch=8).eval().double()
    assert loss.queries[0].layers[2].out_features == 8 // 4, "a quarter of the width, as released"
    signals = signals_for(binding_for(STUDENT, TEACHER))
    signals = type(signals)(signals.student.map(torch.Tensor.double), signals.teacher.map(torch.Tensor.double),
                            signals.labels, signals.index)  # fmt: skip
    ours, theirs = (
        [side.features[name] for name in names]
        for side, names in ((signals.student, loss.student_layers), (signals.teacher, loss.teacher_layers))
    )

    def embedded(embedding, maps):
        rows = maps.flatten(1) @ maps.flatten(1).T
        first, _, second = embedding.layers
        hidden = torch.cat([rows, torch.zeros(6, 2)], dim=1) @ first.weight.T + first.bias
        vector = hidden.clamp(min=0) @ second.weight.T + second.bias
        return vector / vector.square().sum(dim=1, keepdim=True).sqrt()

    wanted = 0.0
    for i, student in enumerate(ours):
        query = embedded(loss.queries[i], student)
        energies = [(query * embedded(loss.keys[j], teacher)).sum(dim=1) for j, teacher in enumerate(theirs)]
        shares = [energy.exp() / sum(other.exp() for other in energies) for energy in energies]
        for j, teacher in enumerate(theirs):
            side = min(student.shape[2], teacher.shape[2])
            small, target = (F.avg_pool2d(maps, maps.shape[2] // side) for maps in (student, teacher))
            error = (loss.projections[3 * i + j](small) - target).square().mean(dim=(1, 2, 3))
            wanted += (shares[j] * error).mean() / 2
    torch.testing.assert_close(loss(signals), wanted, rtol=1e-10, atol=0)


def test_semckd_is_a_loss_for_batches_of_any_size():
    binding = binding_for(STUDENT, TEACHER)
    assert_is_a_loss(SemCKD(), binding)
    assert_is_a_loss(SemCKD(layers=ALL, batch=4), binding)
    loss = bound()
    signals = signals_for(binding, batch=1)
    value = loss(signals)
    value.backward()
    assert value.isfinite()
    assert signals.student.features["layer2"].grad.isfinite().all()


def test_the_association_is_learned_by_both_sides():
    loss = bound(layers=ALL, batch=8)
    loss(signals_for(binding_for(STUDENT, TEACHER))).backward()
    for embedding in [*loss.queries, *loss.keys]:
        assert embedding.layers[0].weight.grad.abs().sum() > 0


def test_zero_maps_have_a_finite_gradient():
    loss, binding = bound(batch=8), binding_for(STUDENT, TEACHER)
    signals = signals_for(binding)
    student = {name: torch.zeros_like(maps).requires_grad_() for name, maps in signals.student.features.items()}
    signals = type(signals)(
        type(signals.student)(signals.student.logits, student), signals.teacher, signals.labels, signals.index
    )
    for embedding in [*loss.queries, *loss.keys]:
        for layer in embedding.layers[::2]:
            torch.nn.init.zeros_(layer.bias)
    loss(signals).backward()
    assert all(maps.grad.isfinite().all() for maps in student.values())
    assert all(parameter.grad.isfinite().all() for parameter in loss.parameters() if parameter.grad is not None)


def test_vectors_and_tiny_batches_are_refused():
    with pytest.raises(InvalidInput, match=r"semckd: .*\n.*student layer .*\n.*pooled +4 +pooled +6"):
        SemCKD(layers="pooled").bind(binding_for({"pooled": (4,)}, {"pooled": (6,)}))
    with pytest.raises(ValueError, match="batch must be at least 4"):
        SemCKD(batch=3)
