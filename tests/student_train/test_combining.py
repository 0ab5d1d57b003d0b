"""How the answers of several teachers become one, against the papers' formulas in NumPy's float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import log_softmax, softmax

from storage.answers import Kind
from storage.schema import UNLABELLED
from student_train.combining import COMBINABLE, WAYS, combined
from student_train.names import COMBINATIONS

LABELS = np.array([0, 3, 2, 1, 1, 0])
SCALES = {
    Kind.LOGITS: (lambda logits: logits, lambda logits: logits),
    Kind.LOG_PROBS: (lambda logits: log_softmax(logits, axis=-1), lambda logits: log_softmax(logits, axis=-1)),
    Kind.PROBABILITIES: (lambda logits: softmax(logits, axis=-1), lambda logits: softmax(logits, axis=-1)),
}


def logits_of(teachers: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 3, (teachers, len(LABELS), 4))


def said_by(way: str, kind: Kind, said: np.ndarray, labels: np.ndarray = LABELS) -> np.ndarray:
    return combined(WAYS[way], kind, torch.from_numpy(said.astype(np.float32)), torch.from_numpy(labels)).numpy()


def confident_weights(logits: np.ndarray) -> np.ndarray:
    """CA-MKD, Eq. 3 and 4, as they are written."""
    teachers, rows = len(logits), np.arange(len(LABELS))
    entropies = np.stack([-np.log(softmax(own, axis=1)[rows, LABELS]) for own in logits])
    return (1 - np.exp(entropies) / np.exp(entropies).sum(axis=0)) / (teachers - 1)


@pytest.mark.parametrize("kind", COMBINABLE)
def test_a_mean_is_that_of_logits_in_the_form_of_the_kind(kind):
    (kept, form), logits = SCALES[kind], logits_of(3)
    # Of log-probabilities the mean differs by a number for each row, which the form takes off.
    np.testing.assert_allclose(said_by("mean", kind, kept(logits)), form(logits.mean(axis=0)), rtol=2e-5, atol=2e-6)


@given(temperature=st.floats(1, 20), seed=st.integers(0, 99))
def test_a_mean_is_the_geometric_one_of_the_distributions_at_every_temperature(temperature, seed):
    logits = logits_of(3, seed)
    product = np.prod(softmax(logits / temperature, axis=-1), axis=0) ** (1 / 3)
    found = softmax(said_by("mean", Kind.LOGITS, logits) / temperature, axis=-1)
    np.testing.assert_allclose(found, product / product.sum(axis=-1, keepdims=True), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("kind", COMBINABLE)
def test_weights_are_those_of_the_paper(kind):
    (kept, form), logits = SCALES[kind], logits_of(3)
    weights = confident_weights(logits)
    np.testing.assert_allclose(weights.sum(axis=0), 1)
    expected = form((weights[..., None] * logits).sum(axis=0))
    np.testing.assert_allclose(said_by("weighted", kind, kept(logits)), expected, rtol=5e-5, atol=5e-6)


def test_a_teacher_that_is_sure_of_a_wrong_class_counts_for_nothing():
    right, wrong = np.zeros((len(LABELS), 4)), np.zeros((len(LABELS), 4))
    right[np.arange(len(LABELS)), LABELS] = 60
    wrong[np.arange(len(LABELS)), (LABELS + 1) % 4] = 60
    np.testing.assert_allclose(said_by("weighted", Kind.LOGITS, np.stack([wrong, right])), right, atol=1e-6)


@pytest.mark.parametrize("kind", COMBINABLE)
def test_the_best_is_who_gives_the_label_most_and_is_taken_bit_for_bit(kind):
    logits = logits_of(3)
    said = SCALES[kind][0](logits).astype(np.float32)
    rows = np.arange(len(LABELS))
    best = softmax(logits, axis=-1)[:, rows, LABELS].argmax(axis=0)
    assert len(set(best)) > 1
    np.testing.assert_array_equal(said_by("best", kind, said), said[best, rows])


def test_without_a_label_the_best_is_who_is_surest_and_of_equals_the_first():
    logits = logits_of(3)
    logits[:, 0] = logits[0, 0]
    logits[1:, 0] += 1.0  # another level, and the same distribution
    labels, rows = np.full(len(LABELS), UNLABELLED), np.arange(1, len(LABELS))
    found = said_by("best", Kind.LOGITS, logits, labels)
    surest = softmax(logits, axis=-1).max(axis=-1).argmax(axis=0)
    np.testing.assert_array_equal(found[rows], logits.astype(np.float32)[surest[rows], rows])


@pytest.mark.parametrize("way", COMBINATIONS)
def test_who_did_not_answer_does_not_count(way):
    logits = logits_of(3)
    logits[2, :3] = np.nan
    logits[:2, 4] = np.nan
    logits[:, 5] = np.nan
    found = said_by(way, Kind.LOGITS, logits)
    np.testing.assert_array_equal(found[:3], said_by(way, Kind.LOGITS, logits[:2])[:3])
    np.testing.assert_array_equal(found[4], logits[2, 4].astype(np.float32))
    assert np.isnan(found[5]).all()


@pytest.mark.parametrize("way", COMBINATIONS)
def test_teachers_that_agree_are_as_one(way):
    own = logits_of(1)
    np.testing.assert_allclose(said_by(way, Kind.LOGITS, np.repeat(own, 3, axis=0)), own[0], rtol=1e-6)


def test_classes_that_a_teacher_excludes_give_finite_answers():
    said = np.array([[[1.0, 0.0, 0.0, 0.0]], [[0.25, 0.25, 0.25, 0.25]]])
    for way in COMBINATIONS:
        found = said_by(way, Kind.PROBABILITIES, said, np.array([1]))
        assert np.isfinite(found).all()
        np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-6)


def test_a_squared_distance_to_the_mean_pulls_as_the_mean_of_the_distances():
    logits = torch.from_numpy(logits_of(3))
    student = torch.zeros(logits.shape[1:], dtype=torch.float64, requires_grad=True)
    mean = combined(WAYS["mean"], Kind.LOGITS, logits.float(), torch.from_numpy(LABELS)).double()
    (of_mean,) = torch.autograd.grad((student - mean).square().sum(), student)
    (of_each,) = torch.autograd.grad(torch.stack([(student - own).square().sum() for own in logits]).mean(), student)
    torch.testing.assert_close(of_mean, of_each, rtol=1e-5, atol=1e-5)


def test_the_names_are_those_of_the_ways():
    assert tuple(WAYS) == COMBINATIONS
