"""Encoders: features of images, none of them the paid teacher's."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ground.errors import CheckpointError, InvalidInput, UnknownName
from ground.geometry import ViewGeometry
from ground.views import evaluation_batches
from models import create_model, save_weights, weights_digest
from models.trained_on import TrainedOn
from storage.run_record import STUDENT_FILE
from teacher_cache.selection import SelectorSpec
from teacher_cache.selection.encoders import open_encoder
from teacher_cache.selection.students import Student
from teacher_cache.teachers.zoo import fingerprint
from tests.teacher_cache.selection.pools import pool_of
from tests.teacher_cache.selection.runs import make_run


@pytest.fixture(scope="module")
def pool():
    return pool_of([0, 1, 2, 3] * 6, bought=3)


def pooled(network, pool, rendering) -> np.ndarray:
    images = torch.from_numpy(pool.images.read(pool.left))
    ((inputs, _),) = evaluation_batches(images, images, rendering)
    with torch.no_grad():
        return network.eval().represent(inputs).features["pooled"].numpy()


def test_features_of_pixels_are_random_filters_rectified_and_averaged_over_quarters(pool):
    found = open_encoder("pixels", pool).features(pool, pool.left).numpy()
    images = torch.from_numpy(pool.images.read(pool.left)).permute(0, 3, 1, 2)
    shown = F.interpolate(images, (32, 32), mode="bilinear", antialias=True).double().numpy() / 255
    shown = (shown - shown.mean(axis=(1, 2, 3), keepdims=True)) / shown.std(axis=(1, 2, 3), keepdims=True, ddof=1)
    filters = np.random.RandomState(0).standard_normal((64, 3, 5, 5)) / np.sqrt(75)
    maps = np.einsum(
        "ncyxij,fcij->nfyx", np.lib.stride_tricks.sliding_window_view(shown, (5, 5), axis=(2, 3)), filters
    ).clip(0)
    expected = maps.reshape(len(maps), 64, 2, 14, 2, 14).mean(axis=(3, 5)).reshape(len(maps), 256)
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_features_of_pixels_do_not_change_with_light_and_contrast():
    dark = np.random.default_rng(0).integers(0, 100, (4, 8, 8, 3), dtype=np.uint8)
    pools = [pool_of([0] * 4, images=images) for images in (dark, 2 * dark + 20, np.full_like(dark, 9))]
    first, second, flat = (open_encoder("pixels", one).features(one, np.arange(4)) for one in pools)
    torch.testing.assert_close(first, second, rtol=0, atol=2e-2)
    assert not flat.abs().max() > 1e-3


def test_the_student_of_a_run_is_an_encoder_by_its_pooled_features(pool, tmp_path):
    run = make_run(tmp_path / "run", pool, seed=3)
    encoder = open_encoder(str(run), pool)
    expected = pooled(create_model("resnet8", 4, 3, 8), pool, pool.identity.teacher_rendering)
    np.testing.assert_allclose(encoder.features(pool, pool.left).numpy(), expected, rtol=1e-4, atol=1e-5)
    assert (encoder.width, encoder.digest) == (64, Student.of(run).digest)
    rule = SelectorSpec.read(f"kcenter:encoder={run}").make()
    rule.require(pool, 3)
    assert dict(rule.looked_at()) == {"encoder": encoder.digest}


def test_a_network_with_a_file_of_weights_is_one_whatever_its_classes(pool, tmp_path):
    network = create_model("resnet8", 7, 5)
    save_weights(network, tmp_path / "weights.safetensors", {})
    encoder = open_encoder(f"resnet8@{tmp_path / 'weights.safetensors'}", pool)
    expected = pooled(network, pool, pool.identity.teacher_rendering)
    np.testing.assert_allclose(encoder.features(pool, pool.left).numpy(), expected, rtol=1e-4, atol=1e-5)
    assert encoder.digest == weights_digest(network)


def test_a_network_is_shown_images_as_its_file_says_or_as_its_library_does(pool, tmp_path, timm_weights):
    rendering = replace(
        pool.identity.teacher_rendering, geometry=ViewGeometry(image_size=16, crop_size=16, padding=0), input_size=16
    )
    said = TrainedOn.of("resnet8", dataset="others", dataset_digest="3" * 64, classes=("a", "b"), rendering=rendering)
    save_weights(create_model("resnet8", 2, 0), tmp_path / "weights.safetensors", said.metadata())
    encoder = open_encoder(f"resnet8@{tmp_path / 'weights.safetensors'}", pool)
    assert (encoder.rendering.size, encoder.rendering.geometry) == (16, pool.identity.geometry)
    encoder = open_encoder(f"timm:mobilenetv3_small_050@{timm_weights}", pool)
    assert (encoder.rendering.size, encoder.width) == (224, 1024)


def paid(pool, name, network, **shown):
    """The pool of a store whose teacher is this network."""
    teacher = replace(pool.identity.teacher, name=name, **shown)
    identity = replace(pool.identity, teacher=teacher)
    known_by = fingerprint(name, weights_digest(network), identity.teacher_rendering, teacher.class_map)
    return replace(pool, identity=replace(identity, teacher=replace(teacher, fingerprint=known_by)))


@pytest.mark.parametrize(
    "shown", [{}, {"input_size": 64, "interpolation": "bicubic"}, {"class_map": ((0,), (1,), (2,), (4, 5))}]
)
def test_the_paid_teacher_is_no_encoder_however_it_is_shown_images(pool, tmp_path, shown):
    network, other = create_model("resnet8", 7, 5), create_model("resnet8", 7, 6)
    for name, made in (("teacher", network), ("other", other)):
        save_weights(made, tmp_path / f"{name}.safetensors", {})
    built = paid(pool, "resnet8", network, **shown)
    rule = SelectorSpec.read(f"kcenter:encoder=resnet8@{tmp_path / 'teacher.safetensors'}").make()
    with pytest.raises(InvalidInput, match="is the teacher resnet8 itself, whose features are what calls are paid for"):
        rule.require(built, 2)
    SelectorSpec.read(f"kcenter:encoder=resnet8@{tmp_path / 'other.safetensors'}").make().require(built, 2)


def test_a_run_whose_student_has_the_teachers_weights_is_refused_too(pool, tmp_path):
    network = create_model("resnet8", 4, 5, 8)
    run = make_run(tmp_path / "run", pool, network=network)
    with pytest.raises(InvalidInput, match="is the teacher resnet8 itself"):
        open_encoder(str(run), paid(pool, "resnet8", network))


@pytest.mark.parametrize(
    ("text", "error", "said"),
    [
        ("pixel", InvalidInput, "there is no encoder 'pixel'"),
        ("resnet9@weights", UnknownName, "no network is called"),
        ("resnet8@nowhere", CheckpointError, "there is no checkpoint at nowhere"),
        ("{folder}", InvalidInput, "holds no finished run"),
        ("{folder}@x/y", InvalidInput, "network|encoder"),
    ],
)
def test_what_is_no_encoder_is_refused(pool, tmp_path, text, error, said):
    rule = SelectorSpec.read(f"typical:encoder={text.format(folder=tmp_path)}").make()
    with pytest.raises(error, match=said):
        rule.require(pool, 2)


def test_features_that_are_no_numbers_are_refused(pool, tmp_path):
    network = create_model("resnet8", 4, 0, 8)
    norms = [module for module in network.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    with torch.no_grad():
        norms[-1].weight.fill_(3e38)
    run = make_run(tmp_path / "run", pool, network=network)
    assert (run / STUDENT_FILE).is_file()
    with pytest.raises(InvalidInput, match="are no numbers"):
        open_encoder(str(run), pool).features(pool, pool.left)
