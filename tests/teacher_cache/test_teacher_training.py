"""What `train-teacher` refuses before its epochs, and what its file says."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ground.errors import Diverged, InvalidInput
from models import read_metadata
from models.compute import Compute
from models.trained_on import TrainedOn
from teacher_cache.datasets import open_dataset
from teacher_cache.datasets.base import ArraySplit, Split
from teacher_cache.teacher_training import TrainingConfig, train_teacher

CPU = Compute.choose("cpu", "fp32")
SHORT = TrainingConfig(teacher="resnet8", epochs=1, batch_size=64)


@pytest.fixture(scope="module")
def digits():
    whole = open_dataset("digits")

    def first(split: Split) -> ArraySplit:
        return ArraySplit(split.read(np.arange(64)), split.labels[:64])

    return replace(whole, train=first(whole.train), test=first(whole.test))


def test_the_file_says_all_that_it_was_trained_on(tmp_path, digits):
    path = tmp_path / "teacher.safetensors"
    train_teacher(SHORT, digits, path, CPU)
    assert TrainedOn.read(read_metadata(path), path) == TrainedOn.of(
        "resnet8",
        dataset="digits",
        dataset_digest=digits.digest,
        classes=digits.classes,
        rendering=digits.rendering,
    )


def refuse_epochs(monkeypatch) -> None:
    monkeypatch.setattr(torch.optim.SGD, "step", lambda *_: pytest.fail("an epoch was begun"))


def test_an_image_of_the_test_split_that_is_damaged_is_found_before_the_epochs(tmp_path, digits, monkeypatch):
    class Damaged(ArraySplit):
        def read(self, indices: np.ndarray) -> np.ndarray:
            raise InvalidInput("cannot decode test/ant/1.png")

    refuse_epochs(monkeypatch)
    broken = replace(digits, test=Damaged(digits.test.images, digits.test.labels))
    with pytest.raises(InvalidInput, match=r"cannot decode test/ant/1\.png"):
        train_teacher(SHORT, broken, tmp_path / "teacher.safetensors", CPU)


def below_a_file(folder: Path) -> Path:
    (folder / "file").touch()
    return folder / "file" / "teacher.safetensors"


def taken(folder: Path) -> Path:
    (folder / "teacher.safetensors").write_bytes(b"mine")
    return folder / "teacher.safetensors"


PLACES = {
    "below a file": (below_a_file, "cannot be written .*; give another --out"),
    "long name": (lambda folder: folder / ("x" * 240), r"cannot be written \(File name too long\); give another --out"),
    "taken": (taken, "exists; delete it, or give another --out"),
    "a folder": (lambda folder: folder, "exists; delete it, or give another --out"),
}


@pytest.mark.parametrize("case", PLACES)
def test_a_file_that_cannot_be_made_is_refused_before_the_epochs(tmp_path, digits, monkeypatch, case):
    make, message = PLACES[case]
    out = make(tmp_path)
    before = sorted(tmp_path.iterdir())
    refuse_epochs(monkeypatch)
    with pytest.raises(InvalidInput, match=message):
        train_teacher(SHORT, digits, out, CPU)
    assert sorted(tmp_path.iterdir()) == before


def test_a_loss_that_is_not_finite_ends_the_training_and_keeps_no_state(tmp_path, digits):
    with pytest.raises(Diverged, match=r"the loss is (nan|inf) in epoch \d; give a lower --lr than 1e\+30"):
        train_teacher(replace(SHORT, epochs=4, lr=1e30, batch_size=2), digits, tmp_path / "t.safetensors", CPU)
    for left in tmp_path.iterdir():
        state = torch.load(left, weights_only=True)["network"]
        assert all(math.isfinite(value.double().abs().max()) for value in state.values())
