"""Uncertain, margin and committee: their scores by definition, and what follows from them."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st

from ground.errors import InvalidInput
from storage.run_record import STUDENT_FILE
from teacher_cache.selection import SelectorSpec
from teacher_cache.selection.committee import Committee
from teacher_cache.selection.margin import Margin
from teacher_cache.selection.students import Student, probabilities
from teacher_cache.selection.uncertain import Uncertain
from tests.teacher_cache.selection.pools import pool_of
from tests.teacher_cache.selection.runs import make_run


@st.composite
def answers(draw) -> np.ndarray:
    """(S, B, K) probabilities, some of them 0."""
    shape = draw(st.integers(2, 4)), draw(st.integers(1, 6)), draw(st.integers(2, 5))
    numbers = np.random.default_rng(draw(st.integers(0, 1 << 20))).integers(0, 4, shape) + np.eye(shape[2])[0]
    return numbers / numbers.sum(axis=2, keepdims=True)


def two_largest(shares: np.ndarray) -> np.ndarray:
    ordered = np.sort(shares, axis=1)
    return ordered[:, -1] - ordered[:, -2]


def votes(said: np.ndarray) -> np.ndarray:
    found = np.zeros(said.shape[1:])
    for student in said:
        for row, likeliest in enumerate(student.argmax(axis=1)):
            found[row, likeliest] += 1 / len(said)
    return found


DEFINED = {
    "uncertain": (Uncertain("a"), lambda said: scipy.stats.entropy(said.mean(axis=0), axis=1)),
    "margin": (Margin("a"), lambda said: -two_largest(said.mean(axis=0))),
    "disagreement": (
        Committee("a+b"),
        lambda said: np.mean([scipy.stats.entropy(one, said.mean(axis=0), axis=1) for one in said], axis=0),
    ),
    "vote entropy": (Committee("a+b", by="entropy"), lambda said: scipy.stats.entropy(votes(said), axis=1)),
    "vote margin": (Committee("a+b", by="margin"), lambda said: -two_largest(votes(said))),
}


@pytest.mark.parametrize("name", DEFINED)
@given(answers())
def test_scores_are_those_of_the_definition(name, said):
    rule, defined = DEFINED[name]
    np.testing.assert_allclose(rule.scores(torch.from_numpy(said)).numpy(), defined(said), atol=1e-12)


def test_equal_votes_are_equal_whichever_classes_they_are_for():
    said = torch.eye(5, dtype=torch.float64)[torch.tensor([[0, 4], [0, 1], [1, 1], [2, 3]])]
    one, other = Committee("a+b", by="entropy").scores(said)
    assert one == other


@pytest.fixture(scope="module")
def pool():
    return pool_of([0, 1, 2, 3] * 10, bought=5)


@pytest.fixture(scope="module")
def runs(pool, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return [make_run(folder / f"run{seed}", pool, seed) for seed in range(3)]


@pytest.mark.parametrize("text", ["uncertain", "margin", "committee", "committee:by=entropy", "committee:by=margin"])
def test_the_images_with_the_highest_scores_come_first_and_of_equals_the_first(pool, runs, text):
    name, _, settings = text.partition(":")
    rule = SelectorSpec.read(f"{name}:run={'+'.join(map(str, runs))},{settings}").make()
    rule.require(pool, 12)
    chosen = rule.choose(pool, 12, np.random.default_rng(0))
    students = [Student.of(run) for run in runs]
    scores = torch.cat([rule.scores(said) for _, said in probabilities(students, pool, pool.left)]).tolist()
    expected = sorted(range(len(scores)), key=lambda place: (-scores[place], place))
    assert chosen.tolist() == pool.left[expected[:12]].tolist()
    digests = [hashlib.sha256((run / STUDENT_FILE).read_bytes()).hexdigest() for run in runs]
    assert dict(rule.looked_at()) == {"run": "+".join(digests)}


def test_one_student_is_enough_for_those_that_are_no_committee(pool, runs):
    for name in ("uncertain", "margin"):
        assert len(SelectorSpec.read(f"{name}:run={runs[0]},subset=9").make().choose(pool, 9, None)) == 9


@pytest.mark.parametrize(
    ("text", "said"), [("committee:run=a", "two runs at least"), ("committee:run=a+b,by=chance", "by must be one of")]
)
def test_what_is_no_committee_is_refused(text, said):
    with pytest.raises(InvalidInput, match=said):
        SelectorSpec.read(text)
