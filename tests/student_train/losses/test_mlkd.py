"""MLKD's three levels, its masks and its views against their sums written out."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from ground.errors import InvalidInput
from student_train.losses.kd import kd
from student_train.losses.mlkd import MLKD, batch_alignment, class_alignment, instance_alignment, least_sure, mlkd
from tests.student_train.losses.checks import (
    Largest,
    assert_finite,
    assert_gradient_is_right,
    assert_is_a_loss,
    binding_for,
    drawn,
    logit_edges,
    signals_for,
)

SHAPES = [(1, 2), (4, 3), (5, 7)]
LEVELS = {"instance": instance_alignment, "batch": batch_alignment, "class": class_alignment}


def probabilities(logits: torch.Tensor, temperature: float = 1.0) -> list[list[float]]:
    rows = []
    for row in logits.tolist():
        powers = [math.exp((z - max(row)) / temperature) for z in row]
        rows.append([power / sum(powers) for power in powers])
    return rows


def instance_by_formula(student, teacher, temperature, weights) -> float:
    total = 0.0
    for i, (ours, theirs) in enumerate(
        zip(probabilities(student, temperature), probabilities(teacher, temperature), strict=True)
    ):
        total += weights[i] * sum(p * math.log(p / q) for p, q in zip(theirs, ours, strict=True))
    return temperature**2 * total / len(student)


def batch_by_formula(student, teacher, temperature, weights) -> float:
    ours, theirs = probabilities(student, temperature), probabilities(teacher, temperature)
    samples, total = range(len(student)), 0.0
    for i in samples:
        for j in samples:
            inner = [sum(a * b for a, b in zip(p[i], p[j], strict=True)) for p in (ours, theirs)]
            total += weights[i] * (inner[0] - inner[1]) ** 2
    return total / len(student)


def class_by_formula(student, teacher, temperature, weights) -> float:
    ours, theirs = probabilities(student, temperature), probabilities(teacher, temperature)
    classes, total = range(student.shape[1]), 0.0
    for j in classes:
        for k in classes:
            inner = [sum(row[j] * row[k] for row in p) for p in (ours, theirs)]
            total += weights[j] * (inner[0] - inner[1]) ** 2
    return total / student.shape[1]


BY_FORMULA = {"instance": instance_by_formula, "batch": batch_by_formula, "class": class_by_formula}


def masks_by_formula(teacher) -> tuple[list[float], list[float]]:
    probs = np.array(probabilities(teacher))
    confidence, mass = probs.max(axis=1), probs.sum(axis=0)
    kept = [values <= np.percentile(values, 50) for values in (confidence, mass)]
    return kept[0].astype(float).tolist(), kept[1].astype(float).tolist()


def mlkd_by_formula(student, teacher, views, temperatures, select) -> float:
    images = len(student) // views
    weak, strong = (student[:images], teacher[:images]), (student[images:], teacher[images:])
    samples, classes = masks_by_formula(weak[1])
    if not select:
        samples, classes = ([sum(mask) / len(mask)] * len(mask) for mask in (samples, classes))
    total = 0.0
    for temperature in temperatures:
        total += instance_by_formula(*weak, temperature, samples)
        total += batch_by_formula(*weak, temperature, samples)
        total += class_by_formula(*weak, temperature, classes)
        total += instance_by_formula(*strong, temperature, [1.0] * len(strong[0]))
    return total


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_each_level_is_its_sum_written_out(level, shape, temperature):
    student, teacher = drawn(0, *shape, scale=2), drawn(1, *shape, scale=2)
    rows = shape[1] if level == "class" else shape[0]
    weights = drawn(2, rows).abs()
    wanted = BY_FORMULA[level](student, teacher, temperature, weights.tolist())
    np.testing.assert_allclose(LEVELS[level](student, teacher, temperature, weights).item(), wanted, rtol=1e-9)
    wanted = BY_FORMULA[level](student, teacher, temperature, [1.0] * rows)
    np.testing.assert_allclose(LEVELS[level](student, teacher, temperature).item(), wanted, rtol=1e-9)


def test_the_instance_level_is_kd():
    student, teacher = drawn(0, 4, 5), drawn(1, 4, 5)
    torch.testing.assert_close(instance_alignment(student, teacher, 4.0), kd(student, teacher, 4.0))


@pytest.mark.parametrize("select", [False, True])
@pytest.mark.parametrize(("images", "views"), [(4, 2), (5, 2), (3, 3), (1, 2)])
def test_mlkd_is_the_sum_of_its_levels_over_views_and_temperatures(images, views, select):
    student, teacher = drawn(0, images * views, 6, scale=2), drawn(1, images * views, 6, scale=2)
    found = mlkd(student, teacher, views, select=select).item()
    wanted = mlkd_by_formula(student, teacher, views, [2, 3, 4, 5, 6], select)
    np.testing.assert_allclose(found, wanted, rtol=1e-9)
    found = mlkd(student, teacher, views, [1.5], select).item()
    np.testing.assert_allclose(found, mlkd_by_formula(student, teacher, views, [1.5], select), rtol=1e-9)


def test_the_released_masks_only_scale_what_is_summed_already():
    student, teacher = drawn(0, 4, 6), drawn(1, 4, 6)
    # As released: a number times a mask, then the mean.
    mask = torch.tensor(masks_by_formula(teacher)[0])
    released = (kd(student, teacher, 4.0) * mask).mean() + (batch_alignment(student, teacher, 4.0) * mask).mean()
    mask = torch.tensor(masks_by_formula(teacher)[1])
    released = released + (class_alignment(student, teacher, 4.0) * mask).mean()
    twice = mlkd(torch.cat([student, student]), torch.cat([teacher, teacher]), 2, [4.0])
    torch.testing.assert_close(twice - kd(student, teacher, 4.0), released.to(twice.dtype), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("shape", [(4, 6), (5, 7), (1, 3), (64, 10)])
def test_least_sure_is_the_half_at_or_below_the_median(shape):
    for seed in range(5):
        teacher = drawn(seed, *shape, scale=3)
        samples, classes = least_sure(teacher)
        assert (samples.tolist(), classes.tolist()) == masks_by_formula(teacher)
    equal_samples, _ = least_sure(torch.ones(4, 6))
    assert equal_samples.tolist() == [1.0] * 4


def test_selection_leaves_the_surest_samples_of_the_weak_view_to_the_levels_between_samples():
    teacher = torch.diag(torch.tensor([9.0, 1, 8, 2], dtype=torch.float64)).repeat(2, 1)
    student = drawn(0, 8, 4).requires_grad_()
    (gradient,) = torch.autograd.grad(
        instance_alignment(student[:4], teacher[:4], 4.0, least_sure(teacher[:4])[0]), student
    )
    assert gradient.abs().sum(dim=1).gt(0).tolist() == [False, True, False, True] + [False] * 4


@pytest.mark.parametrize("select", [False, True])
def test_its_gradient_is_right(select):
    teacher = drawn(1, 8, 5, scale=2)
    assert_gradient_is_right(lambda logits: mlkd(logits, teacher, 2, select=select), drawn(0, 8, 5, scale=2))


def test_equal_logits_are_zero_and_constants_are_ignored():
    student, teacher = drawn(0, 8, 5), drawn(1, 8, 5)
    assert mlkd(teacher.float(), teacher.float()).abs() < 1e-6
    torch.testing.assert_close(mlkd(student + 7, teacher - 3), mlkd(student, teacher))


def test_the_order_of_images_does_not_matter_as_long_as_views_stay_aligned():
    student, teacher = drawn(0, 8, 5), drawn(1, 8, 5)
    order = torch.tensor([2, 0, 3, 1])
    order = torch.cat([order, order + 4])
    torch.testing.assert_close(mlkd(student[order], teacher[order]), mlkd(student, teacher))
    # Which of the views comes first does.
    swapped = torch.arange(8).roll(4)
    assert (mlkd(student[swapped], teacher[swapped]) - mlkd(student, teacher)).abs() > 1e-3


@pytest.mark.parametrize("select", [False, True])
@pytest.mark.parametrize("edge", [*logit_edges(), *logit_edges(classes=1)], ids=lambda edge: edge[0])
def test_mlkd_is_finite_at_the_edges(edge, select):
    _, student, teacher, _ = edge
    student, teacher = student.repeat(2, 1), teacher.repeat(2, 1)
    assert_finite(lambda logits: mlkd(logits, teacher, 2, select=select), student)


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match=r"\(4, 4\).*\(4, 6\)"):
        mlkd(torch.zeros(4, 4), torch.zeros(4, 6))
    with pytest.raises(ValueError, match="5 rows do not hold 2 views of each image"):
        mlkd(torch.zeros(5, 4), torch.zeros(5, 4))
    with pytest.raises(ValueError, match="4 rows do not hold 1 views of each image"):
        mlkd(torch.zeros(4, 4), torch.zeros(4, 4), views=1)
    with pytest.raises(ValueError, match="temperature must be above 0"):
        class_alignment(torch.zeros(4, 4), torch.zeros(4, 4), 0)
    with pytest.raises(ValueError, match="temperatures must be numbers with"):
        MLKD(temperatures="4,2")
    with pytest.raises(ValueError, match="temperatures must be above 0"):
        MLKD(temperatures="4+0")
    with pytest.raises(InvalidInput, match=r"mlkd: .*the store holds one; build the store with --views 2 or more"):
        MLKD().bind(binding_for({}, {}, views=1))


@pytest.mark.parametrize("views", [2, 3])
def test_mlkd_is_a_loss_on_all_views_of_single_images(views):
    binding = binding_for({}, {}, views=views)
    loss = MLKD(temperatures="4+2", select=True)
    assert_is_a_loss(loss, binding)
    assert not loss.needs.comparable
    signals = signals_for(binding)
    said = signals.student.logits.double(), signals.teacher.logits.double()
    wanted = mlkd_by_formula(*said, views, [4, 2], True)
    np.testing.assert_allclose(loss(signals).item(), wanted, rtol=1e-4)


@pytest.mark.parametrize("near", [1.0, 1e-4])
def test_the_class_level_by_samples_is_the_one_by_classes(near):
    teacher, weights = 3 * drawn(0, 6, 40), torch.rand(40, dtype=torch.float64)
    student = teacher + near * drawn(1, 6, 40)
    ours, theirs = (torch.softmax(logits / 4, dim=1) for logits in (student, teacher))
    expected = (weights * (ours.T @ ours - theirs.T @ theirs).square().sum(dim=1)).mean()
    torch.testing.assert_close(class_alignment(student, teacher, 4.0, weights), expected, rtol=1e-9, atol=0)


def test_nothing_of_classes_by_classes_is_made():
    student, teacher = (drawn(seed, 4, 21841).float().requires_grad_(seed == 0) for seed in (0, 1))
    with Largest() as largest:
        mlkd(student, teacher, views=2).backward()
    assert largest.numbers <= 4 * 21841
