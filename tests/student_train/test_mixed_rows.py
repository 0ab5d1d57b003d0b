"""Rows that are mixes: the student learns their labels in shares, and what their teacher said of the mix itself."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ground.errors import StoreUnreadable
from models.compute import Compute
from storage.made_images import Recipes, first_shares, is_made
from storage.rows import Rows
from storage.store import Store
from student_train.losses.cross_entropy import CrossEntropy
from student_train.mixed_rows import read_mixed
from student_train.needs import Wanted
from student_train.signals import MixedLabels
from student_train.streamed_data import Streaming, load_data
from teacher_cache.build import build
from teacher_cache.datasets import open_dataset
from teacher_cache.prepare import prepare_build
from teacher_cache.selection import SelectorSpec
from tests.conftest import run_command
from tests.student_train.test_signals import make_signals
from tests.teacher_cache.crash_rest import config

CPU = Compute(torch.device("cpu"), "fp32")


@pytest.fixture(scope="module")
def mixed(made_once, weights) -> Path:
    """40 images, and 20 mixes of each kind; read only."""

    def fill(folder: Path) -> None:
        rule = SelectorSpec.read("mix:random=0.5,mixup=0.25,cutmix=0.25")
        asked = replace(config(folder / "store", weights, "zarr", 80, 0), rest=None, select=rule)
        build(*prepare_build(asked))

    return made_once("mixed", fill) / "store"


def targets(store: Path) -> np.ndarray:
    """(n, 10) float64, label shares written out from the recipes."""
    found, digits = Store.open(store), open_dataset("digits")
    index, size = found.read("train/source_index"), found.manifest.identity.geometry.image_size
    eye, rows = np.eye(10), []
    for number in index:
        if not is_made(number):
            rows.append(eye[digits.train.labels[number]])
            continue
        recipe = Recipes.of(np.array([number]))
        share = first_shares(recipe, size)[0]
        first, second = (digits.train.labels[int(of[0])] for of in (recipe.first, recipe.second))
        rows.append(share * eye[first] + (1 - share) * eye[second])
    return np.array(rows)


@pytest.mark.parametrize("stream", [False, True])
def test_the_labels_of_every_row_are_the_shares_of_its_parts(mixed, stream):
    wanted = Wanted(student=(), teacher=("logits",), parameters=False)
    data = load_data(Store.open(mixed), 80, wanted, CPU, None, Streaming(always=stream, never=not stream))
    train = data.train
    signals = replace(
        make_signals(train.labels),
        student=replace(make_signals().student, logits=torch.zeros(80, 10)),
        mixed=train.mixed,
    )
    np.testing.assert_allclose(signals.label_targets.numpy(), targets(mixed), atol=1e-6)
    data.close()


def test_the_first_rows_of_such_a_store_need_no_shares(mixed):
    assert read_mixed(Store.open(mixed), Rows.first(40), CPU, None) is None
    found = read_mixed(Store.open(mixed), Rows.first(80), CPU, torch.tensor([3, 79, 60]))
    np.testing.assert_allclose(found.share.numpy(), targets(mixed)[[3, 79, 60]].max(axis=1), atol=1e-6)


def test_cross_entropy_is_with_the_shares():
    signals = make_signals()
    mix = MixedLabels(torch.tensor([0, 0, 2, 1]), torch.tensor([0.75, 1.0, 0.5, 1.0]))
    logits = signals.student.logits.double().numpy()
    log_probs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    shares = np.array([[0.25, 0, 0.75], [1, 0, 0], [0, 0.5, 0.5], [0, 1, 0]])
    expected = -(shares * log_probs).sum(axis=1).mean()
    assert CrossEntropy()(replace(signals, mixed=mix)).item() == pytest.approx(expected, rel=1e-6)
    order = torch.tensor([2, 0, 1, 3])
    moved = replace(signals, mixed=mix).reordered(order)
    np.testing.assert_allclose(moved.label_targets.numpy(), shares[order.numpy()])


@pytest.mark.parametrize("method", ["kd", "ckd", "dkd", "mixup"])
def test_students_are_trained_on_them(mixed, tmp_path, method):
    done = run_command(
        "ckd-train", "--store", mixed, "--student", "resnet8", "--method", method, "--max-evals", 1,
        "--out", tmp_path / "run", "--device", "cpu",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "80 teacher calls" in done.stdout


def test_rows_of_no_recipe_are_refused(mixed, monkeypatch):
    store = Store.open(mixed)
    index = store.read("train/source_index").copy()
    index[50] |= 1 << 57
    there = store.read_sample
    monkeypatch.setattr(store, "read_sample", lambda name, rows: index if "source" in name else there(name, rows))
    with pytest.raises(StoreUnreadable, match="row 50 of .* is made of images that are not rows before it"):
        read_mixed(store, Rows.first(80), CPU, None)
