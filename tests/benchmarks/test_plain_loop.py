"""The loop with the teacher in every step does the work that stage two does from a store."""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from benchmarks.peers import OURS
from benchmarks.stand_ins.plain_loop import METHODS, ImagesOneByOne, PlainLoop, softened_kl
from ground.geometry import Normalisation
from models import create_model
from student_train.losses.functional import kd
from student_train.methods import parse_method

NORMALISATION = Normalisation(mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))


@pytest.fixture
def images() -> ImagesOneByOne:
    rng = np.random.default_rng(0)
    return ImagesOneByOne(rng.integers(0, 256, (16, 32, 32, 3), dtype=np.uint8), np.arange(16) % 4, NORMALISATION, 4)


def loop(method: str, images: ImagesOneByOne) -> PlainLoop:
    teacher, student = (create_model(name, 4, seed) for seed, name in enumerate(("resnet14", "resnet8")))
    return PlainLoop(METHODS[method], student, teacher, images, nullcontext, batch_size=8)


def test_every_image_is_a_crop_of_its_own_normalised_pixels(images):
    shown, label = images[3]
    values = {float(value) for value in np.unique((images.images[3] / 255 - 0.4) / 0.2)} | {(0 - 0.4) / 0.2}
    assert label == 3
    assert shown.shape == (3, 32, 32)
    for value in shown[0].unique().tolist():
        assert min(abs(value - other) for other in values) < 1e-5


def test_its_kl_is_ours():
    student, teacher = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0))
    assert_close(softened_kl(student, teacher), kd(student, teacher, temperature=4.0))


@pytest.mark.parametrize("method", METHODS)
def test_ours_is_given_the_weights_of_theirs(method):
    weights = {loss.name: loss.weight for loss in parse_method(OURS[method][0]).losses}
    theirs = METHODS[method]
    every = {"ce": theirs.gamma, "kd": theirs.alpha, "hint": theirs.beta}
    assert weights == {name: weight for name, weight in every.items() if weight}


@pytest.mark.parametrize("method", METHODS)
def test_an_epoch_trains_the_student_and_leaves_the_teacher(images, method):
    trained = loop(method, images)
    teacher = {name: tensor.clone() for name, tensor in trained.teacher.state_dict().items()}
    student = {name: tensor.clone() for name, tensor in trained.student.named_parameters()}
    loss, right = trained.epoch()
    assert loss > 0
    assert 0 <= right <= 1
    assert all(torch.equal(tensor, teacher[name]) for name, tensor in trained.teacher.state_dict().items())
    assert not any(torch.equal(tensor, student[name]) for name, tensor in trained.student.named_parameters())
    # Batch norm of the student is in training, that of the teacher is not.
    assert trained.student.training
    assert not any(module.training for module in trained.teacher.modules())


def test_maps_of_other_sizes_are_refused(images):
    teacher, student = create_model("resnet8", 4, 0), create_model("vgg8", 4, 0)
    with pytest.raises(ValueError, match="take networks of one family"):
        PlainLoop(METHODS["hint"], student, teacher, images, nullcontext)
