"""The gate after the first 64 answers: what it sees, how often it errs, and that nothing is spent behind it."""

from __future__ import annotations

from collections import Counter
from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest
import torch

from ground.errors import TeacherDoubted
from storage.ledger import Ledger
from storage.store import Store
from storage.store_folder import LEDGER_FILE
from teacher_cache.build import build
from teacher_cache.config import BuildConfig
from teacher_cache.datasets import open_dataset
from teacher_cache.prepare import prepare_build
from teacher_cache.sanity import judge
from tests.running import run_command

SWAPPED = np.array([0, 1, 5, 3, 4, 2, 6, 7, 8, 9])
SHIFTED = np.roll(np.arange(10), 1)


def verdicts(num_classes: int, accuracy: float, order: np.ndarray | None = None, rounds: int = 100) -> Counter:
    """How often a teacher gets which verdict on 64 answers; where it errs, it says any other class."""
    random, found = np.random.default_rng(0), Counter()
    for _ in range(rounds):
        labels = random.integers(num_classes, size=64)
        other = (labels + random.integers(1, num_classes, size=64)) % num_classes
        top1 = np.where(random.random(64) < accuracy, labels, other)
        doubt = judge(top1 if order is None else order[top1], labels, num_classes)
        found["fine" if doubt is None else doubt.kind] += 1
    return found


@pytest.mark.parametrize(
    ("num_classes", "accuracy", "fine"),
    [(10, 0.9, 100), (10, 0.5, 99), (10, 0.3, 96), (2, 0.75, 97), (101, 0.92, 100), (100, 0.5, 99), (100, 0.2, 98),
     (100, 0.1, 94)],
)  # fmt: skip
def test_honest_teachers_pass(num_classes, accuracy, fine):
    assert verdicts(num_classes, accuracy)["fine"] >= fine


@pytest.mark.parametrize("num_classes", [2, 10, 100])
def test_a_teacher_that_guesses_is_stopped(num_classes):
    assert verdicts(num_classes, 1 / num_classes)["fine"] <= 20


@pytest.mark.parametrize(
    ("num_classes", "order", "least"),
    [(10, SHIFTED, 100), (10, SWAPPED, 80), (2, np.array([1, 0]), 100), (101, np.roll(np.arange(101), 1), 90)],
)
def test_a_permuted_teacher_is_seen(num_classes, order, least):
    assert verdicts(num_classes, 0.92, order, rounds=100 if num_classes < 100 else 10)["permuted"] >= least / (
        1 if num_classes < 100 else 10
    )


def test_a_swap_is_named():
    labels = np.arange(64) % 10
    doubt = judge(SWAPPED[labels], labels, 10)
    assert doubt.kind == "permuted"
    assert {*doubt.moved} == {(2, 5), (5, 2)}
    assert (doubt.num_right, doubt.num_right_moved) == (51, 64)


def test_one_answer_for_all_is_constant_unless_the_labels_are():
    labels = np.arange(64) % 10
    doubt = judge(np.full(64, 3), labels, 10)
    assert doubt.kind == "constant"
    assert doubt.constant == 3
    assert judge(np.full(64, 3), np.full(64, 3), 10) is None


def test_without_labels_only_a_constant_is_seen():
    unlabelled = np.full(64, -1)
    assert judge(np.full(64, 3), unlabelled, 10).kind == "constant"
    assert judge(np.arange(64) % 10, unlabelled, 10) is None


def test_unlabelled_images_do_not_count():
    labels = np.where(np.arange(64) < 50, np.arange(64) % 10, -1)
    doubt = judge((np.arange(64) % 10 + 5) % 10, labels, 10)
    assert doubt.num_labelled == 50


