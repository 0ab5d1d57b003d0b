"""What the student is shown is its own matter; what the teacher saw and said is the store's."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from ground.errors import InvalidInput
from ground.geometry import Normalisation, Rendering, ViewGeometry
from ground.views import apply_views, evaluation_batches
from models.compute import Compute
from models.evaluation import accuracy
from storage.store import Store
from student_train.data import StudentData
from student_train.methods import parse_method
from student_train.needs import Wanted
from student_train.protocol import ProtocolConfig
from student_train.run_folder import RunFolder
from student_train.sampling import Batch
from student_train.train_config import TrainConfig
from student_train.trainer import Trainer

CPU = Compute(torch.device("cpu"), "fp32")
OWN = Normalisation(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
ROWS = torch.tensor([5, 17, 3])


def rendering(store, **changes) -> Rendering:
    geometry = Store.open(store).manifest.identity.geometry
    return Rendering(geometry=replace(geometry, **changes), normalisation=OWN)


def load(store, shown: Rendering | None) -> StudentData:
    wanted = Wanted(student=(), teacher=("logits",), parameters=False)
    return StudentData.load(Store.open(store), 48, wanted, CPU, shown)


def inputs(data: StudentData, view: str) -> torch.Tensor:
    return data.inputs(Batch(ROWS, (slice(0, len(ROWS)),)), 0, seed=0, student_view=view)[0]


def test_a_student_sees_what_the_teacher_saw_unless_it_is_told_otherwise(built_store):
    identity = Store.open(built_store).manifest.identity
    assert load(built_store, None).rendering == identity.teacher_rendering


def test_replayed_views_are_the_teachers_in_the_students_numbers(built_store):
    own = load(built_store, rendering(built_store, padding=1))
    store = Store.open(built_store)
    pixels = apply_views(own.train.images[ROWS], own.views[ROWS, 0], store.manifest.identity.geometry)
    torch.testing.assert_close(inputs(own, "teacher"), (pixels.float() / 255 - 0.5) / 0.25)


def test_fresh_views_are_cut_as_the_student_is_to_see_them(built_store):
    size = Store.open(built_store).manifest.identity.geometry.crop_size
    whole = load(built_store, rendering(built_store, padding=0, flips=False))
    # Without padding or flips there is one crop: the image.
    expected = whole.train.images[ROWS].permute(0, 3, 1, 2).float() / 255
    torch.testing.assert_close(inputs(whole, "fresh"), (expected - 0.5) / 0.25)
    assert inputs(load(built_store, rendering(built_store, crop_size=size - 8)), "fresh").shape[2:] == (size - 8,) * 2


def test_a_run_says_what_its_student_was_shown_and_measures_by_it(built_store, tmp_path):
    shown = rendering(built_store, crop_size=24)
    config = TrainConfig(student="resnet8", protocol=ProtocolConfig(max_evals=1))
    method, folder = parse_method("ckd"), RunFolder(tmp_path / "run")
    trainer = Trainer.open(config, built_store, 48, method, CPU, folder, rendering=shown)
    result = trainer.run()
    assert result["student_rendering"]["normalisation"] == {"mean": [0.5] * 3, "std": [0.25] * 3}
    assert ViewGeometry(**result["student_rendering"]["geometry"]) == shown.geometry
    test = trainer.data.test
    measured = accuracy(trainer.state.student, evaluation_batches(test.images, test.labels, shown), CPU)
    assert result["test_accuracy"] == measured


def test_views_of_another_size_are_not_replayed(built_store, tmp_path):
    shown, compute = rendering(built_store, crop_size=24), CPU
    for method, view in (("kd", "teacher"), ("hint", "auto")):
        config = TrainConfig(student="resnet8", student_view=view)
        with pytest.raises(InvalidInput, match="is shown 24 pixels, and the teacher's views have 32; give --student"):
            Trainer.open(
                config, built_store, 48, parse_method(method), compute, RunFolder(tmp_path / "r"), rendering=shown
            )


def test_a_rendering_of_other_images_is_refused(built_store):
    other = Rendering(geometry=ViewGeometry(image_size=64, crop_size=32, padding=0), normalisation=OWN)
    with pytest.raises(InvalidInput, match="cut from 64 pixels, and .* has images of 32"):
        load(built_store, other)


def test_what_cannot_be_measured_is_no_accuracy_of_zero():
    with pytest.raises(ValueError, match="no images to measure"):
        accuracy(torch.nn.Linear(1, 1), [], CPU)
