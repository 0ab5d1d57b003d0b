"""Answers of some classes: the three rules for the rest, on both sides, against their formulas written out in NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from student_train.losses.kd import kd, kd_of_weights
from student_train.sparse_answers import (
    LEAST,
    NOTHING,
    dense_weights,
    log_of,
    log_one_hot,
    one_hot,
    restricted,
    spread_student,
    spread_teacher,
)
from tests.student_train.losses.checks import assert_finite, assert_gradient_is_right, drawn

CASES = given(seed=st.integers(0, 1000), batch=st.integers(1, 4), kept=st.integers(1, 7), more=st.integers(0, 6))


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def top(logits: torch.Tensor, kept: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(ids, values) as a store has them: log-probabilities in falling order."""
    found = logits.log_softmax(dim=1).topk(kept, dim=1)
    return found.indices, found.values


def cells(logits: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Probabilities of the named classes, then that of all others: (B, k + 1)."""
    probs = softmax(logits)
    named = np.take_along_axis(probs, ids, axis=1)
    return np.concatenate([named, 1 - named.sum(axis=1, keepdims=True)], axis=1)


@CASES
def test_spread_shares_what_is_missing_evenly(seed, batch, kept, more):
    teacher = drawn(seed, batch, kept + more)
    ids, values = top(teacher, kept)
    found = spread_teacher(ids, values, kept + more).exp().numpy()
    expected = np.empty_like(found)
    for row, probs in enumerate(softmax(teacher.numpy())):
        named = ids[row].tolist()
        expected[row] = (1 - probs[named].sum()) / max(more, 1)
        expected[row, named] = probs[named]
    np.testing.assert_allclose(found, expected, atol=2e-7)


@CASES
def test_spread_leaves_the_student_its_named_classes_and_its_sum(seed, batch, kept, more):
    ids, _ = top(drawn(seed, batch, kept + more), kept)
    student = drawn(seed + 1, batch, kept + more)
    found = spread_student(student, ids).softmax(dim=1).numpy()
    expected = np.empty_like(found)
    for row, probs in enumerate(softmax(student.numpy())):
        named = ids[row].tolist()
        expected[row] = (1 - probs[named].sum()) / max(more, 1)
        expected[row, named] = probs[named]
    np.testing.assert_allclose(found, expected, atol=1e-12)


@CASES
def test_kd_of_what_is_spread_is_that_of_k_plus_one_cells(seed, batch, kept, more):
    """Written out over the cells; the classes within the last one add nothing, as they are equal on both sides."""
    more += 1
    teacher, student = drawn(seed, batch, kept + more), drawn(seed + 1, batch, kept + more)
    ids, values = top(teacher, kept)
    found = kd(spread_student(student, ids), spread_teacher(ids, values, kept + more), temperature=1.0)
    theirs, ours = cells(teacher.numpy(), ids.numpy()), cells(student.numpy(), ids.numpy())
    expected = (theirs * np.log(theirs / ours)).sum(axis=1).mean()
    np.testing.assert_allclose(found.item(), expected, atol=1e-6)


@CASES
def test_with_all_classes_named_nothing_is_missing(seed, batch, kept, more):
    teacher, student = drawn(seed, batch, kept + more), drawn(seed + 1, batch, kept + more)
    ids, values = top(teacher, kept + more)
    torch.testing.assert_close(spread_teacher(ids, values, kept + more), teacher.log_softmax(dim=1), rtol=0, atol=0)
    assert spread_student(student, ids) is student


def test_no_class_that_is_not_named_gets_more_than_one_that_is():
    """What is missing is 1 less a sum: where that is below the precision of float32, it is noise."""
    values = torch.tensor([[0.0, -80.0], [-1e-9, -12.0]])
    found = spread_teacher(torch.tensor([[1, 0], [2, 3]]), values, 1000)
    assert (found.amin(dim=1) <= values[:, 1]).all()
    assert found.isfinite().all()
    rest = found[1, 0].item()
    assert rest == pytest.approx(np.log(1.1920929e-07 / 998), abs=0.1)


@CASES
def test_renormalised_are_the_named_classes_alone(seed, batch, kept, more):
    teacher, student = drawn(seed, batch, kept + more), drawn(seed + 1, batch, kept + more)
    ids, values = top(teacher, kept)
    found = kd(restricted(student, ids), values, temperature=1.0)
    theirs, ours = cells(teacher.numpy(), ids.numpy())[:, :-1], cells(student.numpy(), ids.numpy())[:, :-1]
    theirs, ours = (side / side.sum(axis=1, keepdims=True) for side in (theirs, ours))
    np.testing.assert_allclose(found.item(), (theirs * np.log(theirs / ours)).sum(axis=1).mean(), atol=1e-12)
    torch.testing.assert_close(restricted(spread_teacher(ids, values, kept + more), ids), values)


@CASES
def test_zero_is_the_sum_over_the_named_classes_and_no_other(seed, batch, kept, more):
    teacher, student = drawn(seed, batch, kept + more), drawn(seed + 1, batch, kept + more)
    ids, values = top(teacher, kept)
    found = kd_of_weights(student, dense_weights(ids, values.exp(), kept + more))
    theirs, ours = cells(teacher.numpy(), ids.numpy())[:, :-1], cells(student.numpy(), ids.numpy())[:, :-1]
    np.testing.assert_allclose(found.item(), (theirs * np.log(theirs / ours)).sum(axis=1).mean(), atol=1e-12)


@given(seed=st.integers(0, 1000))
def test_weights_that_are_the_probabilities_give_kd(seed):
    student, teacher = drawn(seed, 5, 7), drawn(seed + 1, 5, 7)
    weights = teacher.softmax(dim=1)
    torch.testing.assert_close(kd_of_weights(student, weights), kd(student, teacher, temperature=1.0))


def gradient(student: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    leaf = student.clone().requires_grad_()
    (found,) = torch.autograd.grad(kd_of_weights(leaf, weights), leaf)
    return found


def test_the_gradient_of_a_sample_is_on_average_that_of_the_full_answer():
    """Exactly: every outcome of 3 draws from 4 classes, by its probability (RS-KD, Anshumann et al. 2025)."""
    student, probs = drawn(0, 1, 4), drawn(1, 1, 4).softmax(dim=1)
    mean = torch.zeros_like(student)
    for outcome in np.ndindex(4, 4, 4):
        draws = torch.tensor([outcome])
        ids, counts = draws.unique(return_counts=True)
        padded = torch.full((1, 3), -1).index_copy(1, torch.arange(len(ids)), ids[None])
        weights = torch.zeros(1, 3, dtype=torch.float64).index_copy(
            1, torch.arange(len(ids)), counts[None].double() / 3
        )
        mean += probs[0, list(outcome)].prod() * gradient(student, dense_weights(padded, weights, 4))
    torch.testing.assert_close(mean, gradient(student, probs), rtol=0, atol=1e-12)


def test_the_rule_zero_weighs_a_sample_by_the_mass_that_is_kept():
    student, weights = drawn(0, 3, 5), drawn(1, 3, 5).softmax(dim=1) * (torch.arange(5) < 2)
    mass = weights.sum(dim=1, keepdim=True)
    torch.testing.assert_close(gradient(student, weights), mass * gradient(student, weights / mass))


def test_slots_that_are_not_used_weigh_nothing():
    found = dense_weights(
        torch.tensor([[2, 0, -1], [1, -1, -1]]), torch.tensor([[0.75, 0.25, 0.0], [1.0, 9.0, 9.0]]), 3
    )
    torch.testing.assert_close(found, torch.tensor([[0.25, 0.0, 0.75], [0.0, 1.0, 0.0]]))


def test_probabilities_have_a_least_logarithm():
    found = log_of(torch.tensor([[1.0, 0.0, 1e-42]]))
    torch.testing.assert_close(found, torch.tensor([[0.0, LEAST, LEAST]]))
    values = spread_teacher(torch.tensor([[0, 1]]), torch.tensor([[0.0, -torch.inf]]), 3)
    assert values.isfinite().all()


def test_the_logarithm_of_a_label_is_certain_at_any_temperature():
    labels = one_hot(torch.tensor([1, 0]), 3)
    torch.testing.assert_close(labels, torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]]))
    assert log_one_hot(labels)[0].tolist() == [NOTHING, 0.0, NOTHING]
    torch.testing.assert_close((log_one_hot(labels) / 1000).softmax(dim=1), labels, rtol=0, atol=0)


def test_gradients_are_those_of_finite_differences():
    student, ids = drawn(0, 3, 6), torch.tensor([[0, 4], [5, 1], [2, 3]])
    weights = dense_weights(ids, drawn(1, 3, 2).exp(), 6)
    assert_gradient_is_right(lambda logits: spread_student(logits, ids).square().sum(), student)
    assert_gradient_is_right(lambda logits: restricted(logits, ids).square().sum(), student)
    assert_gradient_is_right(lambda logits: kd_of_weights(logits, weights), student)


@pytest.mark.parametrize("scale", [0.0, 1.0, 1e4])
def test_a_student_of_any_size_keeps_finite_gradients(scale):
    student, ids = drawn(0, 3, 6).float() * scale, torch.tensor([[0, 4], [5, 1], [2, 3]])
    teacher = spread_teacher(ids, torch.tensor([[-1e-8, -30.0]]).expand(3, -1), 6)
    assert_finite(lambda logits: kd(spread_student(logits, ids), teacher), student)
    assert_finite(lambda logits: kd_of_weights(logits, one_hot(ids[:, 0], 6)), student)


def test_a_student_that_has_diverged_is_seen():
    student = torch.full((2, 4), torch.nan)
    assert spread_student(student, torch.tensor([[0], [1]])).isnan().all()
    assert kd_of_weights(student, one_hot(torch.tensor([0, 1]), 4)).isnan()
