"""Correlations between classes and singular values, against independent computations."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from analysis.logits import (
    class_correlations,
    correlation_difference,
    describe_logits,
    described,
    flatness,
    relative,
    singular_values,
)
from ground.errors import InvalidInput
from tests.analysis.grids import PlannedRun, results_of


def logits_of(images: int = 40, classes: int = 7, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(2.0, 3.0, (images, classes)).astype(np.float32)


def test_correlations_are_numpys():
    logits = logits_of()
    np.testing.assert_allclose(class_correlations(logits), np.corrcoef(logits.astype(np.float64).T), atol=1e-12)


def test_the_difference_is_the_mean_over_distinct_pairs():
    student, teacher = logits_of(seed=1), logits_of(seed=2)
    ours, theirs = (np.corrcoef(values.astype(np.float64).T) for values in (student, teacher))
    pairs = [abs(ours[i, j] - theirs[i, j]) for i in range(7) for j in range(7) if i < j]
    assert correlation_difference(student, teacher) == pytest.approx(sum(pairs) / 21)


def test_a_hand_value():
    # Student: the classes go together (1); teacher: against each other (-1).
    student = np.array([[0.0, 0.0], [1.0, 2.0], [2.0, 4.0]])
    assert correlation_difference(student, student * [1, -1]) == pytest.approx(2.0)
    assert correlation_difference(student, student * [5, 3] + [7, -2]) == pytest.approx(0.0, abs=1e-12)


def test_a_constant_class_goes_along_with_none():
    logits = logits_of(images=100)
    logits[:, 2] = 0.1  # whose mean in floating point is not exactly 0.1
    correlations = class_correlations(logits)
    assert np.isfinite(correlations).all()
    assert (np.delete(correlations[2], 2) == 0).all()
    assert correlation_difference(np.full((5, 3), 0.1), np.full((5, 3), 7.0)) == 0.0


@given(
    logits=arrays(np.float32, (6, 4), elements=st.floats(-100, 100, width=32)),
    scale=st.floats(0.01, 100),
)
def test_correlations_are_within_their_bounds_whatever_the_scale(logits, scale):
    correlations = class_correlations(logits * np.float64(scale))
    assert (np.abs(correlations) <= 1).all()
    np.testing.assert_array_equal(correlations, correlations.T)
    assert 0 <= correlation_difference(logits, logits[::-1] * 2) <= 2


def test_tiny_and_huge_logits_are_neither_lost_nor_infinite():
    logits = logits_of().astype(np.float64)
    for scale in (1e-200, 1e200):
        np.testing.assert_allclose(class_correlations(logits * scale), class_correlations(logits), atol=1e-9)


def test_singular_values_are_those_of_the_centred_matrix():
    logits = logits_of()
    centred = logits.astype(np.float64) - logits.astype(np.float64).mean(axis=0, keepdims=True)
    found = singular_values(logits)
    np.testing.assert_allclose(found, torch.linalg.svdvals(torch.from_numpy(centred)).numpy(), rtol=1e-10)
    # And by another way: squares are the eigenvalues of the scatter matrix.
    np.testing.assert_allclose(found**2, np.linalg.eigvalsh(centred.T @ centred)[::-1], rtol=1e-9)
    assert found.dtype == np.float64


def test_what_all_images_share_has_no_singular_value():
    logits = logits_of()
    np.testing.assert_allclose(singular_values(logits + np.arange(7) * 1000.0), singular_values(logits), rtol=1e-4)
    np.testing.assert_allclose(singular_values(np.tile(np.arange(4.0), (5, 1))), 0.0, atol=1e-12)


def test_fewer_images_than_classes_leave_as_many_values():
    assert singular_values(logits_of(images=3)).shape == (3,)


def test_relative_values_are_shares_of_the_largest():
    assert relative(np.array([4.0, 2.0, 1.0])).tolist() == [1.0, 0.5, 0.25]
    assert relative(np.zeros(3)).tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    "logits",
    [
        np.zeros((1, 4)),
        np.zeros((4, 1)),
        np.zeros(4),
        np.zeros((0, 3)),
        np.full((3, 3), math.nan),
        np.full((3, 3), math.inf),
    ],
)
def test_logits_that_say_nothing_are_refused(logits):
    with pytest.raises(InvalidInput, match="logits are"):
        singular_values(logits)
    with pytest.raises(InvalidInput, match="logits are"):
        correlation_difference(logits, logits)


def test_logits_of_other_images_are_refused():
    with pytest.raises(InvalidInput, match=r"\(40, 7\), the teacher's \(39, 7\)"):
        correlation_difference(logits_of(), logits_of(images=39))


def test_what_is_described_is_read_back(tmp_path):
    results = results_of(tmp_path, [PlannedRun(seed=seed) for seed in (0, 1)])
    student, teacher = logits_of(seed=1), logits_of(seed=2)
    (tmp_path / results["run"][1] / "logits.json").write_text(json.dumps(describe_logits(student, teacher)))
    (row,) = described(tmp_path, results).to_dict("records")
    assert (row["run"], row["seed"], row["images"]) == (results["run"][1], 1, 40)
    assert row["correlation_difference"] == correlation_difference(student, teacher)
    np.testing.assert_allclose(row["singular_values"], singular_values(student))


def test_flatness_averages_shares_over_seeds_and_has_the_teachers(tmp_path):
    results = results_of(tmp_path, [PlannedRun(seed=seed) for seed in (0, 1)])
    for run, values in zip(results["run"], ([4.0, 2.0], [10.0, 1.0]), strict=True):
        content = {"images": 9, "correlation_difference": 0.1, "singular_values": values}
        (tmp_path / run / "logits.json").write_text(json.dumps(content | {"teacher_singular_values": [8.0, 2.0]}))
    table = flatness(described(tmp_path, results)).set_index(["label", "rank"])
    assert table.loc[("ckd", 1), "value"] == 1.0
    assert table.loc[("ckd", 2), "value"] == pytest.approx(0.3)
    assert table.loc[("teacher", 2), "value"] == pytest.approx(0.25)
    assert table.loc[("ckd", 2), "seeds"] == 2


def test_flatness_averages_over_samples_too(tmp_path):
    results = results_of(tmp_path, [PlannedRun(sample_seed=sample) for sample in (0, 1)])
    for run, values in zip(results["run"], ([4.0, 2.0], [10.0, 1.0]), strict=True):
        content = {"images": 9, "correlation_difference": 0.1, "singular_values": values}
        (tmp_path / run / "logits.json").write_text(json.dumps(content | {"teacher_singular_values": [8.0, 2.0]}))
    found = described(tmp_path, results)
    assert found["sample_seed"].tolist() == [0, 1]
    second = flatness(found).set_index(["label", "rank"]).loc[("ckd", 2)]
    assert second["value"] == pytest.approx(0.3)
    assert (second["samples"], second["seeds"]) == (2, 1)


def test_runs_without_logits_are_not_described(tmp_path):
    found = described(tmp_path, results_of(tmp_path, [PlannedRun()]))
    assert len(found) == 0
    assert len(flatness(found)) == 0


@pytest.mark.parametrize(
    "change",
    [
        {"images": 1},
        {"correlation_difference": 3},
        {"correlation_difference": float("nan")},
        {"singular_values": []},
        {"singular_values": [1, "x"]},
        {"teacher_singular_values": None},
    ],
)
def test_a_damaged_description_is_refused_and_named(tmp_path, change):
    results = results_of(tmp_path, [PlannedRun()])
    path = tmp_path / results["run"][0] / "logits.json"
    path.write_text(json.dumps(describe_logits(logits_of(), logits_of(seed=3)) | change))
    with pytest.raises(InvalidInput, match="logits.json.*delete it and run the grid again"):
        described(tmp_path, results)