class Oracle:
    """A teacher that knows the labels of a plan's rows, and says them in an order of its own."""

    def __init__(self, teacher, labels: np.ndarray, order: np.ndarray) -> None:
        self._teacher, self._said, self.calls = teacher, order[labels], []
        self.card = teacher.card

    def call(self, pixels, names):
        start = sum(self.calls)
        self.calls.append(len(pixels))
        answers = dict(self._teacher.call(pixels, names))
        said = torch.from_numpy(self._said[start : start + len(pixels)])
        answers["logits"] = torch.nn.functional.one_hot(said, 10).float()
        return answers


def asked(tmp_path, weights, n: int = 200, **changes) -> BuildConfig:
    settings = {"batch_size": 256, "dataset": "digits", "device": "cpu"} | changes
    return BuildConfig(teacher="resnet8", weights=weights, store=tmp_path / "store", n=n, **settings)


def prepared_with(config: BuildConfig, order: np.ndarray, done: int = 0):
    prepared = prepare_build(config)
    labels = open_dataset("digits").train.labels[prepared.shown.source_index]
    return prepared._replace(teacher=Oracle(prepared.teacher, labels[done:], order))


def spent(tmp_path) -> int:
    store = Store.open(tmp_path / "store")
    with closing(Ledger(store.folder / LEDGER_FILE)) as ledger:
        summary = ledger.summary(store.manifest.identity.teacher.fingerprint)
        assert not ledger.calls_of_store(store.manifest.store_id, "reserved")
        return summary.spent


def test_a_swapped_teacher_is_stopped_after_64_calls_and_again_before_any_other(tmp_path, weights):
    config = asked(tmp_path, weights)
    first = prepared_with(config, SWAPPED)
    with pytest.raises(TeacherDoubted, match=r"\d+ of 64 are right, .*'5' for '2'.*--trust-teacher"):
        build(*first)
    assert first.teacher.calls == [64]
    assert spent(tmp_path) == 64
    again = prepared_with(config, SWAPPED, 64)
    with pytest.raises(TeacherDoubted):
        build(*again)
    assert again.teacher.calls == []
    assert spent(tmp_path) == 64
    trusted = prepared_with(replace(config, trust_teacher=True), SWAPPED, 64)
    assert build(*trusted).rows_valid == 200
    assert trusted.teacher.calls == [136]
    assert spent(tmp_path) == 200
    # What has passed is not judged again.
    assert build(*prepared_with(replace(config, n=220), SWAPPED, 200)).new_calls == 20


def test_a_good_teacher_passes_in_one_build(tmp_path, weights):
    prepared = prepared_with(asked(tmp_path, weights), np.arange(10))
    assert build(*prepared).new_calls == 200
    assert prepared.teacher.calls == [64, 136]


def test_a_small_store_is_judged_when_it_grows(tmp_path, weights):
    assert build(*prepared_with(asked(tmp_path, weights, n=40), SHIFTED)).new_calls == 40
    grown = prepared_with(asked(tmp_path, weights, n=100), SHIFTED, 40)
    with pytest.raises(TeacherDoubted):
        build(*grown)
    assert grown.teacher.calls == [24]
    assert spent(tmp_path) == 64


def test_of_several_views_the_first_of_64_images_are_judged(tmp_path, weights):
    prepared = prepared_with(asked(tmp_path, weights, n=70, views=3), SHIFTED)
    with pytest.raises(TeacherDoubted):
        build(*prepared)
    assert spent(tmp_path) == 64
    # Some views of an image are the same input, and are whole with it.
    assert Store.open(tmp_path / "store").valid()[:, 0].sum() == 64


def test_the_command_says_what_was_seen_and_exits_with_1(tmp_path, weights):
    command = ("ckd-cache", "build", "--teacher", "resnet8", "--weights", weights, "--dataset", "digits", "--n", 100,
               "--device", "cpu", "--store", tmp_path / "store")  # fmt: skip
    stopped = run_command(*command)
    assert stopped.returncode == 1
    assert "of 64 are right, and guessing gives" in stopped.stderr
    assert "Traceback" not in stopped.stderr
    assert spent(tmp_path) == 64
    assert run_command(*command, "--trust-teacher").returncode == 0
    assert spent(tmp_path) == 100
