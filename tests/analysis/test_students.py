"""A finished run's student says again what its training evaluated."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from analysis.students import student_logits
from ground.errors import CKDError, IdentityMismatch, InvalidInput, StoreUnreadable
from ground.geometry import Normalisation, Rendering
from models import create_model, save_weights
from models.compute import Compute
from storage.rows import Rows
from storage.store import Store
from student_train.methods import parse_method
from student_train.protocol import ProtocolConfig
from student_train.run_folder import RunFolder
from student_train.train_config import TrainConfig
from student_train.trainer import Trainer


def train(store: Path, folder: Path, method: str) -> Path:
    config = TrainConfig(student="resnet8", batch_size=32, lr=0.01, protocol=ProtocolConfig(max_evals=2))
    compute = Compute.choose("cpu", "fp32")
    Trainer.open(config, store, 64, parse_method(method), compute, RunFolder(folder)).run()
    return folder


@pytest.fixture(scope="module")
def plain(tmp_path_factory, built_store) -> Path:
    return train(built_store, tmp_path_factory.mktemp("plain") / "run", "ckd")


@pytest.fixture
def run(plain, tmp_path) -> Path:
    return Path(shutil.copytree(plain, tmp_path / "copy"))


def accuracy_of(logits: np.ndarray, store: Path) -> float:
    labels = Store.open(store).read_sample("test/labels", Rows.first(len(logits)))
    return float((logits.argmax(axis=1) == labels).mean())


def change(run: Path, **changes: object) -> None:
    document = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(document | changes))


def test_logits_have_the_accuracy_that_the_run_recorded(plain, built_store):
    num_test = Store.open(built_store).manifest.num_test
    logits = student_logits(plain, built_store, num_test)
    assert logits.shape == (num_test, 10)
    assert logits.dtype == np.float32
    recorded = json.loads((plain / "run.json").read_text())
    assert accuracy_of(logits, built_store) == pytest.approx(recorded["test_accuracy"], abs=1e-9)


def test_a_student_is_shown_what_its_training_showed_it(tmp_path, built_store):
    geometry = Store.open(built_store).manifest.identity.geometry
    normalisation = Normalisation(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    shown = Rendering(geometry=replace(geometry, crop_size=24), normalisation=normalisation)
    config = TrainConfig(student="resnet8", batch_size=32, lr=0.01, protocol=ProtocolConfig(max_evals=2))
    compute, folder = Compute.choose("cpu", "fp32"), RunFolder(tmp_path / "run")
    result = Trainer.open(config, built_store, 64, parse_method("kd"), compute, folder, rendering=shown).run()
    logits = student_logits(tmp_path / "run", built_store, Store.open(built_store).manifest.num_test)
    assert accuracy_of(logits, built_store) == pytest.approx(result["test_accuracy"], abs=1e-9)


def test_a_student_of_another_library_at_its_own_size_comes_back(tmp_path, built_store):
    config = TrainConfig(
        student="torchvision:resnet18", student_size=40, batch_size=32, lr=0.01, protocol=ProtocolConfig(max_evals=1)
    )
    compute, folder = Compute.choose("cpu", "fp32"), RunFolder(tmp_path / "run")
    result = Trainer.open(config, built_store, 32, parse_method("kd"), compute, folder).run()
    assert result["student_size"] == result["student_rendering"]["input_size"] == 40
    logits = student_logits(tmp_path / "run", built_store, Store.open(built_store).manifest.num_test)
    assert accuracy_of(logits, built_store) == pytest.approx(result["test_accuracy"], abs=1e-9)


def test_a_run_of_an_earlier_release_saw_what_its_teacher_did(run, plain, built_store):
    document = json.loads((run / "run.json").read_text())
    del document["student_rendering"]
    (run / "run.json").write_text(json.dumps(document))
    np.testing.assert_array_equal(student_logits(run, built_store, 5), student_logits(plain, built_store, 5))


@pytest.mark.parametrize(
    "change_of", [{"geometry": 3}, {"normalisation": {"mean": [0, 0, 0], "std": [0, 1, 1]}}, {"geometry": {}}]
)
def test_a_rendering_that_none_has_is_refused(run, built_store, change_of):
    change(run, student_rendering=json.loads((run / "run.json").read_text())["student_rendering"] | change_of)
    with pytest.raises(InvalidInput, match="run.json.* cannot be used .*student_rendering.*train the student again"):
        student_logits(run, built_store, 5)


def test_a_rendering_of_other_images_is_refused(run, built_store):
    said = json.loads((run / "run.json").read_text())["student_rendering"]
    change(run, student_rendering=said | {"geometry": said["geometry"] | {"image_size": 64}})
    with pytest.raises(InvalidInput, match="the run was shown images of 64 pixels, those of"):
        student_logits(run, built_store, 5)


def test_a_student_with_its_teachers_last_layer_comes_back_too(tmp_path, built_store):
    run = train(built_store, tmp_path / "run", "simkd:on=pooled")
    num_test = Store.open(built_store).manifest.num_test
    recorded = json.loads((run / "run.json").read_text())
    assert accuracy_of(student_logits(run, built_store, num_test), built_store) == pytest.approx(
        recorded["test_accuracy"], abs=1e-9
    )


def test_fewer_images_are_the_first_ones(plain, store_of_each_format):
    many, few = (student_logits(plain, store_of_each_format, images) for images in (20, 5))
    np.testing.assert_allclose(few, many[:5], rtol=1e-4, atol=1e-5)


def test_the_callers_random_numbers_are_left_alone(plain, built_store):
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    student_logits(plain, built_store, 2)
    assert torch.equal(torch.rand(4), expected)


@pytest.mark.parametrize("images", [0, -1, 100_000])
def test_images_that_the_store_does_not_have_are_refused(plain, built_store, images):
    with pytest.raises(InvalidInput, match=f"{images} test images are asked for, .* has \\d+"):
        student_logits(plain, built_store, images)


def test_a_run_of_another_teacher_is_refused(run, built_store):
    change(run, teacher_fingerprint="abc")
    with pytest.raises(IdentityMismatch, match="has teacher_fingerprint 'abc', .* give the store"):
        student_logits(run, built_store, 5)


def test_a_run_of_another_dataset_is_refused(run, built_store):
    change(run, dataset="cifar10")
    with pytest.raises(IdentityMismatch, match="has dataset 'cifar10'"):
        student_logits(run, built_store, 5)


def test_an_unfinished_run_is_refused(tmp_path, built_store):
    with pytest.raises(InvalidInput, match="run.json.*no such file"):
        student_logits(tmp_path, built_store, 5)


def test_a_folder_that_is_no_store_is_refused(plain, tmp_path):
    with pytest.raises(StoreUnreadable, match="there is no store"):
        student_logits(plain, tmp_path, 5)


@pytest.mark.parametrize("student", ["vgg8", "resnet9", "", 7, None])
def test_a_run_that_names_another_student_is_refused(run, built_store, student):
    change(run, student=student)
    with pytest.raises(InvalidInput, match="copy.*cannot be used"):
        student_logits(run, built_store, 5)


@pytest.mark.parametrize("damage", ["missing", "truncated", "folder", "other classes", "not finite", "odd shapes"])
def test_damaged_weights_are_refused_in_a_sentence(run, built_store, damage):
    path = run / "student.safetensors"
    content = path.read_bytes()
    path.unlink()
    if damage == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "folder":
        path.mkdir()
    elif damage == "other classes":
        save_weights(create_model("resnet8", 7, seed=0), path, {})
    elif damage == "not finite":
        network = create_model("resnet8", 10, seed=0)
        torch.nn.init.constant_(network.head.bias, float("nan"))
        save_weights(network, path, {})
    elif damage == "odd shapes":
        from safetensors.torch import save_file

        names = ("projector.0.weight", "classifier.weight", "grid")
        save_file({name: torch.zeros(3) for name in names}, path)
    with pytest.raises(CKDError, match="the student of .*copy cannot be used .*train the student again"):
        student_logits(run, built_store, 5)
