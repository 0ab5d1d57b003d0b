"""VkD against normalisation and distance written out, and a projection that stays orthogonal."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
import torch
from torch import nn

from ground.errors import InvalidInput, UnknownName
from student_train.losses.vkd import NORMS, OrthogonalProjector, VkD, vkd
from tests.student_train.losses.checks import (
    assert_finite,
    assert_gradient_is_right,
    assert_is_a_loss,
    binding_for,
    drawn,
    map_edges,
    signals_for,
)

SHAPES = [(4, 3), (5, 1), (2, 6), (1, 3)]


def slow_normalised(values, eps):
    mean = sum(values) / len(values)
    variance = sum((value - mean) ** 2 for value in values) / len(values)
    return [(value - mean) / math.sqrt(variance + eps) for value in values]


def slow_vkd(student, teacher, norm):
    if norm == "sample":
        targets = [slow_normalised(row, 1e-5) for row in teacher.tolist()]
    else:
        columns = [slow_normalised(column, 1e-4) for column in teacher.T.tolist()]
        targets = [list(row) for row in zip(*columns, strict=True)]
    total = 0.0
    for row, target in zip(student.tolist(), targets, strict=True):
        for a, b in zip(row, target, strict=True):
            total += 0.5 * (a - b) ** 2 if abs(a - b) < 1 else abs(a - b) - 0.5
    return total / student.numel()


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("shape", SHAPES)
def test_vkd_is_its_formula(shape, norm):
    student, teacher = drawn(0, *shape, scale=2), drawn(1, *shape, scale=5)
    np.testing.assert_allclose(vkd(student, teacher, norm).item(), slow_vkd(student, teacher, norm), rtol=1e-10)
    assert_gradient_is_right(lambda vectors: vkd(vectors, teacher, norm), student)


def test_a_sample_is_normalised_on_its_own_by_default():
    student, teacher = drawn(0, 4, 3), drawn(1, 4, 3)
    assert VkD().norm == "sample"
    assert vkd(student, teacher).item() == pytest.approx(slow_vkd(student, teacher, "sample"))
    torch.testing.assert_close(vkd(student, teacher * 50 + 7), vkd(student, teacher), rtol=1e-4, atol=0)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("case", map_edges((5,), (5,)), ids=lambda case: case[0])
def test_vkd_is_finite_at_the_edges(case, norm):
    _, student, teacher = case
    assert_finite(lambda vectors: vkd(vectors, teacher, norm), student)


def test_vkd_refuses_other_shapes_and_norms():
    with pytest.raises(ValueError, match=r"\(2, 3\).*\(2, 4\)"):
        vkd(torch.zeros(2, 3), torch.zeros(2, 4))
    with pytest.raises(ValueError, match="norm must be one of"):
        vkd(torch.zeros(2, 3), torch.zeros(2, 3), norm="whitened")
    with pytest.raises(UnknownName, match="batch"):
        VkD(norm="batches")


WIDTHS = [(3, 7), (5, 5), (6, 2), (1, 1), (1, 4), (4, 1)]


def moved(inputs: int, outputs: int) -> OrthogonalProjector:
    torch.manual_seed(0)
    projector = OrthogonalProjector(inputs, outputs).double()
    with torch.no_grad():
        # The base was drawn in float32.
        projector.base.copy_(torch.linalg.qr(projector.base).Q)
        projector.motion.copy_(drawn(1, *projector.motion.shape, scale=2))
    return projector


@pytest.mark.parametrize(("inputs", "outputs"), WIDTHS)
def test_the_matrix_is_the_cayley_transform_of_the_base(inputs, outputs):
    projector = moved(inputs, outputs)
    base, motion = projector.base.numpy(), projector.motion.detach().numpy()
    skew = motion @ base.T - base @ motion.T
    eye = np.eye(len(base))
    wanted = np.linalg.inv(eye - skew / 2) @ (eye + skew / 2) @ base
    found = projector.matrix.detach().numpy()
    np.testing.assert_allclose(found.T if outputs < inputs else found, wanted, atol=1e-10)
    assert found.shape == (outputs, inputs)


@pytest.mark.parametrize(("inputs", "outputs"), WIDTHS)
def test_columns_are_orthonormal_or_rows_where_the_student_is_wider(inputs, outputs):
    matrix = moved(inputs, outputs).matrix.detach()
    gram = matrix @ matrix.T if outputs < inputs else matrix.T @ matrix
    torch.testing.assert_close(gram, torch.eye(min(inputs, outputs)).double(), atol=1e-9, rtol=0)


def test_lengths_and_angles_survive_the_projection():
    vectors = drawn(0, 6, 3)
    projected = moved(3, 8)(vectors).detach()
    torch.testing.assert_close(projected @ projected.T, vectors @ vectors.T)


def test_the_projection_has_the_right_gradient():
    projector, vectors, target = moved(3, 5), drawn(0, 4, 3), drawn(1, 4, 5)

    def formula(motion, vectors):
        projected = torch.func.functional_call(projector, {"motion": motion}, (vectors,))
        return (projected - target).square().mean()

    assert_gradient_is_right(formula, projector.motion.detach(), vectors)


@pytest.mark.parametrize(("inputs", "outputs"), [(16, 40), (40, 16)])
def test_training_with_weight_decay_learns_a_rotation_and_stays_orthogonal(inputs, outputs):
    torch.manual_seed(1)
    goal, projector = OrthogonalProjector(inputs, outputs), OrthogonalProjector(inputs, outputs)
    vectors = drawn(0, 200, inputs).float()
    targets = goal(vectors).detach()
    optimizer = torch.optim.SGD(projector.parameters(), lr=0.3, momentum=0.9, weight_decay=5e-4)
    losses = []
    for _ in range(100):
        loss = (projector(vectors) - targets).square().sum(dim=1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]
    matrix = projector.matrix.detach()
    gram = matrix @ matrix.T if outputs < inputs else matrix.T @ matrix
    torch.testing.assert_close(gram, torch.eye(min(inputs, outputs)), atol=1e-4, rtol=0)


SHAPES_OF_BOTH = {"pooled": (3,), "layer2": (6, 4, 4)}, {"pooled": (5,), "layer2": (2, 8, 8)}


def test_vkd_is_a_loss_on_any_output():
    binding = binding_for(*SHAPES_OF_BOTH)
    for on in ("pooled", "logits", "layer2", "pooled+layer2"):
        for norm in NORMS:
            loss = VkD(on=on, norm=norm)
            assert_is_a_loss(loss, binding)
            assert not loss.constrains_logits
    assert [tuple(project.matrix.shape) for project in loss.projectors] == [(5, 3), (2, 6)]


def test_maps_are_averaged_and_outputs_summed():
    binding = binding_for(*SHAPES_OF_BOTH)
    loss, signals = VkD(on="pooled+layer2", norm="batch"), signals_for(binding)
    loss.bind(binding)
    ours, theirs = signals.student.features, signals.teacher.features
    first, second = (project.matrix for project in loss.projectors)
    wanted = vkd(ours["pooled"] @ first.T, theirs["pooled"], "batch") + vkd(
        ours["layer2"].sum(dim=(2, 3)) / 16 @ second.T, theirs["layer2"].sum(dim=(2, 3)) / 64, "batch"
    )
    torch.testing.assert_close(loss(signals), wanted)


def test_saved_weights_are_plain_tensors_and_give_the_same_loss():
    binding, signals = binding_for(*SHAPES_OF_BOTH), signals_for(binding_for(*SHAPES_OF_BOTH))
    one, other = VkD(), VkD()
    for seed, loss in enumerate((one, other)):
        torch.manual_seed(seed)
        loss.bind(binding)
        nn.init.normal_(loss.projectors[0].motion)
    file = io.BytesIO()
    torch.save(one.state_dict(), file)
    file.seek(0)
    assert one(signals).item() != other(signals).item()
    other.load_state_dict(torch.load(file, weights_only=True))
    assert one(signals).item() == other(signals).item()


def test_what_is_no_vector_or_map_is_refused():
    with pytest.raises(InvalidInput, match=r"vkd: .*\n.*student layer .*\n.*layer1 +4 x 2 +layer1 +6"):
        VkD(on="layer1").bind(binding_for({"layer1": (4, 2)}, {"layer1": (6,)}))
